"""ScopedConnection: borrowed and given back, in whatever state; and of no use to anybody afterwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.errors import ConnectionBusy, ConnectionReleased, PoolExhausted, PoolScopeError
from tests.conftest import Database, until

if TYPE_CHECKING:
    import aiohttp_poolscope as poolscope

PID = "SELECT pg_backend_pid()"


def lazy(scope: poolscope.PoolScope) -> ScopedConnection:
    """As the middleware attaches one: nothing is borrowed yet, and each release() can be followed by a borrow."""
    return ScopedConnection(scope._open_pool())


async def test_borrowed_at_first_use(make_scope: Any) -> None:
    """Nothing is borrowed before the first statement; release() gives it back and the next use borrows again."""
    async with make_scope() as scope:
        db = lazy(scope)
        assert (db.held, db.closed, scope.stats().in_use) == (False, False, 0)
        assert await db.fetchval("SELECT 1") == 1
        assert (db.held, scope.stats().in_use) == (True, 1)
        db.release()
        db.release()
        assert (db.held, scope.stats().in_use) == (False, 0)
        assert await db.fetchval("SELECT 2") == 2
        db._end("the test")
        assert db.closed


async def test_acquire_by_await_and_by_block(make_scope: Any) -> None:
    """'await' borrows until release(); a block gives back at its end, unless an outer borrow is still there."""
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        assert scope.stats().in_use == 1
        db.release()
        assert scope.stats().in_use == 0
        db = lazy(scope)
        async with db.acquire() as same:
            assert same is db
            async with db.acquire():
                pass
            assert db.held
        assert not db.held
        await db.acquire()
        async with db.acquire():
            pass
        assert db.held
        db._end("the test")


async def test_scope_acquire_is_for_once(make_scope: Any) -> None:
    """A connection from scope.acquire() is finished after its release."""
    async with make_scope() as scope:
        async with scope.acquire() as db:
            pass
        with pytest.raises(ConnectionReleased, match=r"after its release\(\)"):
            await db.fetchval("SELECT 1")
        with pytest.raises(ConnectionReleased):
            await db.acquire()
        assert db.closed


async def test_two_tasks_borrow_once(make_scope: Any) -> None:
    """Two tasks of one request that use it first borrow one connection, and the second is told (C12)."""
    async with make_scope(maxsize=2) as scope:
        async with scope.acquire(), scope.acquire():
            db = lazy(scope)
            first = asyncio.ensure_future(db.fetchval("SELECT 1"))
            await until(lambda: scope.stats().waiting == 1)
            with pytest.raises(ConnectionBusy, match="two tasks"):
                await db.fetchval("SELECT 2")
            assert scope.stats().waiting == 1
        assert await first == 1
        assert scope.stats().in_use == 1
        db._end("the test")


async def test_a_borrow_that_failed_may_be_tried_again(make_scope: Any) -> None:
    """A request that was refused a connection once can ask for it again: nobody else is borrowing then."""
    async with make_scope(maxsize=1) as scope:
        db = lazy(scope)
        async with scope.acquire():
            for _ in range(2):
                with pytest.raises(PoolExhausted):
                    await db.acquire(timeout=0)
        assert await db.fetchval("SELECT 1") == 1
        db._end("the test")


async def test_raw(make_scope: Any) -> None:
    """db.raw is aiopg's connection, once borrowed."""
    async with make_scope() as scope:
        db = lazy(scope)
        with pytest.raises(PoolScopeError, match="no connection is borrowed"):
            _ = db.raw
        await db.acquire()
        async with db.raw.cursor() as cursor:
            await cursor.execute("SELECT 5")
            assert await cursor.fetchone() == (5,)
        db._end("the test")
        with pytest.raises(ConnectionReleased):
            _ = db.raw


async def test_repr(make_scope: Any) -> None:
    """The repr says whose it is and where it is in its life."""
    async with make_scope(key="reports") as scope:
        db = lazy(scope)
        assert repr(db) == "<ScopedConnection 'reports' of scope.acquire(): not borrowed>"
        await db.acquire()
        assert "borrowed" in repr(db)
        db._end("the end of its handler")
        assert "ended: the end of its handler" in repr(db)


