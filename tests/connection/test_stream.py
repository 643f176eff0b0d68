"""stream(): a large result in batches, from a cursor on the server."""

# ruff: noqa: PT012 - an error that leaves a block is the story here

from __future__ import annotations

import asyncio
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql

from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.errors import ConnectionBusy, ConnectionReleased, DatabaseUnavailable, QueryTimeout
from tests.conftest import Database, until
from tests.kit.wire import wired

NUMBERS = "SELECT n FROM generate_series(1, %s) n"


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 21, 1000])
async def test_order_and_batches(make_scope: Any, database: Database, count: int) -> None:
    """Every row comes once and in order, seven at a time."""
    with wired(database) as wire:
        async with make_scope(wire.dsn) as scope, scope.acquire() as db:
            await db.acquire()
            wire.queries.clear()
            assert [n async for (n,) in db.stream(NUMBERS, (count,), size=7)] == list(range(1, count + 1))
            assert sum(query.startswith("FETCH") for query in wire.queries) == count // 7 + 1
            assert not db.in_transaction
            assert await db.fetchval("SELECT 1") == 1


NAME = sql.Identifier("generate_series")


@pytest.mark.parametrize(
    ("statement", "params"),
    [
        (sql.SQL("SELECT n FROM {}(1, 5) n").format(NAME), None),
        (sql.SQL("SELECT n FROM {}(1, %s) n").format(NAME), (5,)),
        (sql.SQL("SELECT n FROM {}(1, %(top)s) n WHERE '%%' = {}").format(NAME, sql.Literal("%%")), {"top": 5}),
        (sql.SQL("SELECT n FROM generate_series(1, 5) n"), None),
        (b"SELECT n FROM generate_series(1, 5) n", None),
        ("SELECT n FROM generate_series(1, %s) n WHERE 'ä' <> 'b'".encode(), (5,)),
    ],
)
async def test_what_fetch_takes(make_scope: Any, statement: Any, params: Any) -> None:
    """Objects of psycopg2.sql and bytes are statements here as well."""
    async with make_scope() as scope, scope.acquire() as db:
        assert [n async for (n,) in db.stream(statement, params, size=2)] == [1, 2, 3, 4, 5]
        assert [n async for (n,) in db.stream(statement, params, size=2)] == [
            n for (n,) in await db.fetch(statement, params)
        ]
        async with db.transaction() as tx:
            assert len([n async for (n,) in tx.stream(statement, params)]) == 5
        with pytest.raises(TypeError, match="psycopg2"):
            await anext(db.stream(5))
        assert not db.in_transaction


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "10", None])
async def test_a_wrong_size(make_scope: Any, size: Any) -> None:
    """The size is a whole number of at least one."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(ValueError, match="whole number"):
            db.stream("SELECT 1", size=size)


async def test_rows(make_scope: Any) -> None:
    """A row is what the pool's rows are."""
    async with make_scope(rows="dict") as scope, scope.acquire() as db:
        assert [row async for row in db.stream(NUMBERS, (2,))] == [{"n": 1}, {"n": 2}]


async def _with_cursor(db: Any) -> None:
    async with db.cursor() as cursor:
        await cursor.execute("INSERT INTO things VALUES (1)")


async def _with_transaction(db: Any) -> None:
    async with db.transaction(isolation="serializable") as tx:
        await tx.execute("INSERT INTO things VALUES (1)")


async def _with_stream(db: Any) -> None:
    assert [n async for (n,) in db.stream(NUMBERS, (3,))] == [1, 2, 3]
    await db.execute("INSERT INTO things VALUES (1)")


async def _with_statement(db: Any) -> None:
    await db.execute("INSERT INTO things VALUES (1)")


async def _with_many(db: Any) -> None:
    await db.executemany("INSERT INTO things VALUES (%s)", [(1,)])


AFTER = {
    "a statement": _with_statement,
    "many": _with_many,
    "a cursor": _with_cursor,
    "a transaction": _with_transaction,
    "another stream": _with_stream,
}


