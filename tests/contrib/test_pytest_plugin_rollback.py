"""poolscope_rollback: the service believes that it commits, and nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from aiohttp import web
from psycopg2 import sql as composed

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.testing.rollback import Rollback
from tests.conftest import Database, Serve, until

from .inner_runs import SERVICE, Inner

pytestmark = pytest.mark.slow

pytest_plugins = ("pytester",)

Running = Callable[..., contextlib.AbstractAsyncContextManager[poolscope.PoolScope]]


@pytest.fixture
def rollback() -> Iterator[Rollback]:
    with Rollback().armed() as rollback:
        yield rollback


@pytest.fixture
def rolled(database: Database, rollback: Rollback) -> Running:
    """``async with rolled() as scope``: a running scope whose test is rolled back, with a table in its database."""
    database.sql("CREATE TABLE t (id int PRIMARY KEY, parent int REFERENCES t DEFERRABLE INITIALLY DEFERRED)")

    @contextlib.asynccontextmanager
    async def running(**settings: Any) -> AsyncIterator[poolscope.PoolScope]:
        scope = rollback(poolscope.PoolScope(database.dsn, **settings))
        async with scope.running():
            yield scope
        assert database.sql("SELECT * FROM t") == []

    return running


async def count(scope: poolscope.PoolScope) -> int:
    return await scope.fetchval("SELECT count(*) FROM t")


TWICE = """
@pytest.fixture
async def client(dsn, poolscope_rollback):
    app = make_app(dsn)
    poolscope_rollback(app[SCOPE])
    async with TestClient(TestServer(app)) as client:
        yield client

@pytest.mark.parametrize("time", range(2))
async def test_it(client, time):
    assert (await client.post("/")).status == 201
    assert await (await client.get("/")).json() == 1
"""


def test_the_next_test_finds_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server_dsn: str
) -> None:
    """What a test has written, the next one does not see; without the fixture's call it does."""
    inner = Inner(pytester, monkeypatch, server_dsn)
    inner.run(SERVICE + TWICE).assert_outcomes(passed=2)
    inner.run(SERVICE + TWICE.replace("poolscope_rollback(app[SCOPE])", "pass")).assert_outcomes(passed=1, failed=1)


async def test_requests_see_what_others_have_committed(database: Database, rollback: Rollback, serve: Serve) -> None:
    """All requests of a test see one another's writes; who looks from outside sees none."""
    database.sql("CREATE TABLE t (id int PRIMARY KEY)")

    async def add(request: web.Request) -> web.Response:
        await request["db"].execute("INSERT INTO t VALUES (%s)", (request.match_info["id"],))
        return web.json_response(await request["db"].fetchval("SELECT count(*) FROM t"))

    app = web.Application()
    app.router.add_get("/{id}", add)
    rollback(poolscope.setup(app, database.dsn, maxsize=3))
    async with serve(app) as served:
        answers = await asyncio.gather(*(served.get(f"/{number}") for number in range(20)))
        assert max(int(text) for _, text in answers) == 20
        assert database.sql("SELECT count(*) FROM t") == [(0,)]
        assert len(database.backends()) == 1
    assert database.sql("SELECT count(*) FROM t") == [(0,)]


async def test_an_error_undoes_its_own_statement_only(rolled: Running) -> None:
    """A statement that fails outside of a transaction takes nothing with it."""
    async with rolled() as scope:
        await scope.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            await scope.execute("INSERT INTO t VALUES (2), (1)")
        assert await count(scope) == 1


