"""transaction(): COMMIT, or ROLLBACK on any exception; savepoints inside; and what can go wrong in between."""

# ruff: noqa: PT012 - an error that leaves a block is the story here

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from aiohttp_poolscope.errors import (
    ConnectionBusy,
    ConnectionReleased,
    DatabaseUnavailable,
    PoolScopeError,
    QueryTimeout,
    TransactionFailed,
)
from tests.conftest import Database, until

if TYPE_CHECKING:
    from collections.abc import Iterator

INSERT = "INSERT INTO things VALUES (%s)"


@pytest.fixture(autouse=True)
def _things(database: Database) -> Iterator[None]:
    database.sql("CREATE TABLE things (n int)")
    return


def things(database: Database) -> list[int]:
    """What others see."""
    return [n for (n,) in database.sql("SELECT n FROM things ORDER BY n")]


async def test_commit(make_scope: Any, database: Database) -> None:
    """What a block wrote is seen by others at its end, and not before."""
    async with make_scope() as scope, scope.acquire() as db:
        async with db.transaction() as tx:
            assert db.in_transaction
            await tx.execute(INSERT, (1,))
            await db.execute(INSERT, (2,))
            assert things(database) == []
        assert not db.in_transaction
        assert things(database) == [1, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
async def test_rollback(make_scope: Any, database: Database, error: type[BaseException]) -> None:
    """Any exception rolls back, and is the one that is seen."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(error):
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                raise error
        assert not db.in_transaction
        await db.execute(INSERT, (2,))
    assert things(database) == [2]


async def test_rollback_after_an_sql_error(make_scope: Any, database: Database) -> None:
    """An SQL error that leaves the block rolls back; the connection is kept."""
    async with make_scope() as scope, scope.acquire() as db:
        pid = await db.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(psycopg2.errors.DivisionByZero):
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                await tx.execute("SELECT 1/0")
        assert await db.fetchval("SELECT pg_backend_pid()") == pid
    assert things(database) == []


async def test_rollback_of_a_cancelled_task(make_scope: Any, database: Database) -> None:
    """A task cancelled in the middle of a statement leaves nothing behind, not even a running statement."""
    async with make_scope() as scope, scope.acquire() as db:

        async def work() -> None:
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                await tx.execute("SELECT pg_sleep(30)")

        task = asyncio.ensure_future(work())
        await until(lambda: [1 for (query,) in database.backends("query") if "pg_sleep" in query])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not db.in_transaction
        assert ("active",) not in database.backends("state")
        await db.execute(INSERT, (2,))
    assert things(database) == [2]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"isolation": "read committed"}, ("read committed", "off", "off")),
        ({"isolation": "repeatable read"}, ("repeatable read", "off", "off")),
        ({"isolation": "serializable"}, ("serializable", "off", "off")),
        ({"readonly": True}, ("read committed", "on", "off")),
        ({"isolation": "serializable", "readonly": True, "deferrable": True}, ("serializable", "on", "on")),
    ],
)
async def test_modes(make_scope: Any, options: dict[str, Any], shown: tuple[str, ...]) -> None:
    """Isolation, readonly and deferrable hold in the block and not after it."""
    ask = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    ask += ", current_setting('transaction_deferrable')"
    async with make_scope() as scope, scope.acquire() as db:
        async with db.transaction(**options) as tx:
            assert await tx.fetchrow(ask) == shown
        assert await db.fetchrow(ask) == ("read committed", "off", "off")


async def test_readonly_is_kept_by_the_server(make_scope: Any) -> None:
    """A write in a readonly block is refused."""
    async with make_scope() as scope:
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            async with scope.transaction(readonly=True) as tx:
                await tx.execute(INSERT, (1,))


async def test_a_wrong_isolation(make_scope: Any) -> None:
    """An unknown isolation level is refused where it is written, before anything is sent."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(ValueError, match="read committed"):
            db.transaction(isolation="snapshot; DROP TABLE things")


async def test_commit_of_a_failed_transaction(make_scope: Any, database: Database) -> None:
    """A swallowed SQL error makes the end of the block a TransactionFailed: nothing was written (C14)."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(TransactionFailed, match="had failed"):
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                with pytest.raises(psycopg2.errors.DivisionByZero):
                    await tx.execute("SELECT 1/0")
        assert not db.in_transaction
    assert things(database) == []


@pytest.mark.parametrize("nested", [False, True])
async def test_commit_after_an_abandoned_statement(make_scope: Any, database: Database, nested: bool) -> None:
    """A swallowed time-out or cancellation is no silent commit of nothing either (C14)."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(TransactionFailed):
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                inner = tx.transaction() if nested else tx
                if nested:
                    await inner.__aenter__()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.03):
                        await inner.execute("SELECT pg_sleep(30)")
                if nested:
                    await inner.__aexit__(None, None, None)
        assert not db.in_transaction
        assert await db.fetchval("SELECT 1") == 1
    assert things(database) == []


