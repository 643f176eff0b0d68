"""What is said of a statement whose connection is lost, or whose time is over, while it is in flight."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from psycopg2 import sql

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import (
    ConnectionReleased,
    DatabaseUnavailable,
    OutcomeUnknown,
    QueryTimeout,
    TransactionFailed,
    logs,
)
from aiohttp_poolscope.driver.link import CANCEL_MARGIN
from aiohttp_poolscope.web import responses
from tests.conftest import until
from tests.kit.wire import Wire, wired_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.conftest import Database, Serve

    Lose = Callable[..., None]
    Work = Callable[[poolscope.ScopedConnection, Lose], Awaitable[object]]

UNKNOWN, AWAY = OutcomeUnknown, DatabaseUnavailable
INSERT = "INSERT INTO t VALUES (1)"
DEAF = "DO $$ BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN {}; END $$"
EMPTY = 49
"""Bytes of the answer to a FETCH that finds nothing, with one column called put, and one of what comes next."""

WITH_INSERT = "WITH made AS (INSERT INTO t VALUES (1) RETURNING n) SELECT n FROM made"


@pytest.fixture
def wire(dsn: str, database: Database) -> Iterator[Wire]:
    """A way to the database that loses answers. There is a table, a function that writes, and a procedure."""
    database.sql(
        "CREATE TABLE t (n int);"
        "CREATE FUNCTION put() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING n';"
        "CREATE PROCEDURE put_too() LANGUAGE sql AS 'INSERT INTO t VALUES (1)'"
    )
    with wired_to(dsn) as found:
        yield found


def statement(text: Any, method: str = "execute") -> Work:
    async def work(db: poolscope.ScopedConnection, lose: Lose) -> None:
        lose()
        await getattr(db, method)(text)

    return work


async def by_a_cursor(db: poolscope.ScopedConnection, lose: Lose) -> None:
    async with db.cursor() as cursor:
        lose()
        await cursor.execute(INSERT)


async def many(db: poolscope.ScopedConnection, lose: Lose) -> None:
    # Its answers: to BEGIN, to the batch, to COMMIT. The last one is lost.
    tx = db.transaction()
    async with tx:
        await tx.executemany("INSERT INTO t VALUES (%s)", [(1,)])
        lose()


async def commit(db: poolscope.ScopedConnection, lose: Lose) -> None:
    async with db.transaction() as tx:
        await tx.execute(INSERT)
        lose()


async def commit_by_hand(db: poolscope.ScopedConnection, lose: Lose) -> None:
    await db.execute("BEGIN")
    await db.execute(INSERT)
    lose()
    await db.execute("COMMIT")


async def commit_composed(db: poolscope.ScopedConnection, lose: Lose) -> None:
    await db.execute("BEGIN")
    await db.execute(INSERT)
    lose()
    await db.execute(sql.SQL("COMMIT"))  # type: ignore[arg-type]


async def composed_inside(db: poolscope.ScopedConnection, lose: Lose) -> None:
    async with db.transaction() as tx:
        lose()
        await tx.execute(COMPOSED)  # type: ignore[arg-type]


async def inside(db: poolscope.ScopedConnection, lose: Lose) -> None:
    async with db.transaction() as tx:
        await tx.execute(INSERT)
        lose()
        await tx.execute(INSERT)


async def savepoint(db: poolscope.ScopedConnection, lose: Lose) -> None:
    async with db.transaction() as tx, tx.transaction() as inner:
        await inner.execute(INSERT)
        lose()


async def rollback(db: poolscope.ScopedConnection, lose: Lose) -> None:
    await db.execute("BEGIN")
    lose()
    await db.execute("ROLLBACK")


async def the_end_of_a_stream(db: poolscope.ScopedConnection, lose: Lose) -> None:
    async for _ in db.stream("SELECT 1 AS put", size=1):
        lose(EMPTY)


async def the_end_of_a_stream_that_writes(db: poolscope.ScopedConnection, lose: Lose) -> None:
    async for _ in db.stream("SELECT put()", size=1):
        lose(EMPTY)


COMPOSED = sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier("t"))

CASES: dict[str, tuple[Work, type[Exception], int]] = {
    "INSERT": (statement(INSERT), UNKNOWN, 1),
    "INSERT RETURNING": (statement(INSERT + " RETURNING n", "fetchval"), UNKNOWN, 1),
    "WITH INSERT": (statement(WITH_INSERT, "fetch"), UNKNOWN, 1),
    "a function": (statement("SELECT put()", "fetchrow"), UNKNOWN, 1),
    "CALL": (statement("CALL put_too()"), UNKNOWN, 1),
    "DO": (statement("DO $$ BEGIN INSERT INTO t VALUES (1); END $$"), UNKNOWN, 1),
    "several": (statement(f"BEGIN; {INSERT}; COMMIT"), UNKNOWN, 1),
    "bytes": (statement(INSERT.encode()), UNKNOWN, 1),
    "EXPLAIN ANALYZE": (statement(f"EXPLAIN ANALYZE {INSERT}", "fetch"), UNKNOWN, 1),
    "a cursor": (by_a_cursor, UNKNOWN, 1),
    "executemany": (many, UNKNOWN, 1),
    "COMMIT": (commit, UNKNOWN, 1),
    "COMMIT by hand": (commit_by_hand, UNKNOWN, 1),
    "a stream that writes": (the_end_of_a_stream_that_writes, UNKNOWN, 1),
    "composed": (statement(COMPOSED), UNKNOWN, 1),
    "composed COMMIT": (commit_composed, UNKNOWN, 1),
    "composed inside": (composed_inside, AWAY, 0),
    "SELECT": (statement("SELECT count(*) FROM t -- INSERT", "fetchval"), AWAY, 0),
    "EXPLAIN": (statement(f"EXPLAIN {INSERT}", "fetch"), AWAY, 0),
    "inside": (inside, AWAY, 0),
    "a savepoint": (savepoint, AWAY, 0),
    "ROLLBACK": (rollback, AWAY, 0),
    "a stream": (the_end_of_a_stream, AWAY, 0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fin", [True, False], ids=["FIN", "RST"])
async def test_the_answer_is_lost(wire: Wire, make_scope: Any, database: Database, case: str, *, fin: bool) -> None:
    """The server has done it and nobody hears of it: unknown where it may have written, else away, try again."""
    work, expected, written = CASES[case]
    async with make_scope(wire.dsn, maxsize=1) as scope, scope.acquire() as db:
        with pytest.raises(poolscope.PoolScopeError) as caught:
            await work(db, lambda after=0: wire.tear(after, fin=fin))
        assert type(caught.value) is expected, caught.value
    await until(lambda: not database.backends())
    assert database.sql("SELECT count(*) FROM t") == [(written,)]


async def test_nothing_was_sent(wire: Wire, make_scope: Any, database: Database) -> None:
    """A connection that is known to be dead before the statement is sent is away: nothing can have been written."""
    async with make_scope(wire.dsn, maxsize=1) as scope, scope.acquire() as db:
        await db.execute(INSERT)
        wire.cut()
        await until(lambda: db.closed, "the end of the connection")
        with pytest.raises(DatabaseUnavailable):
            await db.execute(INSERT)
        with pytest.raises(DatabaseUnavailable):
            await db.execute(sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier("t")))  # type: ignore[arg-type]
        assert database.sql("SELECT count(*) FROM t") == [(1,)]


@contextlib.asynccontextmanager
async def taken_away(make_scope: Any, how: str) -> AsyncIterator[tuple[poolscope.PoolScope, Callable[[], None]]]:
    """A scope, and what takes its connections away while a statement runs."""
    settings = {"max_lease": {"max_lease": 0.3}}.get(how, {"drain_grace": 0.2, "drain_timeout": 0.4})
    async with make_scope(maxsize=1, **settings) as scope:
        yield scope, scope.begin_drain if how == "drain" else lambda: None


@pytest.mark.parametrize("how", ["max_lease", "drain"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [("SELECT pg_sleep(60)", ConnectionReleased), ("INSERT INTO t SELECT 1 FROM pg_sleep(60)", OutcomeUnknown)],
    ids=["read", "write"],
)
async def test_taken_away(make_scope: Any, database: Database, how: str, text: str, expected: type[Exception]) -> None:
    """A connection that is taken away under a statement says so; under one that may write, that nobody knows."""
    database.sql("CREATE TABLE t (n int)")
    async with taken_away(make_scope, how) as (scope, begin):
        found: list[BaseException] = []

        async def stubborn() -> None:
            async with scope.acquire() as db:
                begin()
                try:
                    await db.execute(text)
                except asyncio.CancelledError:  # the drain's; it goes on all the same
                    await db.execute(text)

        async def work() -> None:
            try:
                await stubborn()
            except Exception as error:  # noqa: BLE001  whatever it is
                found.append(error)

        await asyncio.create_task(work())
        assert [type(error) for error in found] == [expected], found
        if how == "max_lease":
            assert "max_lease" in str(found[0])
    await until(lambda: not database.backends())


async def test_a_silent_network_is_a_matter_of_time(wire: Wire, make_scope: Any) -> None:
    """Where time was the cause it stays QueryTimeout, also for a statement that may write."""
    async with make_scope(wire.dsn, maxsize=1) as scope, scope.acquire() as db:
        wire.deaf_to_cancel = True
        wire.freeze()
        with pytest.raises(QueryTimeout):
            await db.execute(INSERT, timeout=0.2)
        wire.thaw()


async def test_success_after_our_cancel_is_none(make_scope: Any, database: Database) -> None:
    """A statement that ends well after its time was over, and its cancel was sent, raises QueryTimeout all the same."""
    database.sql("CREATE TABLE t (n int)")
    async with make_scope(maxsize=1) as scope, scope.acquire() as db:
        with pytest.raises(QueryTimeout):
            await deaf(db, INSERT)
        assert database.sql("SELECT count(*) FROM t") == [(1,)]
        assert await db.fetchval("SELECT 42") == 42


async def deaf(db: poolscope.ScopedConnection | poolscope.Transaction, text: str) -> None:
    """Run a statement that catches the server's cancel, and ends well after it."""
    await db.execute(DEAF.format(text), timeout=0.1)