async def test_transactions_are_as_usual(rolled: Running) -> None:
    """A block keeps its writes or undoes them, nested blocks too; a failed one takes no statement and no COMMIT."""
    async with rolled() as scope:
        with contextlib.suppress(ZeroDivisionError):
            async with scope.transaction() as tx:
                await tx.execute("INSERT INTO t VALUES (1)")
                raise ZeroDivisionError
        async with scope.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (2)")
            with contextlib.suppress(psycopg2.Error):
                async with tx.transaction() as nested:
                    await nested.execute("INSERT INTO t VALUES (3), (2)")
            async with tx.transaction() as nested:
                await nested.execute("INSERT INTO t VALUES (4)")
        with pytest.raises(poolscope.TransactionFailed):  # noqa: PT012  raised by the end of the block
            async with scope.transaction() as tx:
                await tx.execute("INSERT INTO t VALUES (5)")
                with pytest.raises(psycopg2.errors.UniqueViolation):
                    await tx.execute("INSERT INTO t VALUES (2)")
                with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
                    await tx.execute("SELECT 1")
        assert await scope.fetch("SELECT id FROM t ORDER BY id") == [(2,), (4,)]


async def test_the_state_of_a_connection_is_as_usual(rolled: Running) -> None:
    """``in_transaction`` is about the service's transactions, not about the one around the test."""
    async with rolled() as scope, scope.acquire() as db:
        assert await db.fetchval("SELECT 1") == 1
        assert not db.in_transaction
        async with db.transaction():
            assert db.in_transaction
        await db.execute("BEGIN")
        await db.execute("INSERT INTO t VALUES (1)")
        assert db.in_transaction
        await db.execute("  /* the end; really */ ROLLBACK; ")
        assert not db.in_transaction
        await db.execute("BEGIN; INSERT INTO t VALUES (%s); COMMIT", (2,))
        await db.execute(
            composed.SQL("START TRANSACTION; INSERT INTO {} VALUES (3); END").format(composed.Identifier("t"))
        )
        assert await db.fetch("SELECT id FROM t ORDER BY id") == [(2,), (3,)]


async def test_what_is_deferred_is_checked_at_commit(rolled: Running) -> None:
    """Deferred constraints fail the COMMIT that they would fail, that of a single statement too, and no other."""
    async with rolled() as scope:
        for _ in range(2):
            async with scope.transaction() as tx:
                await tx.execute("INSERT INTO t VALUES (1, 2)")
                await tx.execute("INSERT INTO t VALUES (2)")
            with pytest.raises(psycopg2.errors.ForeignKeyViolation):
                await scope.execute("INSERT INTO t VALUES (3, 4)")
            with pytest.raises(psycopg2.errors.ForeignKeyViolation):
                async with scope.transaction() as tx:
                    await tx.execute("INSERT INTO t VALUES (5, 6)")
            assert await count(scope) == 2
            await scope.execute("DELETE FROM t")


async def test_read_only_transactions_refuse_writes(rolled: Running) -> None:
    """``readonly=True`` holds for its block and no longer; an isolation level is taken without an effect."""
    async with rolled() as scope:
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            async with scope.transaction("serializable", readonly=True, deferrable=True) as tx:
                await tx.execute("INSERT INTO t VALUES (1)")
        async with scope.transaction("repeatable read") as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
        assert await count(scope) == 1


async def test_streams_batches_and_retries(rolled: Running) -> None:
    """executemany, stream, a stream that is dropped halfway, and run_transaction work as they do elsewhere."""
    tries = 0

    async def work(tx: poolscope.Transaction) -> int:
        nonlocal tries
        tries += 1
        await tx.execute("INSERT INTO t VALUES (1000)")
        if tries == 1:
            await tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        return await tx.fetchval("SELECT count(*) FROM t")

    async with rolled() as scope:
        async with scope.acquire() as db:
            await db.executemany("INSERT INTO t VALUES (%s)", [(number,) for number in range(250)])
            with pytest.raises(psycopg2.errors.UniqueViolation):
                await db.executemany("INSERT INTO t VALUES (%s)", [(300,), (0,)])
            sql = "SELECT id FROM t WHERE id >= %s ORDER BY id"
            assert [row[0] async for row in db.stream(sql, (10,), size=7)] == list(range(10, 250))
            async for _ in db.stream(sql, (0,), size=7):
                break
            assert await db.fetchval("SELECT count(*) FROM t") == 250
        assert await scope.run_transaction(work) == 251
        assert (tries, await count(scope)) == (2, 251)