@pytest.mark.parametrize("then", [*AFTER, "a release"])
async def test_break(make_scope: Any, database: Database, then: str) -> None:
    """After a break out of the loop whatever comes next works, and commits."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope(maxsize=1) as scope, scope.acquire() as db:
        pid = await db.fetchval("SELECT pg_backend_pid()")
        async for (n,) in db.stream(NUMBERS, (100,), size=10):
            if n == 15:
                break
        if then == "a release":
            db.release()
            await scope.execute("INSERT INTO things VALUES (1)")
        else:
            await AFTER[then](db)
            assert not db.in_transaction
        assert database.sql("SELECT n FROM things") == [(1,)]
        assert database.backends("pid") == [(pid,)]


async def test_aclose(make_scope: Any) -> None:
    """aclose() and the end of 'async with' end it now; a closed stream has no more rows."""
    async with make_scope() as scope, scope.acquire() as db:
        async with db.stream(NUMBERS, (100,), size=10) as stream:
            assert await anext(stream) == (1,)
            assert db.in_transaction
        assert not db.in_transaction
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        unused = db.stream(NUMBERS, (100,))
        await unused.aclose()
        assert [row async for row in unused] == []


async def test_another_statement_meanwhile(make_scope: Any) -> None:
    """Outside of transaction() nothing else runs while a stream is read, and the stream goes on."""
    async with make_scope() as scope, scope.acquire() as db:
        seen = []
        async for (n,) in db.stream(NUMBERS, (25,), size=10):
            seen.append(n)
            if n == 12:
                for other in (db.fetchval("SELECT 1"), db.executemany("SELECT %s", [(1,)]), _with_cursor(db)):
                    with pytest.raises(ConnectionBusy, match="stream"):
                        await other
        assert seen == list(range(1, 26))


async def test_an_error_in_the_middle(make_scope: Any) -> None:
    """An error in a later batch reaches the loop; the connection is usable and in no transaction."""
    async with make_scope() as scope, scope.acquire() as db:
        seen = []
        with pytest.raises(psycopg2.errors.DivisionByZero):
            async for (n,) in db.stream("SELECT 10 / (15 - n) FROM generate_series(1, 30) n", size=5):
                seen.append(n)
        assert len(seen) == 10
        assert not db.in_transaction
        assert await db.fetchval("SELECT 1") == 1


async def test_an_error_at_the_start(make_scope: Any) -> None:
    """A statement that cannot be declared says why and leaves no transaction."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(psycopg2.errors.UndefinedTable):
            async for _ in db.stream("SELECT 1 FROM nowhere"):
                pass
        assert not db.in_transaction
        assert await db.fetchval("SELECT 1") == 1


async def test_a_time_out_in_the_middle(make_scope: Any) -> None:
    """statement_timeout in a batch is a QueryTimeout; the connection is kept."""
    async with make_scope(statement_timeout=0.1) as scope, scope.acquire() as db:
        pid = await db.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(QueryTimeout):
            async for _ in db.stream("SELECT pg_sleep(n) FROM generate_series(0, 30) n", size=1):
                pass
        assert await db.fetchval("SELECT pg_backend_pid()") == pid
        assert not db.in_transaction