async def test_ended_while_it_waits(make_scope: Any) -> None:
    """A borrow whose request ends while it waits gives its connection back at once."""
    async with make_scope(maxsize=1) as scope:
        db = lazy(scope)
        async with scope.acquire():
            waiting = asyncio.ensure_future(db.fetchval("SELECT 1"))
            await until(lambda: scope.stats().waiting)
            db._end("the end of its handler")
        with pytest.raises(ConnectionReleased):
            await waiting
        assert scope.stats().in_use == 0


async def test_use_after_release(make_scope: Any, database: Database) -> None:
    """Whatever is left of an ended lease fails, and the next user's transaction is untouched (C13)."""
    database.sql("CREATE TABLE things (n int)")
    insert = "INSERT INTO things VALUES (666)"
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        cursor = await db.cursor()
        await cursor.execute("SELECT * FROM generate_series(1, 3)")
        db.release()
        async with scope.transaction() as tx:
            await tx.execute("INSERT INTO things VALUES (1)")
            for use in (
                lambda: db.execute(insert),
                lambda: db.executemany(insert, [()]),
                lambda: db.transaction().__aenter__(),
                lambda: anext(db.stream("SELECT 1")),
                lambda: cursor.execute(insert),
                cursor.fetchone,
                cursor.fetchall,
                lambda: db.cursor().__aenter__(),
            ):
                with pytest.raises(ConnectionReleased):
                    await use()
            cursor.close()
            assert cursor.closed
            assert await tx.fetchval("SELECT count(*) FROM things") == 1
    assert database.sql("SELECT n FROM things") == [(1,)]


async def test_nothing_of_one_lease_reaches_the_next(make_scope: Any, database: Database) -> None:
    """Released and borrowed again in one request, old cursors, streams and transactions are still of no use (C13)."""
    database.sql("CREATE TABLE things (n int)")
    insert = "INSERT INTO things VALUES (666)"
    async with make_scope(maxsize=1) as scope:
        db = lazy(scope)
        cursor = await db.cursor()
        await cursor.execute("SELECT * FROM generate_series(1, 3)")
        stream = db.stream("SELECT * FROM generate_series(1, 30)", size=1)
        await anext(stream)
        db.release()
        tx = await db.transaction().__aenter__()
        db._give_back()
        async with db.transaction() as new:
            await new.execute("INSERT INTO things VALUES (1)")
            with pytest.raises(ConnectionReleased):
                await cursor.execute(insert)
            with pytest.raises(ConnectionReleased):
                await cursor.fetchone()
            with pytest.raises(ConnectionReleased):
                await tx.execute(insert)
            with pytest.raises(ConnectionReleased):
                await tx.__aexit__(None, None, None)
            with pytest.raises(ConnectionReleased):
                await anext(stream)
            assert await new.fetchval("SELECT count(*) FROM things") == 1
        db._end("the test")
    assert database.sql("SELECT n FROM things") == [(1,)]


async def test_a_statement_left_behind(make_scope: Any, database: Database) -> None:
    """A stray task's statement fails when its request ends; the next user gets another connection (C13)."""
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        stray = asyncio.ensure_future(db.fetchval("SELECT pg_sleep(30)"))
        await until(lambda: ("active",) in database.backends("state"))
        db.release()
        async with scope.acquire() as other:
            assert (scope.stats().opened, scope.stats().closed) == (2, 1)
            with pytest.raises(ConnectionReleased, match="left behind"):
                await stray
            stray.cancel()
            assert await other.fetchval("SELECT 1") == 1
        assert scope.stats().abandoned == 1


async def test_cancelling_a_stray_task(make_scope: Any) -> None:
    """Cancelling a task that waits on an ended lease closes nobody's connection (C13)."""
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        pid = await db.fetchval(PID)
        started = asyncio.Event()

        async def stray() -> None:
            started.set()
            try:
                await asyncio.sleep(30)
            finally:
                await db.execute("SELECT 1")

        task = asyncio.ensure_future(stray())
        await started.wait()
        db.release()
        async with scope.acquire() as other:
            task.cancel()
            with pytest.raises(ConnectionReleased):
                await task
            assert await other.fetchval(PID) == pid