async def test_commit_after_a_query_timeout(make_scope: Any, database: Database) -> None:
    """A swallowed QueryTimeout is a failed transaction as well."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(TransactionFailed):
            async with db.transaction() as tx:
                with pytest.raises(QueryTimeout):
                    await tx.execute("SELECT pg_sleep(30)", timeout=0.03)
        assert await db.fetchval("SELECT 1") == 1


async def test_a_deferred_constraint(make_scope: Any, database: Database) -> None:
    """What only COMMIT finds wrong is raised by the end of the block, and nothing stays open."""
    database.sql("CREATE TABLE late (n int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(psycopg2.errors.UniqueViolation):
            async with db.transaction() as tx:
                await tx.executemany("INSERT INTO late VALUES (%s)", [(1,), (1,)])
        assert not db.in_transaction


async def test_a_connection_lost_inside(make_scope: Any, database: Database) -> None:
    """If the connection dies in the block its end says that nothing was written."""
    async with make_scope() as scope, scope.acquire() as db:
        with pytest.raises(TransactionFailed, match="connection was lost"):
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                database.kill()
                await until(lambda: db.closed)
    assert things(database) == []


async def test_nesting(make_scope: Any, database: Database) -> None:
    """A block inside a block is a savepoint: undone alone, or kept."""
    async with make_scope() as scope, scope.transaction() as tx:
        await tx.execute(INSERT, (1,))
        with pytest.raises(psycopg2.errors.DivisionByZero):
            async with tx.transaction() as inner:
                await inner.execute(INSERT, (2,))
                await inner.execute("SELECT 1/0")
        async with tx.transaction() as inner:
            await inner.execute(INSERT, (3,))
            with pytest.raises(ValueError):
                async with inner.transaction() as innermost:
                    await innermost.execute(INSERT, (4,))
                    raise ValueError
    assert things(database) == [1, 3]


async def test_a_failed_savepoint_is_not_released(make_scope: Any, database: Database) -> None:
    """A swallowed error inside a nested block makes its end a TransactionFailed; the outer block can go on."""
    async with make_scope() as scope, scope.transaction() as tx:
        await tx.execute(INSERT, (1,))
        with pytest.raises(TransactionFailed, match="nested"):
            async with tx.transaction() as inner:
                await inner.execute(INSERT, (2,))
                with pytest.raises(psycopg2.errors.DivisionByZero):
                    await inner.execute("SELECT 1/0")
        await tx.execute(INSERT, (3,))
    assert things(database) == [1, 3]


async def test_a_savepoint_has_no_modes(make_scope: Any) -> None:
    """Isolation and the like belong to the outermost block."""
    async with make_scope() as scope, scope.transaction() as tx:
        for options in ({"isolation": "serializable"}, {"readonly": True}, {"deferrable": True}):
            with pytest.raises(PoolScopeError, match="outermost"):
                async with tx.transaction(**options):
                    pass
        assert await tx.fetchval("SELECT 1") == 1


async def test_inside_a_begin_of_ones_own(make_scope: Any, database: Database) -> None:
    """transaction() after a BEGIN written by hand is a savepoint in it, and commits nothing."""
    async with make_scope() as scope, scope.acquire() as db:
        await db.execute("BEGIN")
        async with db.transaction() as tx:
            await tx.execute(INSERT, (1,))
        assert db.in_transaction
        await db.execute("ROLLBACK")
    assert things(database) == []


async def test_outside_of_its_block(make_scope: Any) -> None:
    """A transaction is used inside its block, once."""
    async with make_scope() as scope, scope.acquire() as db:
        tx = db.transaction()
        with pytest.raises(PoolScopeError, match="new"):
            await tx.execute("SELECT 1")
        async with tx:
            pass
        with pytest.raises(PoolScopeError, match="ended"):
            await tx.execute("SELECT 1")
        with pytest.raises(PoolScopeError, match="once"):
            await tx.__aenter__()


async def test_no_release_inside(make_scope: Any, database: Database) -> None:
    """release() inside a block is an error, and the block goes on."""
    async with make_scope() as scope, scope.acquire() as db:
        async with db.transaction() as tx:
            await tx.execute(INSERT, (1,))
            with pytest.raises(PoolScopeError, match="leave its 'async with' block"):
                db.release()
        assert things(database) == [1]
        db.release()


async def test_a_transaction_does_not_outlive_its_lease(make_scope: Any, database: Database) -> None:
    """After its connection was taken back a transaction touches nobody else's, and its end says so (C13)."""
    async with make_scope(maxsize=1) as scope:
        first = scope.acquire()
        db = await first
        tx = await db.transaction().__aenter__()
        await tx.execute(INSERT, (1,))
        db._give_back()
        async with scope.transaction() as other:
            await other.execute(INSERT, (2,))
            for use in (tx.execute(INSERT, (3,)), tx.fetch("SELECT 1"), tx.executemany(INSERT, [(4,)])):
                with pytest.raises(ConnectionReleased):
                    await use
            with pytest.raises(ConnectionReleased):
                await tx.__aexit__(None, None, None)
            await other.execute(INSERT, (5,))
    assert things(database) == [2, 5]