async def test_time_outs_and_cancellations_undo_their_statement(rolled: Running) -> None:
    """A statement that is cancelled, by its time-out or with its task, leaves the connection and the rest as it was."""
    slow = "WITH x AS (INSERT INTO t VALUES (9)) SELECT pg_sleep(60)"
    async with rolled(maxsize=2) as scope:
        await scope.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(poolscope.QueryTimeout):
            await scope.execute(slow, timeout=0.05)
        async with scope.acquire() as db:
            task = asyncio.create_task(db.execute(slow))
            await until(lambda: db._link is not None and db._link.running_since, "the statement to run")
            task.cancel()
            await asyncio.wait((task,))
            assert await db.fetchval("SELECT count(*) FROM t") == 1
        inside = asyncio.create_task(hold_in_transaction(scope, slow))
        await until(lambda: any(lease.held > 0.05 for lease in scope.leases()), "the transaction to begin")
        inside.cancel()
        await asyncio.wait((inside,))
        assert inside.cancelled()
        assert await count(scope) == 1


async def hold_in_transaction(scope: poolscope.PoolScope, sql: str) -> None:
    async with scope.transaction() as tx:
        await tx.execute("INSERT INTO t VALUES (8)")
        await tx.execute(sql)


async def test_a_transaction_left_open_is_undone(rolled: Running) -> None:
    """What a handler has begun by hand and never committed is undone when its connection comes back."""
    async with rolled(maxsize=1) as scope:
        async with scope.acquire() as db:
            await db.execute("BEGIN")
            await db.execute("INSERT INTO t VALUES (1)")
        assert await count(scope) == 0


async def test_a_lease_that_is_taken_away_takes_nothing_else(rolled: Running) -> None:
    """``max_lease`` ends the statement and the transaction of one connection; the session of the test goes on."""
    async with rolled(max_lease=0.1) as scope:
        await scope.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(poolscope.ConnectionReleased):
            await hold_in_transaction(scope, "SELECT pg_sleep(60)")
        assert await scope.fetch("SELECT id FROM t") == [(1,)]


async def test_a_connection_that_is_closed_is_in_no_transaction(rolled: Running) -> None:
    """A transaction that is ended while another task uses it closes its connection, and not that of the others."""
    async with rolled() as scope, scope.acquire() as db:
        await scope.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(poolscope.ConnectionBusy):  # noqa: PT012  raised by the end of the block
            async with db.transaction() as tx:
                await tx.execute("INSERT INTO t VALUES (2)")
                other = asyncio.create_task(db.execute("SELECT pg_sleep(60)"))
                await until(lambda: db._link is not None and db._link.running_since, "the statement to run")
        assert not db.in_transaction
        assert db.closed
        with pytest.raises(poolscope.PoolScopeError):
            await other
        assert await scope.fetch("SELECT id FROM t") == [(1,)]


async def test_what_cannot_be_had(rolled: Running) -> None:
    """As documented: time stands still, SET LOCAL stays, VACUUM is refused; a procedure that commits too."""
    async with rolled() as scope:
        assert await scope.fetchval("SELECT now()") == await scope.fetchval("SELECT now()")
        async with scope.transaction() as tx:
            await tx.execute("SET LOCAL work_mem = '77MB'")
        assert await scope.fetchval("SHOW work_mem") == "77MB"
        with pytest.raises(psycopg2.errors.ActiveSqlTransaction):
            await scope.execute("VACUUM t")
        with pytest.raises(psycopg2.errors.InvalidTransactionTermination):
            await scope.execute("DO $$ BEGIN COMMIT; END $$")
        with pytest.raises(poolscope.PoolScopeError, match="PREPARE TRANSACTION would end"):
            await scope.execute("PREPARE TRANSACTION 'x'")
        await scope.execute("INSERT INTO t VALUES (1)")


