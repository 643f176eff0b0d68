"""What goes wrong with a database, done on purpose to the scope of a test. The effects are real, on a real server."""

# ruff: noqa: SLF001 - a fault is made where it happens, inside

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from aiohttp_poolscope.config.dsn import Host
from aiohttp_poolscope.connection.statements import Batch
from aiohttp_poolscope.driver import FAILED, Driver, Link
from aiohttp_poolscope.driver.search import Search
from aiohttp_poolscope.errors import ConfigError, PoolScopeError
from aiohttp_poolscope.gate import LENT

from .seam import run_of
from .sql import controls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from aiohttp_poolscope import PoolScope
    from aiohttp_poolscope.pool import Pool

    Effect = Callable[[Link, object, float | None], Awaitable[float | None]]

__all__ = ("Faults",)

DEADLINE: Final = 5.0
"""Seconds within which a backend that was told to must have ended, and a database that is back be reached."""

STEP: Final = 0.01

SHORT: Final = b"SET LOCAL statement_timeout = 10; SELECT pg_sleep(60)"
"""The server cancels this for its own reason; and in any transaction the setting goes with the failure."""

effects: Final[list[tuple[Pool, Effect]]] = []
"""What happens before each statement of these pools."""

_run = Link.run


class Faults:
    """What ``poolscope_faults`` is. Each fault lasts for an ``async with`` block and needs a scope that runs.

    Each raises ConfigError for a scope that does not.
    """

    @contextlib.asynccontextmanager
    async def exhausted(self, scope: PoolScope, *, acquire_timeout: float | None = None) -> AsyncIterator[None]:
        """Every connection of the pool is in use. Who wants one waits ``acquire_timeout`` seconds, or as configured."""
        pool = run_of(scope, "poolscope_faults.exhausted(scope)").pool
        before = pool.config
        async with contextlib.AsyncExitStack() as held:
            for _ in range(pool.gate.maxsize):
                await held.enter_async_context(scope.acquire())
            if acquire_timeout is not None:
                pool.config = replace(before, acquire_timeout=acquire_timeout)
            try:
                yield
            finally:
                pool.config = before

    @contextlib.asynccontextmanager
    async def slow(self, scope: PoolScope, seconds: float) -> AsyncIterator[None]:
        """Each statement takes ``seconds`` longer, on the server: time-outs count them. BEGIN and COMMIT do not."""
        if not 0 < seconds < math.inf:
            raise ConfigError(f"poolscope_faults.slow(scope, {seconds!r}): must be a number of seconds above 0")
        sleep = f"SELECT pg_sleep({seconds!r})".encode()

        async def effect(link: Link, sql: object, timeout: float | None) -> float | None:
            begun = time.monotonic()
            await _run(link, link.raw.cursor(), Batch([sleep], _text(sql)), None, timeout)
            return None if timeout is None else max(0.001, timeout - (time.monotonic() - begun))

        with _before_statements(run_of(scope, "poolscope_faults.slow(scope)").pool, effect):
            yield

    @contextlib.asynccontextmanager
    async def statement_timeouts(self, scope: PoolScope, statements: int = 1) -> AsyncIterator[None]:
        """The next ``statements`` run into the server's ``statement_timeout``: QueryTimeout. They have no effect."""
        left = statements

        async def effect(link: Link, sql: object, timeout: float | None) -> float | None:
            nonlocal left
            if left > 0:
                left -= 1
                await _run(link, link.raw.cursor(), Batch([SHORT], _text(sql)))
            return timeout

        with _before_statements(run_of(scope, "poolscope_faults.statement_timeouts(scope)").pool, effect):
            yield

    @contextlib.asynccontextmanager
    async def dead_connections(self, scope: PoolScope) -> AsyncIterator[int]:
        """The server has ended all sessions of the scope; how many. Those opened from now on live."""
        yield await _kill(run_of(scope, "poolscope_faults.dead_connections(scope)").pool)

    @contextlib.asynccontextmanager
    async def database_away(self, scope: PoolScope) -> AsyncIterator[None]:
        """The sessions of the scope have ended, and new connections are refused.

        At the end of the block the database is back, and the pool has noticed: it serves at once.
        """
        pool = run_of(scope, "poolscope_faults.database_away(scope)").pool
        driver = pool.driver
        before = driver._search
        with socket.socket() as nobody:  # bound, and not listening: a connect is refused, and nobody gets the port
            nobody.bind(("127.0.0.1", 0))
            host = Host(host="127.0.0.1", port=nobody.getsockname()[1])
            aside = await Driver.open(driver)
            driver._search = Search(replace(driver.config, hosts=(host,)))
            try:
                await _kill(pool, aside)
                yield
            finally:
                driver._search = before
        await _is_back(scope)


@contextlib.contextmanager
def _before_statements(pool: Pool, effect: Effect) -> Iterator[None]:
    entry = (pool, effect)
    effects.append(entry)
    Link.run = _run_after_effects  # type: ignore[method-assign]
    try:
        yield
    finally:
        effects.remove(entry)
        if not effects:
            Link.run = _run  # type: ignore[method-assign]


async def _run_after_effects(
    self: Link, cursor: Any, sql: str | bytes, params: Any = None, timeout: float | None = None
) -> None:
    # With poolscope_rollback the session runs what a stand-in was asked to, and watches for it.
    link = getattr(self.observer, "link", self)
    for pool, effect in tuple(effects):
        lent = any(slot.link is link and slot.state is LENT for slot in pool.gate.slots)
        if lent and self.observer is not None and link.status != FAILED and not controls(_text(sql)):
            timeout = await effect(self, sql, timeout)
    await _run(self, cursor, sql, params, timeout)


def _text(sql: object) -> str:
    text = getattr(sql, "statement", sql)
    return text.decode("latin-1") if isinstance(text, bytes) else str(text)


async def _kill(pool: Pool, aside: Link | None = None) -> int:
    """End every session of a pool, on a connection that is none of its own, and wait until they have ended."""
    link = aside or await Driver.open(pool.driver)
    try:
        pids = sorted({slot.link.raw.get_backend_pid() for slot in pool.gate.slots if not slot.link.closed})
        cursor = link.raw.cursor()
        await _run(link, cursor, "SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (pids,))
        end = time.monotonic() + DEADLINE
        while True:
            await _run(link, cursor, "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s::int[])", (pids,))
            if cursor.fetchone()[0] == 0:
                return len(pids)
            if time.monotonic() > end:
                raise PoolScopeError(f"poolscope_faults: not all of the backends {pids} have ended")
            await asyncio.sleep(STEP)
    finally:
        link.close()
        pool.driver.forget_empty()


async def _is_back(scope: PoolScope) -> None:
    end = time.monotonic() + DEADLINE
    while scope.state == "serving" and (trouble := await scope.trouble()) is not None:
        if time.monotonic() > end:
            raise PoolScopeError(f"poolscope_faults: the database is back, but the scope says: {trouble}")
        await asyncio.sleep(STEP)