async def test_rollback_while_another_task_runs_a_statement(make_scope: Any, database: Database) -> None:
    """A block that fails while another task is using its connection does not leave its transaction open."""
    async with make_scope() as scope, scope.acquire() as db:
        other: Any = None
        with pytest.raises(ValueError):
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                other = asyncio.ensure_future(tx.execute("SELECT pg_sleep(0.1)"))
                await until(lambda: db._link.running_since)
                raise ValueError
        with pytest.raises(DatabaseUnavailable, match="another task"):
            await other
        assert not db.in_transaction


async def test_begin_while_another_task_runs_a_statement(make_scope: Any) -> None:
    """A block that cannot begin because of another task leaves that task's statement alone."""
    async with make_scope() as scope, scope.acquire() as db:
        other = asyncio.ensure_future(db.fetchval("SELECT 7 FROM pg_sleep(0.05)"))
        await until(lambda: db._link.running_since)
        with pytest.raises(ConnectionBusy):
            async with db.transaction():
                pass
        assert await other == 7
        async with db.transaction() as tx:
            assert await tx.fetchval("SELECT 8") == 8


async def test_commit_while_another_task_runs_a_statement(make_scope: Any, database: Database) -> None:
    """A block that ends while another task is using its connection is told so, and nothing of it stays open."""
    async with make_scope() as scope, scope.acquire() as db:
        other: Any = None
        with pytest.raises(ConnectionBusy):
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                other = asyncio.ensure_future(tx.execute("SELECT pg_sleep(0.1)"))
                await until(lambda: db._link.running_since)
        with pytest.raises(DatabaseUnavailable, match="another task"):
            await other
        assert not db.in_transaction