async def test_a_second_connection_takes_turns(rolled: Running) -> None:
    """A handler may borrow twice; inside a transaction the other connection is refused, with the reason, at once."""
    async with rolled() as scope, scope.acquire() as first, scope.acquire() as second:
        await first.execute("INSERT INTO t VALUES (1)")
        assert await second.fetchval("SELECT count(*) FROM t") == 1
        async with first.transaction() as tx:
            with pytest.raises(poolscope.PoolExhausted, match="this very task is inside a transaction"):
                await second.fetchval("SELECT 1")
            waiting = asyncio.create_task(second.fetchval("SELECT count(*) FROM t"))
            await tx.execute("INSERT INTO t VALUES (2)")
        assert await waiting == 2


async def test_another_task_s_transaction_is_waited_for(rolled: Running) -> None:
    """Who waits for another's transaction for longer than ``acquire_timeout`` hears who has it."""
    async with rolled(acquire_timeout=0.1) as scope, scope.acquire() as db, scope.transaction():
        waiting = asyncio.create_task(db.fetchval("SELECT 1"))
        with pytest.raises(poolscope.PoolExhausted, match=r"Task-\d+ is inside a transaction|test_another"):
            await waiting


async def test_hooks_and_full_resets_have_the_session_to_themselves(rolled: Running) -> None:
    """With hooks or ``reset="full"`` there is one lease at a time, and what it has set is gone afterwards."""

    async def tenant(db: poolscope.ScopedConnection) -> None:
        await db.execute("SELECT set_config('app.tenant', 'ada', false)")

    async with rolled(on_acquire=tenant, reset="full", maxsize=5) as scope:
        assert scope.stats().maxsize == 1
        async with scope.acquire() as db:
            assert await db.fetchval("SELECT current_setting('app.tenant')") == "ada"
            await db.execute("SET work_mem = '77MB'")
            await db.execute("CREATE TEMPORARY TABLE mine (id int)")
        async with scope.acquire() as db:
            assert await db.fetchval("SHOW work_mem") != "77MB"
            await db.execute("CREATE TEMPORARY TABLE mine (id int)")


async def test_a_transaction_ended_past_it_is_said(rolled: Running, database: Database) -> None:
    """A ROLLBACK on ``db.raw`` would leave later statements without the transaction: they are refused."""
    async with rolled() as scope, scope.acquire() as db:
        await db.execute("INSERT INTO t VALUES (1)")
        cursor = await db.raw.cursor()
        await cursor.execute("ROLLBACK")
        with pytest.raises(poolscope.PoolScopeError, match=r"ended, or failed, by a statement on db\.raw"):
            await db.execute("INSERT INTO t VALUES (2)")
    assert database.sql("SELECT * FROM t") == []


async def test_a_lost_connection_is_said(rolled: Running, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """When the session dies, what was written is lost; the service gets a new one, and a warning says so."""
    async with rolled(check_after_idle=0) as scope:
        await scope.execute("INSERT INTO t VALUES (1)")
        database.kill()
        with caplog.at_level(logging.WARNING, "aiohttp_poolscope"):
            assert await count(scope) == 0
        assert "was lost, and with it what this test had written" in caplog.text


async def test_a_scope_that_runs(database: Database, make_scope: Any, rollback: Rollback) -> None:
    """``running`` rolls back a block of a scope that goes on; the call for one that does not run yet is refused."""
    database.sql("CREATE TABLE t (id int PRIMARY KEY)")
    async with make_scope(maxsize=3) as scope:
        with pytest.raises(poolscope.ConfigError, match="serving already"):
            rollback(scope)
        before = scope.stats()
        for _ in range(2):
            async with rollback.running(scope):
                assert scope.stats().lent == 0
                await asyncio.gather(*(scope.execute("INSERT INTO t VALUES (%s)", (n,)) for n in range(5)))
                assert await count(scope) == 5
            assert scope.stats() == before
            assert database.sql("SELECT id FROM t") == []
        await scope.execute("INSERT INTO t VALUES (1)")
        assert database.sql("SELECT id FROM t") == [(1,)]
        async with scope.acquire():
            with pytest.raises(poolscope.ConfigError, match="connections are in use: a task"):
                async with rollback.running(scope):
                    raise AssertionError
    with pytest.raises(poolscope.ConfigError, match="the scope is closed"):
        async with rollback.running(scope):
            raise AssertionError
