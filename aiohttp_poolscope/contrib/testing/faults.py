"""What goes wrong with a database, done on purpose to the scope of a test. The effects are real, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aiohttp_poolscope.config.dsn import Host
from aiohttp_poolscope.connection.statements import Batch
from aiohttp_poolscope.driver import FAILED, Driver
from aiohttp_poolscope.errors import ConfigError, PoolScopeError
from aiohttp_poolscope.gate import LENT

from .seam import serving
from .sql import controls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiohttp_poolscope import PoolScope
    from aiohttp_poolscope.driver import BeforeStatement, OpenConnection
    from aiohttp_poolscope.pool import Pool

__all__ = ("Faults",)

DEADLINE: Final = 5.0
"""Seconds within which a backend that was told to must have ended, and a database that is back be reached."""

STEP: Final = 0.01

SHORT: Final = b"SET LOCAL statement_timeout = 10; SELECT pg_sleep(60)"
"""The server cancels this for its own reason; and in any transaction the setting goes with the failure."""


class Fault(Batch):
    """What a fault sends in front of a statement, and in its name."""


class Faults:
    """What ``poolscope_faults`` is. Each fault lasts for an ``async with`` block and needs a scope that runs.

    Each raises ConfigError for a scope that does not.
    """

    @contextlib.asynccontextmanager
    async def exhausted(self, scope: PoolScope, *, acquire_timeout: float | None = None) -> AsyncIterator[None]:
        """Every connection of the pool is in use. Who wants one waits ``acquire_timeout`` seconds, or as configured."""
        pool = serving(scope, "poolscope_faults.exhausted(scope)").pool
        before = pool.acquire_timeout
        async with contextlib.AsyncExitStack() as held:
            for _ in range(pool.gate.maxsize):
                await held.enter_async_context(scope.acquire())
            if acquire_timeout is not None:
                pool.acquire_timeout = acquire_timeout
            try:
                yield
            finally:
                pool.acquire_timeout = before

    @contextlib.asynccontextmanager
    async def slow(self, scope: PoolScope, seconds: float) -> AsyncIterator[None]:
        """Each statement takes ``seconds`` longer, on the server: time-outs count them. BEGIN and COMMIT do not."""
        if not 0 < seconds < math.inf:
            raise ConfigError(f"poolscope_faults.slow(scope, {seconds!r}): must be a number of seconds above 0")
        sleep = f"SELECT pg_sleep({seconds!r})".encode()

        async def effect(link: OpenConnection, sql: object, timeout: float | None) -> float | None:
            begun = time.monotonic()
            await link.run(link.raw.cursor(), Fault([sleep], _text(sql)), None, timeout)
            return None if timeout is None else max(0.001, timeout - (time.monotonic() - begun))

        with _before_statements(serving(scope, "poolscope_faults.slow(scope)").pool, effect):
            yield

    @contextlib.asynccontextmanager
    async def statement_timeouts(self, scope: PoolScope, statements: int = 1) -> AsyncIterator[None]:
        """The next ``statements`` run into the server's ``statement_timeout``: QueryTimeout. They have no effect."""
        left = statements

        async def effect(link: OpenConnection, sql: object, timeout: float | None) -> float | None:
            nonlocal left
            if left > 0:
                left -= 1
                await link.run(link.raw.cursor(), Fault([SHORT], _text(sql)))
            return timeout

        with _before_statements(serving(scope, "poolscope_faults.statement_timeouts(scope)").pool, effect):
            yield

    @contextlib.asynccontextmanager
    async def dead_connections(self, scope: PoolScope) -> AsyncIterator[int]:
        """The server has ended all sessions of the scope; how many. Those opened from now on live."""
        yield await _kill(serving(scope, "poolscope_faults.dead_connections(scope)").pool)

    @contextlib.asynccontextmanager
    async def database_away(self, scope: PoolScope) -> AsyncIterator[None]:
        """The sessions of the scope have ended, and new connections are refused.

        At the end of the block the database is back, and the pool has noticed: it serves at once.
        """
        pool = serving(scope, "poolscope_faults.database_away(scope)").pool
        driver = _aiopgs(pool)
        before = driver.config
        with socket.socket() as nobody:  # bound, and not listening: a connect is refused, and nobody gets the port
            nobody.bind(("127.0.0.1", 0))
            host = Host(host="127.0.0.1", port=nobody.getsockname()[1])
            aside = await Driver.open(driver)
            driver.use(replace(before, hosts=(host,), source=None))
            try:
                await _kill(pool, aside)
                yield
            finally:
                driver.use(before)
        await _is_back(scope)


@contextlib.contextmanager
def _before_statements(pool: Pool, effect: BeforeStatement) -> Iterator[None]:
    async def first(link: OpenConnection, sql: object, timeout: float | None) -> float | None:
        if isinstance(sql, Fault) or link.status == FAILED or controls(_text(sql)) or not _lent(pool, link):
            return timeout
        return await effect(link, sql, timeout)

    pool.maintenance.before.append(first)
    try:
        yield
    finally:
        pool.maintenance.before.remove(first)


def _lent(pool: Pool, link: OpenConnection) -> bool:
    # With poolscope_rollback the session runs what a stand-in was asked to, and watches for it.
    known = getattr(link.observer, "link", link)
    return any(slot.link is known and slot.state is LENT for slot in pool.gate.slots)


def _text(sql: object) -> str:
    text = getattr(sql, "statement", sql)
    return text.decode("latin-1") if isinstance(text, bytes) else str(text)


def _aiopgs(pool: Pool) -> Driver:
    assert isinstance(pool.driver, Driver)  # noqa: S101  no other one can be had by a setting
    return pool.driver


async def _kill(pool: Pool, aside: OpenConnection | None = None) -> int:
    """End every session of a pool, on a connection that is none of its own, and wait until they have ended."""
    link = aside or await Driver.open(_aiopgs(pool))
    try:
        pids = sorted({slot.link.raw.get_backend_pid() for slot in pool.gate.slots if not slot.link.closed})
        cursor = link.raw.cursor()
        await link.run(cursor, "SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (pids,))
        end = time.monotonic() + DEADLINE
        while True:
            await link.run(cursor, "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s::int[])", (pids,))
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
