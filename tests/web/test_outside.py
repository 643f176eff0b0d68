"""Outside of requests: single statements, scope.acquire(), transactions, and transactions that run again (R7, R8)."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg2
import pytest

import aiohttp_poolscope as poolscope
from tests.conftest import Database, until


async def test_single_statements(make_scope: Any, database: Database) -> None:
    """R8: fetch, fetchrow, fetchval and execute borrow for one statement, and give back."""
    async with make_scope(maxsize=1) as scope:
        assert await scope.execute("CREATE TABLE t (x int)") == "CREATE TABLE"
        assert await scope.execute("INSERT INTO t SELECT generate_series(1, %s)", (3,)) == "INSERT 0 3"
        assert await scope.fetch("SELECT x FROM t WHERE x > %(least)s ORDER BY x", {"least": 1}) == [(2,), (3,)]
        assert await scope.fetchrow("SELECT x, x FROM t ORDER BY x") == (1, 1)
        assert await scope.fetchrow("SELECT x FROM t WHERE false") is None
        assert await scope.fetchval("SELECT max(x) FROM t") == 3
        assert await scope.fetchval("SELECT x FROM t WHERE false") is None
        assert scope.stats().in_use == 0
        assert database.sql("SELECT count(*) FROM t") == [(3,)]


async def test_a_single_statement_that_fails_gives_back_too(make_scope: Any) -> None:
    """R8: after an error and after a timeout the one connection is free, and the same."""
    async with make_scope(maxsize=1, acquire_timeout=0.5) as scope:
        with pytest.raises(psycopg2.errors.DivisionByZero):
            await scope.fetchval("SELECT 1/0")
        with pytest.raises(poolscope.QueryTimeout):
            await scope.execute("SELECT pg_sleep(60)", timeout=0.02)
        assert await scope.fetchval("SELECT 1") == 1
        assert (scope.stats().in_use, scope.stats().opened) == (0, 1)


async def test_acquire_as_a_block(make_scope: Any) -> None:
    """R8: 'async with scope.acquire() as db': the connection goes back at the end, and is over."""
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            assert await db.fetchval("SELECT 1") == 1
            assert scope.stats().in_use == 1
        assert scope.stats().in_use == 0
        assert db.closed
        with pytest.raises(poolscope.ConnectionReleased, match=r"of scope.acquire\(\) was used after its release"):
            await db.fetchval("SELECT 1")


async def test_acquire_awaited(make_scope: Any) -> None:
    """R8: 'db = await scope.acquire()' until db.release(), which may be repeated and finishes it."""
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        assert await db.fetchval("SELECT 1") == 1
        db.release()
        db.release()
        assert scope.stats().in_use == 0
        async with scope.acquire() as other:
            db.release()
            assert scope.stats().in_use == 1
            with pytest.raises(poolscope.ConnectionReleased):
                await db.execute("SELECT 1")
            assert await other.fetchval("SELECT 2") == 2


async def test_an_early_release_inside_the_block(make_scope: Any) -> None:
    """R8: released inside its block, the end of the block does not release somebody else's connection."""
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            db.release()
            other = await scope.acquire()
        assert scope.stats().in_use == 1
        assert await other.fetchval("SELECT 1") == 1
        other.release()


async def use_and_fail(block: Any, sql: str, error: type[BaseException]) -> None:
    async with block as db:
        await db.execute(sql)
        raise error


async def test_an_exception_in_the_block_gives_back(make_scope: Any) -> None:
    """R8: whatever leaves the block, the connection is back and clean."""
    async with make_scope(maxsize=1) as scope:
        for error in (ValueError, asyncio.CancelledError):
            with pytest.raises(error):
                await use_and_fail(scope.acquire(), "BEGIN", error)
        async with scope.acquire() as db:
            assert not db.in_transaction


async def test_acquire_has_a_timeout_of_its_own(make_scope: Any) -> None:
    """timeout= goes before acquire_timeout, and the error tells how it stands."""
    async with make_scope(maxsize=1, acquire_timeout=3600) as scope, scope.acquire():
        async with asyncio.timeout(5):
            with pytest.raises(poolscope.PoolExhausted, match=r"1/1 in use, 0 waiting, waited 0\.\d s"):
                await scope.acquire(timeout=0.05)


async def test_a_cancelled_acquire_leaves_nothing(make_scope: Any) -> None:
    """Cancelled while it waits, or in the instant of its turn, a borrow leaves no connection behind."""
    async with make_scope(maxsize=1) as scope:
        for in_the_same_instant in (False, True):
            holder = await scope.acquire()
            task = asyncio.create_task(scope.fetchval("SELECT 1"))
            await until(lambda: scope.stats().waiting == 1, "its place in the queue")
            if in_the_same_instant:
                holder.release()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            holder.release()
            assert scope.stats().in_use == 0
        assert scope.stats().cancelled == 2
        assert await scope.fetchval("SELECT 1") == 1


async def test_transaction_commits_or_rolls_back(make_scope: Any, database: Database) -> None:
    """R7: scope.transaction() is a connection and a transaction: COMMIT at its end, ROLLBACK on any exception."""
    database.sql("CREATE TABLE t (x int)")
    async with make_scope(maxsize=1) as scope:
        async with scope.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            assert database.sql("SELECT x FROM t") == []
        assert database.sql("SELECT x FROM t") == [(1,)]
        for error in (ValueError, asyncio.CancelledError):
            with pytest.raises(error):
                await use_and_fail(scope.transaction(), "INSERT INTO t VALUES (2)", error)
        assert database.sql("SELECT x FROM t") == [(1,)]
        assert scope.stats().in_use == 0
        async with scope.transaction("serializable", readonly=True, deferrable=True) as tx:
            asked = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
            assert await tx.fetchrow(asked) == ("serializable", "on")


