"""The faults of the soak. Each is a coroutine that has undone its fault when it returns, whatever happened."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.kit import load
from tests.kit.child import child

from .servers import crash, fill_slots, kill_backends, restart
from .soak_clients import AT_ONCE

if TYPE_CHECKING:
    import random

    from aiohttp_poolscope import PoolScope
    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
    from tests.kit.child import Child
    from tests.kit.wire import Wire

    from .soak_watch import Tally

ROLE = "soak"

BURST = {"/read": 1.0, "/slow/0.02": 1.0, "/hold/0.02": 1.0}


@dataclass
class Stage:
    """Everything that can be broken, and who is there to break it. ``password`` is what the pool believes in."""

    server: EmbeddedPostgres
    wire: Wire
    rng: random.Random
    password: str
    leaked_at: float = float("-inf")
    scope: PoolScope = field(init=False)
    url: str = field(init=False)
    tally: Tally = field(init=False)
    leavers: Child = field(init=False)
    storm_over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The application_name of the pool's backends."""
        assert self.scope.config.application_name is not None
        return self.scope.config.application_name

    async def some_time(self, least: float, most: float) -> None:
        """How long a fault lasts."""
        await asyncio.sleep(self.rng.uniform(least, most))

    def turn(self, **switches: Any) -> None:
        """Turn switches of the wire, in its own thread: it must not look at one while it is turned."""

        async def turned() -> None:
            for name, value in switches.items():
                setattr(self.wire, name, value)

        self.wire._call(turned())

    async def lasting(self, least: float, most: float, **switches: Any) -> None:
        """Turn switches of the wire, for some time, and back."""
        before = {name: getattr(self.wire, name) for name in switches}
        self.turn(**switches)
        try:
            await self.some_time(least, most)
        finally:
            self.turn(**before)


async def restart_fast(stage: Stage) -> float:
    """Every session is told to end, the server stops in order and starts again."""
    return await asyncio.to_thread(restart, stage.server, "fast")


async def restart_immediate(stage: Stage) -> float:
    """Every backend just ends; the server recovers when it starts again."""
    return await asyncio.to_thread(restart, stage.server, "immediate")


async def crash_of_a_backend(stage: Stage) -> float:
    """One backend is killed, and the server ends all others and recovers."""
    return await asyncio.to_thread(crash, stage.server)


async def kill_idle(stage: Stage) -> None:
    """Idle connections end."""
    await asyncio.to_thread(kill_backends, stage.server.dsn, application_name=stage.name, state="idle")


async def kill_active(stage: Stage) -> None:
    """Connections end under those who use them."""
    await asyncio.to_thread(kill_backends, stage.server.dsn, application_name=stage.name, state="active")


async def slots_filled(stage: Stage) -> None:
    """The server has no connection left to give, when every connection is to be replaced."""
    filler = fill_slots(stage.server.dsn)
    try:
        end = time.monotonic() + stage.rng.uniform(1.0, 2.5)
        await asyncio.to_thread(filler.fill)
        stage.scope.expire()
        while time.monotonic() < end:
            await asyncio.to_thread(filler.fill)
            await asyncio.sleep(0.05)
    finally:
        await asyncio.to_thread(filler.empty)


async def frozen(stage: Stage) -> None:
    """Nothing passes, and nobody is told."""
    await stage.lasting(1.0, 3.0, frozen=True)


async def old_connections_frozen(stage: Stage) -> None:
    """As a firewall that has forgotten its connections; new ones pass."""
    stage.wire.freeze()
    try:
        await stage.some_time(1.0, 3.0)
    finally:
        stage.wire.thaw()


async def connects_hang(stage: Stage) -> None:
    """New connections are accepted and left alone, when every connection is to be replaced."""
    stage.scope.expire()
    await stage.lasting(1.0, 3.0, hang=True)


async def delayed(stage: Stage) -> None:
    """The network is slow to answer."""
    await stage.lasting(1.5, 3.0, delay=stage.rng.uniform(0.005, 0.1))


async def throttled(stage: Stage) -> None:
    """The network is narrow."""
    await stage.lasting(1.5, 3.0, throttle=stage.rng.choice((2_000.0, 20_000.0)))


async def cut_with_fin(stage: Stage) -> None:
    """Every connection ends."""
    stage.wire.cut(fin=True)


async def cut_with_rst(stage: Stage) -> None:
    """Every connection is reset."""
    stage.wire.cut()


async def torn_answers(stage: Stage) -> None:
    """Some answers end in their middle."""
    for _ in range(stage.rng.randint(1, 5)):
        stage.wire.tear(stage.rng.randrange(60), fin=stage.rng.random() < 0.5)
        await stage.some_time(0.02, 0.2)


async def refused(stage: Stage) -> None:
    """Every connection is reset, and new ones are refused."""
    stage.wire.refuse()
    try:
        stage.wire.cut()
        await stage.some_time(0.5, 2.0)
    finally:
        stage.wire.accept()


async def password_rotated(stage: Stage) -> None:
    """The server has the new password a little earlier than the pool's function knows it."""
    new = secrets.token_urlsafe(16)
    await asyncio.to_thread(stage.server.sql, f"ALTER ROLE {ROLE} PASSWORD '{new}'")
    stage.scope.expire()
    try:
        await stage.some_time(0.1, 1.0)
    finally:
        stage.password = new


async def expired(stage: Stage) -> None:
    """Every connection is to be replaced."""
    stage.scope.expire()


async def leaked(stage: Stage) -> None:
    """A connection is borrowed, and forgotten by a task that ends."""

    async def forget() -> None:
        db = await stage.scope.acquire(timeout=10.0)
        await db.fetchval("SELECT 1")

    stage.leaked_at = time.monotonic()
    await asyncio.create_task(forget())


async def storm(stage: Stage) -> None:
    """Hundreds of clients come and leave."""
    stage.storm_over.clear()
    stage.leavers.tell(str(AT_ONCE * stage.rng.randint(4, 12)))
    async with asyncio.timeout(60.0):
        await stage.storm_over.wait()


async def burst(stage: Stage) -> float:
    """More requests come than can be served."""
    arguments = load.options(rate=800, seed=stage.rng.getrandbits(32), patience=5, paths=BURST)
    async with child(load.__name__, stage.url, *arguments, hear=stage.tally.hear):
        await stage.some_time(0.7, 1.5)
        return time.monotonic()


async def loop_blocked(stage: Stage) -> None:
    """The service's event loop stands still."""
    time.sleep(0.3)  # noqa: ASYNC251 - that is the fault


Fault = Callable[[Stage], Awaitable[float | None]]

FAULTS: dict[str, Fault] = {
    fault.__name__.replace("_", " "): fault
    for fault in (
        *(restart_fast, restart_immediate, crash_of_a_backend, kill_idle, kill_active, slots_filled),
        *(frozen, old_connections_frozen, connects_hang, delayed, throttled, cut_with_fin, cut_with_rst),
        *(torn_answers, refused, password_rotated, expired, leaked, storm, burst, loop_blocked),
    )
}
"""By name. What a coroutine returns is when its fault was over; nothing: when it returns."""
