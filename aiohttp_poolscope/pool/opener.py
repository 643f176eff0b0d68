"""Opener: connections for the pool, one at a time, in the background.

It works for the pool and not for a waiter, so a connect that hangs delays nobody who can be served by a return. It
lives only while there is something to open, and it alone keeps asking a database that is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

from aiohttp_poolscope.events import BreakerClosed, BreakerOpened, ConnectFailed, Opened
from aiohttp_poolscope.gate import Breaker, Slot

if TYPE_CHECKING:
    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.gate import Gate

    from .maintenance import Maintenance
    from .reporter import Reporter
    from .tasks import Tasks

__all__ = ("Opener",)


class Opener:
    """Opens while the gate wants it.

    ``problem`` is why the last attempt failed; empty if it did not. ``opened`` and ``connect_failed`` count attempts.
    """

    def __init__(
        self,
        config: PoolConfig,
        gate: Gate[OpenConnection],
        maintenance: Maintenance,
        tasks: Tasks,
        *,
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        self.breaker = Breaker(config.breaker_failures, config.breaker_reset)
        self.connect = reporter.histogram("connect")
        self.problem = ""
        self.opened = self.connect_failed = 0
        self._max_lifetime = config.max_lifetime
        self._gate = gate
        self._maintenance = maintenance
        self._reporter = reporter
        self._tasks = tasks
        self._now = clock.monotonic
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        self._attempted = asyncio.Event()
        self._broken_since = 0.0
        self._expired_at = float("-inf")

    @property
    def unreachable(self) -> bool:
        """Whether waiting is pointless: the breaker is open and no connection is left."""
        return not self._gate.slots and not self.breaker.closed

    def replenish(self) -> None:
        """Start opening, if something is to be opened."""
        if self._wanted() and (self._task is None or self._task.done()):
            self._task = self._tasks.spawn(self._run(), "opener")

    async def fill(self, count: int) -> None:
        """Open ``count`` connections, now; the first attempt that fails raises DatabaseUnavailable."""
        while len(self._gate.slots) < count:
            await self._open()

    async def reaches(self, limit: float) -> bool:
        """Whether the next attempt to connect succeeds within ``limit`` seconds."""
        self._asked = True
        self.replenish()
        opened = self.opened
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._attempted.wait()
        return self.opened > opened

    def expire(self) -> None:
        """Whatever is being opened at this moment is too old already."""
        self._expired_at = self._now()

    def _wanted(self) -> bool:
        gate = self._gate
        if gate.wants_opening():
            return True
        # While the breaker is open somebody has to find out when the database is back, also with nobody waiting.
        looking = self._asked or not self.breaker.closed
        return looking and not (gate.opening or gate.draining) and len(gate.slots) < gate.maxsize

    async def _run(self) -> None:
        while self._wanted():
            try:
                await self._open()
            except Exception as error:  # noqa: BLE001 - also what the user's password and on_connect raise: it must go on trying
                self._failed(error)
                self._attempt_ended()
                await asyncio.sleep(self.breaker.pause(random.random()))  # noqa: S311

    async def _open(self) -> None:
        """One attempt. Whatever happens in it, the room it takes is free again or has a connection in it."""
        begun = self._now()
        self.breaker.probe()
        room = self._gate.reserve()
        try:
            link = await self._maintenance.create()
            if self._gate.closed:  # the user's code swallowed its cancellation: nobody would close this connection
                link.close()
                raise asyncio.CancelledError
        except BaseException:
            room.free()
            raise
        now = self._now()
        self.opened += 1
        self.problem = ""
        recovered = self.breaker.succeeded()
        slot = Slot(link, expires=self._lifetime_end(begun))
        link.is_lent = lambda: slot.holder is not None
        room.fill(slot, now)
        self._attempt_ended()
        self.connect.record(now - begun)
        self._reporter.emit(Opened, duration=now - begun)
        if recovered:
            self._reporter.emit(BreakerClosed, duration=now - self._broken_since)

    def _attempt_ended(self) -> None:
        self._asked = False
        self._attempted.set()
        self._attempted = asyncio.Event()

    def _failed(self, error: Exception) -> None:
        self.problem = " ".join(str(error).split()) or type(error).__name__
        self.connect_failed += 1
        opens, attempt = self.breaker.failed(), self.breaker.failures
        self._reporter.emit(ConnectFailed, cause=self.problem, attempt=attempt, error=error)
        if opens:
            self._broken_since = self._now()
            self._reporter.emit(BreakerOpened, cause=self.problem, attempt=attempt)
        if self.unreachable:
            self._gate.fail()

    def _lifetime_end(self, begun: float) -> float:
        """When a connection is too old: ``max_lifetime``, up to 10 % less so that not all end at once."""
        if begun <= self._expired_at:  # expire() was called while it was being opened
            return float("-inf")
        if self._max_lifetime is None:
            return float("inf")
        return begun + self._max_lifetime * (1 - 0.1 * random.random())  # noqa: S311
