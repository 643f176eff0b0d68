"""Every way to run a statement, and what it raises when it is ended from outside."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from aiohttp_poolscope.errors import ConnectionBusy, DatabaseUnavailable, PoolScopeError, QueryTimeout
from tests.conftest import BUSY, Database, until
from tests.kit.wire import wired

PID = "SELECT pg_backend_pid()"


async def test_fetch(make_scope: Any) -> None:
    """All rows, or an empty list."""
    async with make_scope() as scope, scope.acquire() as db:
        assert await db.fetch("SELECT * FROM generate_series(1, %s)", (3,)) == [(1,), (2,), (3,)]
        assert await db.fetch("SELECT 1 WHERE false") == []


async def test_fetchrow(make_scope: Any) -> None:
    """The first row, or None."""
    async with make_scope() as scope, scope.acquire() as db:
        assert await db.fetchrow("SELECT n, n * 2 FROM generate_series(1, 3) n") == (1, 2)
        assert await db.fetchrow("SELECT 1 WHERE false") is None


@pytest.mark.parametrize("rows", ["tuple", "dict", "namedtuple", psycopg2.extras.DictCursor])
async def test_fetchval(make_scope: Any, rows: Any) -> None:
    """The first column of the first row, whatever a row is; None for no row and for NULL."""
    async with make_scope(rows=rows) as scope, scope.acquire() as db:
        assert await db.fetchval("SELECT %(b)s AS x, 2 AS y", {"b": 7}) == 7
        assert await db.fetchval("SELECT 1 WHERE false") is None
        assert await db.fetchval("SELECT NULL::int") is None


class Loud(psycopg2.extras.RealDictCursor):
    """A class of somebody's own."""


@pytest.mark.parametrize(
    "rows",
    ["tuple", "dict", "namedtuple", psycopg2.extras.DictCursor, Loud],
)
async def test_fetchval_of_columns_with_one_name(make_scope: Any, rows: Any) -> None:
    """It is the first column, though a dict knows only the last of them; other rows are read as before afterwards."""
    async with make_scope(rows=rows) as scope, scope.acquire() as db:
        for transaction in (db, scope):
            assert await transaction.fetchval("SELECT 1, 2") == 1
            assert await transaction.fetchval("SELECT 1, 2 FROM generate_series(1, 3)") == 1
            assert await transaction.fetchval("SELECT 7 AS x, NULL AS x") == 7
            assert await transaction.fetchval("SELECT") is None
        row = await db.fetchrow("SELECT 1 AS x, 2 AS y")
        assert type(row) is {"tuple": tuple, "dict": psycopg2.extras.RealDictRow}.get(rows, type(row))
        assert tuple(row.values() if isinstance(row, dict) else row) == (1, 2)