async def test_late_success_fails_its_transaction(make_scope: Any, database: Database) -> None:
    """Inside a transaction it fails the transaction: COMMIT raises TransactionFailed, and nothing is written."""
    database.sql("CREATE TABLE t (n int)")

    async def work(scope: poolscope.PoolScope, *, further: bool) -> None:
        async with scope.transaction() as tx:
            with pytest.raises(QueryTimeout):
                await deaf(tx, INSERT)
            if further:
                await tx.execute(INSERT)

    async with make_scope(maxsize=1) as scope:
        with pytest.raises(TransactionFailed, match="had failed"):
            await work(scope, further=False)
        assert database.sql("SELECT count(*) FROM t") == [(0,)]
        with pytest.raises(TransactionFailed, match="cancelled for its time"):
            await work(scope, further=True)
        async with scope.transaction() as tx:  # and a savepoint keeps the rest
            with contextlib.suppress(QueryTimeout):
                async with tx.transaction() as inner:
                    await deaf(inner, INSERT)
            await tx.execute("INSERT INTO t VALUES (2)")
        assert database.sql("SELECT n FROM t") == [(2,)]


def hold_up(seconds: float) -> None:
    """Hold up the loop, soon."""
    asyncio.get_running_loop().call_later(0.01, time.sleep, seconds)