async def test_run_transaction_returns_what_the_function_returns(make_scope: Any, database: Database) -> None:
    """R7: run once and committed when nothing goes wrong."""
    database.sql("CREATE TABLE t (x int)")
    async with make_scope() as scope:

        async def insert(tx: poolscope.Transaction) -> str:
            return await tx.execute("INSERT INTO t VALUES (1)")

        assert await scope.run_transaction(insert) == "INSERT 0 1"
        assert database.sql("SELECT x FROM t") == [(1,)]


async def test_run_transaction_again_after_a_serialization_failure(make_scope: Any, database: Database) -> None:
    """R7: of two transactions that cannot both be serialized, one is run again, and both are in the database."""
    database.sql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
    runs = 0
    both_have_read = asyncio.Barrier(2)

    async def count_on(tx: poolscope.Transaction) -> int:
        nonlocal runs
        runs += 1
        found: int = await tx.fetchval("SELECT max(x) FROM t")
        if runs <= 2:
            await both_have_read.wait()
        await tx.execute("INSERT INTO t VALUES (%s)", (found + 1,))
        return found + 1

    async with make_scope(maxsize=2) as scope, asyncio.timeout(10):
        done = await asyncio.gather(*[scope.run_transaction(count_on, isolation="serializable") for _ in range(2)])
        assert (sorted(done), runs) == ([2, 3], 3)
        assert database.sql("SELECT x FROM t ORDER BY x") == [(1,), (2,), (3,)]
        assert (scope.stats().in_use, scope.stats().opened) == (0, 2)


async def test_run_transaction_again_after_a_deadlock(make_scope: Any, database: Database) -> None:
    """R7: two transactions that lock two rows crosswise both get through."""
    database.sql("CREATE TABLE t (id int PRIMARY KEY, x int); INSERT INTO t VALUES (1, 0), (2, 0)")
    runs = 0
    both_have_one = asyncio.Barrier(2)

    def crosswise(first: int, second: int) -> Any:
        async def update(tx: poolscope.Transaction) -> None:
            nonlocal runs
            runs += 1
            await tx.execute("SET LOCAL deadlock_timeout = '10ms'")
            await tx.execute("UPDATE t SET x = x + 1 WHERE id = %s", (first,))
            if runs <= 2:
                await both_have_one.wait()
            await tx.execute("UPDATE t SET x = x + 1 WHERE id = %s", (second,))

        return update

    async with make_scope(maxsize=2) as scope, asyncio.timeout(10):
        await asyncio.gather(scope.run_transaction(crosswise(1, 2)), scope.run_transaction(crosswise(2, 1)))
        assert runs == 3
        assert database.sql("SELECT x FROM t") == [(2,), (2,)]


async def fail_to_serialize(tx: poolscope.Transaction) -> None:
    await tx.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_run_transaction_gives_up(make_scope: Any, retries: int) -> None:
    """R7: after ``retries`` more attempts the database's own error is raised; no connection is held in between."""
    runs = 0
    held_between: list[int] = []

    async def fail(tx: poolscope.Transaction) -> None:
        nonlocal runs
        runs += 1
        held_between.append(scope.stats().in_use)
        await fail_to_serialize(tx)

    async with make_scope(maxsize=1) as scope:
        with pytest.raises(psycopg2.errors.SerializationFailure):
            await scope.run_transaction(fail, retries)
        assert runs == retries + 1
        assert held_between == [1] * runs
        assert scope.stats().lease.count >= runs
        assert scope.stats().in_use == 0


async def test_run_transaction_does_not_repeat_other_errors(make_scope: Any, database: Database) -> None:
    """R7: what would fail again is not run again, and nothing of it is written."""
    database.sql("CREATE TABLE t (x int)")
    runs = 0

    async def fail(tx: poolscope.Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.execute("INSERT INTO t VALUES (1)")
        await tx.execute("SELECT 1/0")

    async with make_scope() as scope:
        with pytest.raises(psycopg2.errors.DivisionByZero):
            await scope.run_transaction(fail)
        assert (runs, database.sql("SELECT x FROM t")) == (1, [])


async def test_run_transaction_again_when_the_error_was_wrapped(make_scope: Any) -> None:
    """R7: a function that raises an error of its own *from* a serialization failure is run again as well."""
    runs = 0

    async def wrap(tx: poolscope.Transaction) -> str:
        nonlocal runs
        runs += 1
        if runs == 1:
            try:
                await fail_to_serialize(tx)
            except psycopg2.Error as error:
                raise LookupError("no such thing") from error
        return "done"

    async with make_scope() as scope:
        assert await scope.run_transaction(wrap) == "done"
        assert runs == 2


async def test_run_transaction_stops_when_it_is_cancelled(make_scope: Any) -> None:
    """R7: cancelled, it is not run again."""
    runs = 0
    running = asyncio.Event()

    async def sleep(tx: poolscope.Transaction) -> None:
        nonlocal runs
        runs += 1
        running.set()
        await tx.execute("SELECT pg_sleep(60)")

    async with make_scope() as scope:
        task = asyncio.create_task(scope.run_transaction(sleep))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not scope.stats().in_use, "the connection's return")
        assert runs == 1