async def test_a_statement_too_large_for_the_protocol(
    make_scope: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server closes the connection: no DatabaseUnavailable, which would say "try again"; nothing is in doubt."""
    monkeypatch.setattr("aiohttp_poolscope.driver.outcome.LARGEST", 1000)
    sleeping = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    async with make_scope(maxsize=1) as scope:
        running = asyncio.ensure_future(scope.execute("SELECT pg_sleep(60), %s", ("x" * 2000,)))
        await until(lambda: database.sql(sleeping))
        database.kill()
        with pytest.raises(PoolScopeError, match=r"2,0\d\d bytes.*1,000 at most") as raised:
            await running
        assert type(raised.value) is PoolScopeError
        assert (raised.value.status, raised.value.retry_after) == (500, None)


async def test_execute(make_scope: Any, database: Database) -> None:
    """The command status."""
    database.sql("CREATE TABLE things (id int)")
    async with make_scope() as scope, scope.acquire() as db:
        assert await db.execute("INSERT INTO things SELECT * FROM generate_series(1, 5)") == "INSERT 0 5"
        assert await db.execute("UPDATE things SET id = id WHERE id < %s", (3,)) == "UPDATE 2"
        assert await db.execute("SELECT * FROM things") == "SELECT 5"


async def test_percent_signs(make_scope: Any) -> None:
    """Without parameters a percent sign is one; with them it is doubled, as in psycopg2."""
    async with make_scope() as scope, scope.acquire() as db:
        assert await db.fetchval("SELECT '50%'") == "50%"
        assert await db.fetchval("SELECT '50%%' || %s", ("!",)) == "50%!"


async def test_errors_are_psycopg2s(make_scope: Any) -> None:
    """An SQL error reaches the caller as psycopg2 raised it; the connection is usable and the same."""
    async with make_scope() as scope, scope.acquire() as db:
        pid = await db.fetchval(PID)
        with pytest.raises(psycopg2.errors.DivisionByZero) as caught:
            await db.fetchval("SELECT 1/0")
        assert caught.value.pgcode == "22012"
        with pytest.raises(TypeError):
            await db.fetchval("SELECT %s", (1, 2))
        with pytest.raises(psycopg2.ProgrammingError):
            await db.fetch("UPDATE pg_class SET relname = relname WHERE false")
        assert await db.fetchval(PID) == pid


async def test_executemany(make_scope: Any, database: Database) -> None:
    """Each of many parameters is written, in order, from any iterable and over many batches."""
    database.sql("CREATE TABLE things (id serial, n int)")
    async with make_scope() as scope, scope.acquire() as db:
        await db.executemany("INSERT INTO things (n) VALUES (%s)", ((n,) for n in range(12_345)))
        await db.executemany("INSERT INTO things (n) VALUES (%(n)s)", [])
        assert not db.in_transaction
    assert database.sql("SELECT count(*), sum(n) FROM things") == [(12_345, sum(range(12_345)))]
    assert database.sql("SELECT count(*) FROM things WHERE n + 1 <> id") == [(0,)]


async def test_executemany_is_all_or_nothing(make_scope: Any, database: Database) -> None:
    """If one of many fails none is written, and the connection goes on."""
    database.sql("CREATE TABLE things (n int PRIMARY KEY)")
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(psycopg2.errors.UniqueViolation):
            await db.executemany("INSERT INTO things VALUES (%s)", [(n,) for n in range(250)] + [(7,)])
        with pytest.raises(ZeroDivisionError):
            await db.executemany("INSERT INTO things VALUES (%s)", ((n // (200 - n) * 1000 + n,) for n in range(300)))
        assert await db.fetchval("SELECT count(*) FROM things") == 0


async def test_executemany_with_a_comment_at_the_end(make_scope: Any, database: Database) -> None:
    """A statement that ends in a line comment does not swallow the one behind it."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope() as scope, scope.acquire() as db:
        await db.executemany("INSERT INTO things VALUES (%s) -- one thing", [(n,) for n in range(5)])
    assert database.sql("SELECT count(*) FROM things") == [(5,)]


async def test_executemany_inside_a_transaction(make_scope: Any, database: Database) -> None:
    """Inside a transaction it is a savepoint of its own."""
    database.sql("CREATE TABLE things (n int PRIMARY KEY)")
    async with make_scope() as scope, scope.transaction() as tx:
        await tx.execute("INSERT INTO things VALUES (100)")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            await tx.executemany("INSERT INTO things VALUES (%s)", [(1,), (100,)])
    assert database.sql("SELECT n FROM things") == [(100,)]


async def by_statement_timeout(db: Any, database: Database) -> Any:
    await db.execute("SET statement_timeout = 30")
    try:
        return await db.fetchval("SELECT pg_sleep(30)")
    finally:
        await db.execute("SET statement_timeout = 0")


async def by_operator(db: Any, database: Database) -> Any:
    pid = db.raw.raw.get_backend_pid()
    statement = asyncio.ensure_future(db.fetchval("SELECT pg_sleep(30)"))
    await until(lambda: database.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'", pid))
    database.sql("SELECT pg_cancel_backend(%s)", pid)
    return await statement


async def by_timeout(db: Any, database: Database) -> Any:
    return await db.fetchval("SELECT pg_sleep(30)", timeout=0.03)


ENDINGS = pytest.mark.parametrize("end", [by_statement_timeout, by_operator, by_timeout])


@ENDINGS
async def test_ended_by_the_server(make_scope: Any, database: Database, end: Any) -> None:
    """A statement that the server cancels is a QueryTimeout at the await; the connection is kept (C1)."""
    async with make_scope() as scope, scope.acquire() as db:
        pid = await db.fetchval(PID)
        with pytest.raises(QueryTimeout):
            await end(db, database)
        assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]
        assert await db.fetchval(PID) == pid


@ENDINGS
async def test_ended_inside_asyncio_timeout(make_scope: Any, database: Database, end: Any) -> None:
    """asyncio.timeout around it does not mistake it for its own cancellation (C1)."""
    async with make_scope() as scope, scope.acquire() as db:
        await db.acquire()
        with pytest.raises(QueryTimeout):
            async with asyncio.timeout(20):
                await end(db, database)
        assert await db.fetchval("SELECT 1") == 1


@ENDINGS
async def test_ended_inside_a_task_group(make_scope: Any, database: Database, end: Any) -> None:
    """A TaskGroup reports it and does not drop it as a cancelled child (C1)."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(end(db, database))
        assert [type(error) for error in caught.value.exceptions] == [QueryTimeout]
        assert await db.fetchval("SELECT 1") == 1


@ENDINGS
async def test_ended_inside_gather(make_scope: Any, database: Database, end: Any) -> None:
    """gather() gives the error, and not a cancellation (C1)."""
    async with make_scope(maxsize=2) as scope, scope.acquire() as db:
        results = await asyncio.gather(end(db, database), scope.fetchval("SELECT 1"), return_exceptions=True)
        assert isinstance(results[0], QueryTimeout)
        assert results[1] == 1


@pytest.mark.parametrize("pgbouncer", [False, True])
async def test_the_pools_statement_timeout(make_scope: Any, pgbouncer: bool) -> None:
    """The pool's statement_timeout holds for every statement, through PgBouncer as well, and keeps the connection."""
    async with make_scope(statement_timeout=0.1, pgbouncer=pgbouncer) as scope, scope.acquire() as db:
        pid = await db.fetchval(PID)
        with pytest.raises(QueryTimeout):
            await db.execute("SELECT pg_sleep(30)")
        assert await db.fetchval(PID) == pid


async def test_a_timeout_that_was_not_needed(make_scope: Any) -> None:
    """A statement in time is not touched by its timeout, nor are those after it."""
    async with make_scope() as scope, scope.acquire() as db:
        assert await db.fetchval("SELECT 1", timeout=0.2) == 1
        assert await db.fetchval("SELECT 2 FROM pg_sleep(0.4)") == 2


async def test_a_server_that_does_not_answer(make_scope: Any, database: Database) -> None:
    """When not even the cancel is answered, the timeout ends a quarter of a second late and closes the connection."""
    with wired(database) as wire:
        async with make_scope(wire.dsn) as scope:
            async with scope.acquire() as db:
                pid = await db.fetchval(PID)
                wire.frozen = wire.deaf_to_cancel = True
                begun = time.monotonic()
                with pytest.raises(QueryTimeout):
                    await db.fetchval("SELECT 1", timeout=0.05)
                assert time.monotonic() - begun < BUSY
                assert db.closed
            wire.frozen = wire.deaf_to_cancel = False
            assert await scope.fetchval(PID) != pid


async def test_a_silent_network(make_scope: Any, database: Database) -> None:
    """Without a per-call timeout the housekeeper ends what a silent network holds, a second after statement_timeout."""
    with wired(database) as wire:
        async with make_scope(wire.dsn, statement_timeout=0.1) as scope, scope.acquire() as db:
            await db.acquire()
            wire.frozen = True
            async with asyncio.timeout(10):
                with pytest.raises(QueryTimeout, match="nor since"):
                    await db.fetchval("SELECT 1")
            wire.frozen = False


async def test_a_real_cancellation_stays_one(make_scope: Any, database: Database) -> None:
    """A cancelled task is cancelled; the connection is usable at once and the statement gone from the server."""
    async with make_scope(abandon_interval=None) as scope, scope.acquire() as db:
        pid = await db.fetchval(PID)
        statement = asyncio.ensure_future(db.fetchval("SELECT pg_sleep(30)"))
        await until(lambda: ("active",) in database.backends("state"))
        statement.cancel()
        with pytest.raises(asyncio.CancelledError):
            await statement
        assert statement.cancelled()
        assert await db.fetchval(PID) == pid
        assert ("active",) not in database.backends("state")


async def test_asyncio_timeout_is_a_timeout(make_scope: Any) -> None:
    """asyncio.timeout around a statement raises TimeoutError, and the next statement works on the same connection."""
    async with make_scope() as scope, scope.acquire() as db:
        pid = await db.fetchval(PID)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await db.fetchval("SELECT pg_sleep(30)")
        assert await db.fetchval(PID) == pid


async def test_two_tasks_on_one_connection(make_scope: Any) -> None:
    """The second task gets ConnectionBusy, and the first loses no row (C12)."""
    async with make_scope() as scope, scope.acquire() as db:
        first = asyncio.ensure_future(db.fetch("SELECT n, pg_sleep(0.0001) FROM generate_series(1, 200) n"))
        await until(lambda: db._link.running_since)
        for attempt in (db.fetchval("SELECT 1"), db.execute("SELECT 1"), db.executemany("SELECT %s", [(1,)])):
            with pytest.raises(ConnectionBusy):
                await attempt
        assert [row[0] for row in await first] == list(range(1, 201))


async def test_a_connection_that_dies(make_scope: Any, database: Database) -> None:
    """A backend killed between two statements is DatabaseUnavailable, whatever the connection did before."""
    async with make_scope() as scope:
        for before in (None, "SELECT 1", "SELECT * FROM generate_series(1, 2)"):
            async with scope.acquire() as db:
                if before:
                    await db.fetch(before)
                database.kill()
                await until(lambda: db.closed)
                with pytest.raises(DatabaseUnavailable):
                    await db.fetchval("SELECT 1")
                with pytest.raises(DatabaseUnavailable):
                    await db.executemany("SELECT %s", [(1,)])


@pytest.mark.parametrize("size", [3_900, 4_100, 20_000_000])
async def test_a_statement_of_any_size_is_sent(make_scope: Any, size: int) -> None:
    """What the socket does not take in one piece goes out as it becomes writable."""
    async with make_scope(statement_timeout=10) as scope, scope.acquire() as db:
        assert await db.fetchval("SELECT length(%s)", ("x" * size,)) == size


WRONG_TIMEOUTS = [
    ("5", TypeError),
    (True, TypeError),
    (-1, ValueError),
    (float("nan"), ValueError),
    (float("inf"), ValueError),
]


@pytest.mark.parametrize(("timeout", "error"), WRONG_TIMEOUTS)
async def test_a_timeout_that_is_none(
    make_scope: Any, database: Database, timeout: Any, error: type[Exception]
) -> None:
    """What is no number of seconds is refused before anything is sent, and the connection goes on."""
    database.sql("CREATE TABLE t (a int)")
    insert = "INSERT INTO t VALUES (1)"
    async with make_scope(maxsize=1) as scope, scope.acquire() as db:
        pid = await db.fetchval(PID)
        async with db.cursor() as cursor:
            calls = (
                lambda: db.execute(insert, timeout=timeout),
                lambda: db.fetch(insert, timeout=timeout),
                lambda: db.executemany("INSERT INTO t VALUES (%s)", [(1,)], timeout=timeout),
                lambda: cursor.execute(insert, timeout=timeout),
                lambda: cursor.callproc("now", timeout=timeout),
            )
            for call in calls:
                with pytest.raises((TypeError, ValueError), match="must be a number of seconds"):
                    await call()
        assert await db.fetchval(PID) == pid
        assert database.sql("SELECT count(*) FROM t") == [(0,)]