async def in_transaction(db: Any) -> None:
    await db.execute("BEGIN")
    await db.execute("INSERT INTO things VALUES (1)")


async def failed(db: Any) -> None:
    await in_transaction(db)
    with pytest.raises(psycopg2.Error):
        await db.execute("SELECT 1/0")


async def active(db: Any) -> None:
    await in_transaction(db)
    statement = asyncio.ensure_future(db.execute("SELECT pg_sleep(30)"))
    await until(lambda: db._link.running_since)
    statement.cancel()
    await asyncio.wait([statement])


@pytest.mark.parametrize("leave", [in_transaction, failed, active])
async def test_a_dirty_return(make_scope: Any, database: Database, leave: Any) -> None:
    """A connection returned in a transaction, failed or not, or with a statement running, is rolled back and kept."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            await leave(db)
        async with scope.acquire() as db:
            assert not db.in_transaction
            assert await db.fetchval(PID) == pid
            assert await db.fetchval("SELECT count(*) FROM things") == 0
        assert scope.stats().repaired == 1
        assert scope.stats().closed == 0


LEFTOVERS = {
    "SET": ("SET application_name = 'tenant 1'", "SELECT current_setting('application_name') = 'tenant 1'"),
    "custom": ("SET app.tenant = '1'", "SELECT coalesce(current_setting('app.tenant', true), '') = '1'"),
    "role": ("SET ROLE pg_monitor", "SELECT current_user = 'pg_monitor'"),
    "temp table": ("CREATE TEMP TABLE mine (n int)", "SELECT to_regclass('pg_temp.mine') IS NOT NULL"),
    "lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    ),
    "prepared": ("PREPARE mine AS SELECT 1", "SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'mine')"),
    "listen": ("LISTEN mine", "SELECT EXISTS (SELECT FROM pg_listening_channels())"),
    "hold": (
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "SELECT EXISTS (SELECT FROM pg_cursors WHERE name = 'mine')",
    ),
}


@pytest.mark.parametrize("kind", LEFTOVERS)
@pytest.mark.parametrize("reset", ["rollback", "full"])
async def test_reset(make_scope: Any, kind: str, reset: str) -> None:
    """reset="full" leaves nothing of the session to the next user; "rollback" leaves it all (P9)."""
    leave, look = LEFTOVERS[kind]
    async with make_scope(maxsize=1, reset=reset) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            await db.execute(leave)
            assert await db.fetchval(look)
        async with scope.acquire() as db:
            assert await db.fetchval(look) is (reset == "rollback")
            assert await db.fetchval(PID) == pid


async def test_a_full_reset_keeps_the_settings(make_scope: Any) -> None:
    """What came with options= survives DISCARD ALL, and on_connect is run again (P9)."""

    async def on_connect(db: Any) -> None:
        await db.execute("SET app.ready = 'yes'")

    settings = {"reset": "full", "on_connect": on_connect, "options": "-c work_mem=5MB", "statement_timeout": 12.0}
    async with make_scope(maxsize=1, application_name="mine", **settings) as scope:
        for _ in range(2):
            async with scope.acquire() as db:
                found = [await db.fetchval("SELECT current_setting(%s)", (name,)) for name in SHOWN]
                assert found == ["yes", "5MB", "12s", "1s", "mine"]
                await db.execute("SET app.ready = 'no'; SET work_mem = '9MB'; SET statement_timeout = 0")


SHOWN = ("app.ready", "work_mem", "statement_timeout", "client_connection_check_interval", "application_name")


async def test_reset_by_sql_of_ones_own(make_scope: Any) -> None:
    """reset= can be SQL; if that fails the connection is closed."""
    async with make_scope(maxsize=1, reset="SELECT set_config('app.n', '0', false)") as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            await db.execute("SET app.n = '5'")
        async with scope.acquire() as db:
            assert await db.fetchrow("SELECT pg_backend_pid(), current_setting('app.n')") == (pid, "0")
    async with make_scope(maxsize=1, reset="SELECT 1/0", minsize=0, connect_at_start=False) as scope:
        first = await scope.fetchval(PID)
        assert await scope.fetchval(PID) != first
