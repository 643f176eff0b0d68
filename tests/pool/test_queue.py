"""The time that a borrow may wait: whose timer it has, and from when on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.errors import PoolExhausted
from aiohttp_poolscope.pool.housekeeper import Housekeeper
from aiohttp_poolscope.pool.queue import SOON, QueuedBorrow
from tests.conftest import BUSY, until

if TYPE_CHECKING:
    from aiohttp_poolscope.pool import Pool


def place_of(pool: Pool) -> QueuedBorrow:
    """The one that waits."""
    (place,) = pool.gate.waiters()
    assert isinstance(place, QueuedBorrow)
    return place


async def test_a_short_wait_needs_no_sweep(make_scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A borrow with little time has a timer from the beginning: no sweep might see it before it is over."""
    async with make_scope(maxsize=1) as scope, scope.acquire():
        monkeypatch.setattr(Housekeeper, "sweep", lambda *_: None)
        with pytest.raises(PoolExhausted):
            async with asyncio.timeout(BUSY):
                await scope.acquire(timeout=SOON / 2)


async def test_a_sweep_sets_the_timer_of_who_has_little_time_left(
    make_scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all are served before that, and have no timer at all."""
    async with make_scope(maxsize=1) as scope:
        pool, db = scope._run.pool, await scope.acquire()
        monkeypatch.setattr(Housekeeper, "sweep", lambda *_: None)
        waiting = asyncio.ensure_future(scope.fetchval("SELECT 1"))
        await until(lambda: pool.gate.waiting)
        place = place_of(pool)
        pool.queue.set_timers(place.end - 2 * SOON)
        assert place.timer is None
        pool.queue.set_timers(place.end - SOON / 2)
        assert place.timer is not None
        with pytest.raises(PoolExhausted):
            await waiting
        db.release()
