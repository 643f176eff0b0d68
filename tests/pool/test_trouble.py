"""scope.trouble(): why a scope cannot serve, asked without being in anybody's way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Database, until
from tests.kit.wire import wired

if TYPE_CHECKING:
    from aiohttp_poolscope import ScopedConnection


async def test_quiet_then_busy(make_scope: Any) -> None:
    """Unused for longer than statement_timeout + 1 s, then all borrowed a moment ago: not stalled."""
    async with make_scope(maxsize=1, statement_timeout=0.3) as scope:
        await asyncio.sleep(1.5)
        async with scope.acquire():
            assert await scope.trouble() is None


async def test_too_old_but_sound(make_scope: Any) -> None:
    """An idle connection past max_lifetime that answers its ping is no trouble."""
    async with make_scope(maxsize=1) as scope:
        for slot in scope._run.pool.gate.slots:
            slot.expires = 0.0
        assert await scope.trouble() is None


async def test_killed_idle(make_scope: Any, database: Database) -> None:
    """After a restart, with every idle connection dead and the server there: not stalled."""
    async with make_scope(maxsize=2, minsize=2) as scope:
        for _ in range(5):
            await until(lambda: scope.stats().idle == 2)
            database.kill()
            await until(lambda: all(slot.link.closed for slot in scope._run.pool.gate.slots))
            assert await scope.trouble() is None


async def test_hook(make_scope: Any) -> None:
    """An on_acquire that raises is not trouble()'s to raise."""

    async def hook(db: ScopedConnection) -> None:
        raise ValueError("x")

    async with make_scope(minsize=0, connect_at_start=False, on_acquire=hook) as scope:
        assert await scope.trouble() is None


async def test_no_borrow(make_scope: Any) -> None:
    """It never counts as a borrow."""
    async with make_scope(minsize=0, connect_at_start=False) as scope:
        assert await scope.trouble() is None
        assert scope.stats().borrows == 0


async def test_one_lost_connection(make_scope: Any, database: Database) -> None:
    """One idle connection that a firewall forgot, of three: the others answer, so does a new one."""
    with wired(database) as wire:
        async with make_scope(wire.dsn, maxsize=4, minsize=1) as scope:
            wire.freeze()
            held = [await scope.acquire() for _ in range(3)]
            for db in held:
                db.release()
            await until(lambda: scope.stats().idle == 3)
            assert await scope.trouble() is None
            wire._frozen_below = 0


@pytest.mark.parametrize("size", [1, 0])
async def test_it_queues_behind_nobody(make_scope: Any, database: Database, size: int) -> None:
    """While the database is silent and others wait for it, the answer comes within the limit of a ping."""
    with wired(database) as wire:
        settings = {"minsize": size, "connect_at_start": bool(size), "acquire_timeout": 20.0, "connect_timeout": 20.0}
        async with make_scope(wire.dsn, maxsize=1, **settings) as scope:
            wire.frozen = True
            if size:
                assert await scope.trouble() == "no answer"
            waiting = [asyncio.ensure_future(scope.fetchval("SELECT 1")) for _ in range(3)]
            await until(lambda: scope.stats().waiting == 3)
            async with asyncio.timeout(10):
                assert await scope.trouble() == "no answer"
            assert scope.stats().waiting == 3
            wire.frozen = False
            assert await asyncio.gather(*waiting) == [1] * 3


async def test_one_who_is_cancelled_loses_nothing(make_scope: Any, database: Database) -> None:
    """Whoever asks may give up: the connection that is being pinged comes back."""
    with wired(database) as wire:
        async with make_scope(wire.dsn, maxsize=1) as scope:
            wire.frozen = True
            asking = asyncio.ensure_future(scope.trouble())
            await until(lambda: scope.stats().repairing == 1)
            asking.cancel()
            await asyncio.wait((asking,))
            wire.frozen = False
            await until(lambda: scope.stats().idle == 1)
            assert scope.stats().opened == 1


async def test_one_long_lease_is_no_trouble(make_scope: Any) -> None:
    """All that there are in use for long, and room for more: another one is opened before anybody is told."""
    async with make_scope(minsize=1, maxsize=3, statement_timeout=0.1) as scope, scope.acquire():
        next(iter(scope._run.pool.gate.slots)).since -= 10
        assert scope._run.pool._stalled()
        assert await scope.trouble() is None
        assert scope.stats().size == 2


async def test_stalled(make_scope: Any) -> None:
    """All of maxsize in use for longer than a statement may take is said."""
    async with make_scope(maxsize=1, statement_timeout=0.1) as scope, scope.acquire():
        next(iter(scope._run.pool.gate.slots)).since -= 10
        assert await scope.trouble() == "stalled"


async def test_while_it_ends(make_scope: Any, database: Database) -> None:
    """An end that begins meanwhile is what is said, and not that the one who asks was cancelled."""
    with wired(database) as wire:
        async with make_scope(wire.dsn, maxsize=1, drain_grace=0.0, drain_timeout=0.1) as scope:
            wire.frozen = True
            asking = asyncio.ensure_future(scope.trouble())
            await until(lambda: scope.stats().repairing == 1)
            scope.begin_drain()
            assert await asking in ("draining", "closed")
            wire.frozen = False