async def given_up(tx: poolscope.Transaction) -> None:
    """Its answer lies here, unread, when its task is cancelled."""
    hold_up(0.6)
    async with asyncio.timeout(0.3):
        await tx.execute("INSERT INTO t SELECT 1 FROM pg_sleep(0.1)")


async def given_up_and_deaf(tx: poolscope.Transaction) -> None:
    """It ends well after the cancel that the next statement sends."""
    async with asyncio.timeout(0.1):
        await tx.execute(DEAF.format(INSERT))


@pytest.mark.parametrize("statement", [given_up, given_up_and_deaf])
@pytest.mark.parametrize("further", [False, True])
async def test_a_caught_cancellation_fails_its_transaction(
    make_scope: Any, database: Database, statement: Any, *, further: bool
) -> None:
    """Whoever was told that a statement did not end does not commit it: not even when it has ended well."""
    database.sql("CREATE TABLE t (n int)")

    async def work(scope: poolscope.PoolScope) -> None:
        async with scope.transaction() as tx:
            with contextlib.suppress(TimeoutError):
                await statement(tx)
            if further:
                await tx.execute(INSERT)

    async with make_scope(maxsize=1) as scope:
        with pytest.raises(TransactionFailed):
            await work(scope)
        assert database.sql("SELECT count(*) FROM t") == [(0,)]
        async with scope.transaction() as tx:  # and a savepoint keeps the rest
            with contextlib.suppress(TimeoutError):
                async with tx.transaction() as inner:
                    await statement(inner)
            await tx.execute("INSERT INTO t VALUES (2)")
        assert database.sql("SELECT n FROM t") == [(2,)]


