"""A synchronous standby that is away: a commit that only the primary has is never told as success.

PostgreSQL ends the wait for a standby, when it is cancelled, as success with a warning; and the server's own
``statement_timeout`` does not end that wait at all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import QueryTimeout

from .replication import Pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]

INSERT = "INSERT INTO writes VALUES (%s)"


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    """A primary that waits for its standby at each COMMIT."""
    _pair.mend()
    _pair.synchronous()
    return _pair


async def by_execute(scope: poolscope.PoolScope, n: int, timeout: float | None) -> None:
    await scope.execute(INSERT, (n,), timeout=timeout)


async def by_fetch(scope: poolscope.PoolScope, n: int, timeout: float | None) -> None:
    await scope.fetchval(f"{INSERT} RETURNING 1", (n,), timeout=timeout)


async def by_a_cursor(scope: poolscope.PoolScope, n: int, timeout: float | None) -> None:
    async with scope.acquire() as db, db.cursor() as cursor:
        await cursor.execute(INSERT, (n,), timeout=timeout)


async def by_commit(scope: poolscope.PoolScope, n: int, timeout: float | None) -> None:
    async with scope.transaction() as tx:
        await tx.execute(INSERT, (n,), timeout=timeout)


async def by_many(scope: poolscope.PoolScope, n: int, timeout: float | None) -> None:
    async with scope.acquire() as db:
        await db.executemany(INSERT, [(n,)], timeout=timeout)


async def by_hand(scope: poolscope.PoolScope, n: int, timeout: float | None) -> None:
    async with scope.acquire() as db:
        await db.execute("BEGIN")
        await db.execute(INSERT, (n,))
        await db.execute("COMMIT", timeout=timeout)


WAYS: list[Callable[..., Awaitable[None]]] = [by_execute, by_fetch, by_a_cursor, by_commit, by_many, by_hand]
LIMITS: dict[str, tuple[dict[str, Any], float | None]] = {
    "its own": ({"statement_timeout": 1.0}, 0.3),
    "the pool's": ({"statement_timeout": 0.3}, None),
    "the pool's, behind a pooler": ({"statement_timeout": 0.3, "pgbouncer": True}, None),
}


async def test_no_acknowledged_write_is_lost(pair: Pair) -> None:
    """Whatever limit ends the wait, the write is QueryTimeout; what was acknowledged is there after the failover."""
    acknowledged, late = [], []
    for number, (settings, timeout) in enumerate(LIMITS.values()):
        async with poolscope.open(pair.direct, maxsize=2, **settings) as scope:
            for way, run in enumerate(WAYS):
                n = 100 * number + way
                await run(scope, n, timeout)
                acknowledged.append(n)
    await asyncio.to_thread(pair.standby.stop)
    for number, (settings, timeout) in enumerate(LIMITS.values()):
        async with poolscope.open(pair.direct, maxsize=len(WAYS), **settings) as scope:

            async def attempt(
                run: Callable[..., Awaitable[None]], n: int, scope: poolscope.PoolScope, timeout: Any
            ) -> None:
                with pytest.raises(QueryTimeout):
                    await run(scope, n, timeout)
                late.append(n)

            await asyncio.gather(
                *(attempt(run, 1000 + 100 * number + way, scope, timeout) for way, run in enumerate(WAYS))
            )
    assert len(late) == len(LIMITS) * len(WAYS)
    await asyncio.to_thread(pair.standby.start)
    await asyncio.to_thread(pair.primary.stop, "immediate")
    await asyncio.to_thread(pair.promote)
    async with poolscope.open(pair.direct) as scope:
        found = {row[0] for row in await scope.fetch("SELECT id FROM writes")}
    assert set(acknowledged) <= found