async def test_cancellation(make_scope: Any, database: Database) -> None:
    """A task cancelled in the middle of a batch leaves no statement and no transaction."""
    async with make_scope(abandon_interval=None) as scope, scope.acquire() as db:

        async def read() -> None:
            async for _ in db.stream("SELECT pg_sleep(30 * (n / 3)) FROM generate_series(1, 9) n", size=1):
                pass

        task = asyncio.ensure_future(read())
        await until(lambda: [1 for _, state in database.backends("query", "state") if state == "active"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not db.in_transaction
        assert await db.fetchval("SELECT 1") == 1
        assert ("active",) not in database.backends("state")


async def test_cancelled_twice(make_scope: Any, database: Database) -> None:
    """A second cancellation while a stream is being ended does not leave what comes next in its transaction."""
    database.sql("CREATE TABLE things (n int)")
    with wired(database) as wire:
        async with make_scope(wire.dsn) as scope, scope.acquire() as db:
            stream = db.stream(NUMBERS, (100,), size=10)
            assert await anext(stream) == (1,)
            wire.frozen = True
            ending = asyncio.ensure_future(stream.aclose())
            await until(lambda: wire.queries[-1] == "ROLLBACK")
            ending.cancel()
            await asyncio.wait([ending])
            wire.frozen = False
            await db.execute("INSERT INTO things VALUES (1)")
            assert not db.in_transaction
    assert database.sql("SELECT n FROM things") == [(1,)]


async def test_a_connection_that_dies(make_scope: Any, database: Database) -> None:
    """A connection lost between two batches is DatabaseUnavailable."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(DatabaseUnavailable):
            async for (n,) in db.stream(NUMBERS, (30,), size=10):
                if n == 10:
                    database.kill()
                    await until(lambda: db.closed)


async def test_interleaved_with_other_statements(make_scope: Any, database: Database) -> None:
    """Inside transaction() a stream and other statements share the connection."""
    database.sql("CREATE TABLE things AS SELECT n, false AS seen FROM generate_series(1, 50) n")
    async with make_scope() as scope, scope.transaction() as tx:
        async for (n,) in tx.stream("SELECT n FROM things ORDER BY n", size=7):
            await tx.execute("UPDATE things SET seen = true WHERE n = %s", (n,))
        assert await tx.fetchval("SELECT count(*) FROM things WHERE seen") == 50
        assert await tx.fetchval("SELECT count(*) FROM pg_cursors") == 0
    assert database.sql("SELECT count(*) FROM things WHERE seen") == [(50,)]


async def test_a_break_inside_a_transaction(make_scope: Any, database: Database) -> None:
    """A break inside transaction() ends neither the transaction nor what was written in it."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope() as scope, scope.transaction() as tx:
        await tx.execute("INSERT INTO things VALUES (1)")
        async for _ in tx.stream(NUMBERS, (100,), size=10):
            break
        await tx.execute("INSERT INTO things VALUES (2)")
    assert database.sql("SELECT count(*) FROM things") == [(2,)]


async def test_two_streams_inside_a_transaction(make_scope: Any) -> None:
    """Two streams in one transaction do not disturb each other."""
    async with make_scope() as scope, scope.transaction() as tx:
        first, second = tx.stream(NUMBERS, (20,), size=3), tx.stream(NUMBERS, (20,), size=4)
        assert [(await anext(first), await anext(second)) for _ in range(20)] == [((n,), (n,)) for n in range(1, 21)]


async def test_after_release(make_scope: Any, database: Database) -> None:
    """A stream that outlives its lease reads nobody else's transaction and ends nobody else's."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        stream = db.stream(NUMBERS, (100,), size=1)
        await anext(stream)
        db.release()
        async with scope.transaction() as tx:
            await tx.execute("INSERT INTO things VALUES (1)")
            with pytest.raises(ConnectionReleased):
                await anext(stream)
            await stream.aclose()
            del stream
            assert await tx.fetchval("SELECT count(*) FROM things") == 1
    assert database.sql("SELECT n FROM things") == [(1,)]


async def test_two_tasks_that_read_one_stream(make_scope: Any) -> None:
    """One is told that the connection is busy; the other misses nothing."""

    async def rest(stream: Any) -> int:
        return len([row async for row in stream])

    async with make_scope() as scope, scope.acquire() as db:
        # Slow enough that nobody finds an answer at once.
        stream = db.stream("SELECT n, pg_sleep(0.002) FROM generate_series(1, 100) n", size=10)
        await anext(stream)
        busy, read = sorted(
            await asyncio.gather(rest(stream), rest(stream), return_exceptions=True), key=lambda it: isinstance(it, int)
        )
        assert isinstance(busy, ConnectionBusy)
        assert read == 99


async def test_opened_while_a_statement_runs(make_scope: Any, database: Database) -> None:
    """A stream begun by a second task is refused, and leaves the transaction of the first alone."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as tx:
                await tx.execute("INSERT INTO things VALUES (1)")
                running = asyncio.create_task(db.fetchval("SELECT 1 FROM pg_sleep(0.05)"))
                await asyncio.sleep(0)
                with pytest.raises(ConnectionBusy):
                    await anext(db.stream(NUMBERS, (3,)))
                assert await running == 1
                await tx.execute("INSERT INTO things VALUES (2)")
                raise ZeroDivisionError
        assert await db.fetch("SELECT * FROM things") == []


async def test_opened_after_a_statement_was_abandoned(make_scope: Any, database: Database) -> None:
    """A cancellation that was caught leaves a statement behind: the stream still knows of the transaction it is in."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope() as scope, scope.acquire() as db:
        await db.execute("BEGIN")
        await db.execute("INSERT INTO things VALUES (1)")
        await db.execute("SAVEPOINT mine")
        abandoned = asyncio.create_task(db.execute("SELECT pg_sleep(10)"))
        await until(
            lambda: (
                database.backends("1")
                and database.sql("SELECT 1 FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'")
            )
        )
        abandoned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abandoned
        with pytest.raises(psycopg2.Error):  # the cancelled statement has failed the transaction
            await anext(db.stream(NUMBERS, (3,)))
        assert db.in_transaction
        await db.execute("ROLLBACK")
    assert database.sql("SELECT * FROM things") == []


async def test_closed_while_it_is_read(make_scope: Any, database: Database) -> None:
    """aclose() beside another task's batch is told so, and what comes afterwards is not in the stream's transaction."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope() as scope, scope.acquire() as db:
        stream = db.stream("SELECT n, pg_sleep(n * 0.1) FROM generate_series(0, 9) n", size=1)
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await until(lambda: db._link.busy)
        with pytest.raises(ConnectionBusy):
            await stream.aclose()
        assert (await reading)[0] == 1
        await db.execute("INSERT INTO things VALUES (1)")
        assert not db.in_transaction
    assert database.sql("SELECT n FROM things") == [(1,)]


async def test_dropped_after_its_lease(make_scope: Any, database: Database) -> None:
    """A stream that is dropped when its request has borrowed again undoes nothing of what it is doing now."""
    database.sql("CREATE TABLE things (n int)")
    async with make_scope(maxsize=1) as scope:
        db = ScopedConnection(scope._open_pool())  # as the middleware attaches one
        stream = db.stream(NUMBERS, (100,), size=1)
        await anext(stream)
        db.release()
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO things VALUES (1)")
            del stream
            await tx.execute("INSERT INTO things VALUES (2)")
        db._end("the test")
    assert database.sql("SELECT n FROM things") == [(1,), (2,)]