async def test_an_answer_that_came_in_time_is_not_late(make_scope: Any, database: Database) -> None:
    """A loop that was held up finds the answer and the end of the time together: the answer counts."""
    database.sql("CREATE TABLE t (n int)")
    async with make_scope(maxsize=1) as scope:
        hold_up(0.6)
        assert await scope.execute("INSERT INTO t SELECT 1 FROM pg_sleep(0.1)", timeout=0.4) == "INSERT 0 1"


async def test_the_time_of_an_abandoned_statement_is_its_own(make_scope: Any, database: Database) -> None:
    """One that is over its time while the next waits for its end does not make that one late."""
    database.sql("CREATE TABLE t (n int)")
    async with make_scope(maxsize=1, pgbouncer=True, statement_timeout=0.3) as scope, scope.acquire() as db:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await db.execute(DEAF.format("PERFORM pg_sleep(0.5)"))
        link = db._link_in_use()
        asyncio.get_running_loop().call_later(0.4, link.time_out, 0.3)  # as the housekeeper does
        assert await db.execute(INSERT) == "INSERT 0 1"
        await asyncio.sleep(2 * CANCEL_MARGIN)
        assert await db.fetchval("SELECT 42") == 42


async def test_a_late_success_ends_with_its_transaction(make_scope: Any) -> None:
    """The next lease of the connection hears nothing of it, though the transaction was ended by way of raw."""
    async with make_scope(maxsize=1, reset="rollback") as scope:
        async with scope.acquire() as db:
            await db.execute("BEGIN")
            with pytest.raises(QueryTimeout):
                await db.execute(DEAF.format("NULL"), timeout=0.1)
            async with db.raw.cursor() as cursor:
                await cursor.execute("ROLLBACK")
        async with scope.acquire() as db:
            async with db.raw.cursor() as cursor:
                await cursor.execute("BEGIN")
            assert await db.fetchval("SELECT 42") == 42


async def test_run_transaction_stops_at_an_unknown_commit(wire: Wire, make_scope: Any, database: Database) -> None:
    """It is not run again when nobody knows whether it was committed."""
    runs = 0

    async def once(tx: poolscope.Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.execute(INSERT)
        wire.tear(0)

    async with make_scope(wire.dsn, maxsize=1) as scope:
        with pytest.raises(OutcomeUnknown):
            await scope.run_transaction(once)
    assert runs == 1
    assert database.sql("SELECT count(*) FROM t") == [(1,)]


async def test_the_answer_to_a_request(
    wire: Wire, serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 with a code of its own and no Retry-After; one line of the log, that says what was lost, and no traceback."""
    monkeypatch.setattr(responses, "_limiter", logs.LogLimiter())
    app = web.Application()
    scope = poolscope.setup(app, wire.dsn, maxsize=1)

    @poolscope.transactional
    async def handler(request: web.Request) -> web.Response:
        await request["db"].execute(INSERT)
        wire.tear(0)
        return web.Response()

    app.router.add_post("/", handler)
    async with serve(app) as served:
        for _ in range(3):
            async with served.client.post(served.url) as response:
                body = await response.json()
                assert (response.status, body["code"]) == (500, "outcome-unknown")
                assert "Retry-After" not in response.headers
        assert scope.stats().errors["connection"] == 3
    lines = [record for record in caplog.records if record.__dict__.get("event") == "outcome-unknown"]
    assert [(record.levelname, record.exc_info) for record in lines] == [("ERROR", None)]
    assert "may have been carried out" in lines[0].getMessage()
