"""on_connect, on_acquire and on_release."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg2
import pytest

from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.errors import ConnectionBusy, ConnectionReleased, DatabaseUnavailable, QueryTimeout
from tests.conftest import Database, until

PID = "SELECT pg_backend_pid()"


async def test_hooks_in_order(make_scope: Any) -> None:
    """on_connect once for a connection, on_acquire before and on_release after each lease, on that connection."""
    seen: list[tuple[str, int]] = []

    def hook(name: str) -> Any:
        async def remember(db: Any) -> None:
            seen.append((name, await db.fetchval(PID)))

        return remember

    hooks = {name: hook(name) for name in ("on_connect", "on_acquire", "on_release")}
    async with make_scope(maxsize=1, **hooks) as scope:
        pid = seen[0][1]
        del seen[1:]
        for _ in range(2):
            async with scope.acquire() as db:
                assert await db.fetchval(PID) == pid
            await until(lambda: scope.stats().idle)
        assert seen == [("on_connect", pid), *[("on_acquire", pid), ("on_release", pid)] * 2]


@pytest.mark.parametrize("error", [ValueError("no"), psycopg2.OperationalError("no"), QueryTimeout("no")])
async def test_on_connect_that_raises(make_scope: Any, database: Database, error: Exception) -> None:
    """on_connect that raises closes the connection, and start-up fails with the reason (P12)."""

    async def on_connect(db: Any) -> None:
        await db.execute("SELECT 1")
        raise error

    with pytest.raises(DatabaseUnavailable, match="no"):
        async with make_scope(on_connect=on_connect):
            pass


async def test_on_connect_that_recovers(make_scope: Any, database: Database) -> None:
    """While on_connect raises nobody is served; afterwards everybody is, and no connection was left (P12)."""
    fail = True

    async def on_connect(db: Any) -> None:
        if fail:
            raise QueryTimeout("not yet")

    settings = {"connect_at_start": False, "breaker_failures": 2, "breaker_reset": 0.05}
    async with make_scope(on_connect=on_connect, **settings) as scope:
        with pytest.raises(DatabaseUnavailable, match="not yet"):
            await scope.fetchval("SELECT 1")
        await until(lambda: not database.backends())
        fail = False
        await until(lambda: scope.stats().breaker == "closed")
        assert await scope.fetchval("SELECT 1") == 1


async def test_on_acquire_that_raises(make_scope: Any) -> None:
    """on_acquire that raises closes the connection; the borrower gets the error."""
    calls = 0

    async def on_acquire(db: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await db.execute("SET app.tenant = 'half done'")
            raise LookupError("which tenant?")

    async with make_scope(maxsize=1, on_acquire=on_acquire) as scope:
        with pytest.raises(LookupError):
            await scope.fetchval("SELECT 1")
        assert scope.stats().in_use == 0
        assert not await scope.fetchval("SELECT current_setting('app.tenant', true)")


async def test_on_acquire_comes_first(make_scope: Any) -> None:
    """No statement of another task runs before on_acquire has done its work, such as setting the tenant."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def on_acquire(db: Any) -> None:
        inside.set()
        await go_on.wait()
        await db.execute("SET app.tenant = '1'")

    async with make_scope(maxsize=1, on_acquire=on_acquire) as scope:
        db = ScopedConnection(scope._open_pool())
        first = asyncio.ensure_future(db.fetchval("SELECT current_setting('app.tenant')"))
        await inside.wait()
        with pytest.raises(ConnectionBusy):
            await db.fetchval("SELECT current_setting('app.tenant', true)")
        go_on.set()
        assert await first == "1"
        db._end("the test")


async def test_on_release_that_raises(make_scope: Any) -> None:
    """on_release that raises closes the connection; nobody else gets it."""

    async def on_release(db: Any) -> None:
        raise LookupError

    async with make_scope(maxsize=1, on_release=on_release) as scope:
        first = await scope.fetchval(PID)
        assert await scope.fetchval(PID) != first


async def test_a_hook_that_releases(make_scope: Any) -> None:
    """release() inside a hook does not give the connection to two users."""

    async def release(db: Any) -> None:
        await db.execute("SELECT 1")
        db.release()
        await asyncio.sleep(0.01)

    async with make_scope(maxsize=2, minsize=2, on_connect=release, on_release=release) as scope:
        for _ in range(2):
            async with scope.acquire() as one, scope.acquire() as two:
                assert await one.fetchval(PID) != await two.fetchval(PID)
            await until(lambda: scope.stats().repairing == 0)
            assert scope._run.pool.gate.violations() == []


async def test_a_hook_that_keeps_its_connection(make_scope: Any) -> None:
    """What a hook was given is of no use after it."""
    kept: list[Any] = []

    async def on_connect(db: Any) -> None:
        kept.append(db)

    async with make_scope(on_connect=on_connect):
        with pytest.raises(ConnectionReleased):
            await kept[0].execute("SELECT 1")


async def test_on_acquire_that_keeps_its_connection(make_scope: Any) -> None:
    """What on_acquire was given is of no use after it either: the borrower has the connection then."""
    kept: list[Any] = []

    async def on_acquire(db: Any) -> None:
        kept.append(db)

    async with make_scope(on_acquire=on_acquire) as scope, scope.acquire() as db:
        with pytest.raises(ConnectionReleased):
            await kept[0].execute("SELECT 1")
        assert await db.fetchval("SELECT 1") == 1
