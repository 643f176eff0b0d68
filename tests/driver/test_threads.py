"""A process that may start no more threads: statements are ended by closing, and everything else goes on."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

import aiohttp_poolscope as poolscope
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def no_threads() -> Iterator[None]:
    """None can be had, for want of the memory that each is to have."""
    before = threading.stack_size(1 << 46)
    yield
    threading.stack_size(before)


async def busy(scope: poolscope.PoolScope) -> asyncio.Task[Any]:
    """A task in a long statement."""
    task = asyncio.create_task(scope.fetchval("SELECT pg_sleep(30)"))
    await until(lambda: any(slot.link.running_since for slot in scope._run.pool.gate.slots), "the statement")  # type: ignore[union-attr]
    return task


@pytest.mark.usefixtures("no_threads")
async def test_a_limit_without_a_thread(make_scope: Any) -> None:
    """A statement that takes too long ends with its error, and the pool with what it had."""
    async with make_scope(maxsize=1, statement_timeout=30) as scope:
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        with pytest.raises(poolscope.QueryTimeout):
            await scope.fetchval("SELECT pg_sleep(30)", timeout=0.05)
        assert await scope.fetchval("SELECT 1") == 1


@pytest.mark.usefixtures("no_threads")
async def test_a_cancelled_statement_without_a_thread(make_scope: Any) -> None:
    """Its connection is replaced."""
    async with make_scope(maxsize=1) as scope:
        task = await busy(scope)
        task.cancel()
        await asyncio.wait({task})
        assert await scope.fetchval("SELECT 1") == 1


@pytest.mark.usefixtures("no_threads")
async def test_a_shutdown_without_a_thread(make_scope: Any) -> None:
    """It takes every connection away, from those as well who hold on to theirs."""
    ended: list[BaseException] = []

    async def clings() -> None:
        async with scope.acquire() as db:
            statement = asyncio.create_task(db.fetchval("SELECT pg_sleep(30)"))
            while not statement.done():
                try:
                    await asyncio.wait({statement})
                except asyncio.CancelledError as error:
                    ended.append(error)
            with pytest.raises(poolscope.ConnectionReleased):
                await statement

    async with make_scope(maxsize=2, drain_grace=0.05, drain_timeout=0.1) as scope:
        tasks = [asyncio.create_task(clings()) for _ in range(2)]
        await until(lambda: scope.stats().in_use == 2, "both")
    await asyncio.gather(*tasks)
    assert len(ended) == 2
    assert scope.state == "closed"
