"""transaction() blocks that are cancelled at their end, overlap, or are used when they are over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.errors import ConnectionBusy, ConnectionReleased, DatabaseUnavailable, PoolScopeError
from tests.conftest import Database, until
from tests.kit.wire import wired

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


async def test_cancelled_while_its_end_waits_for_an_abandoned_statement(make_scope: Any, database: Database) -> None:
    """A block that is cancelled while it settles a statement leaves no transaction for the next one to be lost in."""
    with wired(database) as wire:
        async with make_scope(wire.dsn, maxsize=1) as scope, scope.acquire() as db:

            async def work() -> None:
                async with db.transaction() as tx:
                    await tx.execute(INSERT, (1,))
                    statement = asyncio.ensure_future(tx.execute("SELECT pg_advisory_xact_lock(1)"))
                    await until(lambda: database.backends("wait_event_type") == [("Lock",)], "the wait for the lock")
                    statement.cancel()
                    await asyncio.wait([statement])

            database.sql("SELECT pg_advisory_lock(1)")
            wire.deaf_to_cancel = True  # so that the statement does not fail but ends well, when it has the lock
            block = asyncio.ensure_future(work())
            await until(lambda: wire.cancels, "the end of the block")
            block.cancel()
            await asyncio.wait([block])
            assert block.cancelled()
            database.sql("SELECT pg_advisory_unlock(1)")
            await until(lambda: ("active",) not in database.backends("state"), "the end of the statement")
            wire.deaf_to_cancel = False
            with pytest.raises(DatabaseUnavailable):
                async with db.transaction() as tx:
                    await tx.execute(INSERT, (2,))
            assert things(database) == []


@pytest.mark.parametrize("how", ["commits", "rolls back"])
async def test_two_tasks_whose_blocks_overlap(make_scope: Any, database: Database, how: str) -> None:
    """Of two blocks of two tasks on one connection nothing is stored if the first ends inside of the second."""
    async with make_scope(maxsize=1) as scope, scope.acquire() as db:
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            async with db.transaction() as tx:
                await tx.execute(INSERT, (1,))
                await inside.wait()
                if how == "rolls back":
                    raise KeyError

        async def second() -> None:
            await until(lambda: db.in_transaction and not db._link.busy, "the first block")
            async with db.transaction() as tx:
                await tx.execute(INSERT, (2,))
                inside.set()
                await go_on.wait()
                await tx.execute(INSERT, (3,))
                raise ValueError

        one, two = asyncio.ensure_future(first()), asyncio.ensure_future(second())
        with pytest.raises(KeyError if how == "rolls back" else ConnectionBusy):
            await one
        go_on.set()
        with pytest.raises(DatabaseUnavailable, match="another task"):
            await two
    assert things(database) == []


async def _many(tx: Any) -> None:
    await tx.executemany(INSERT, [(1,)])


async def _with_cursor(tx: Any) -> None:
    async with tx.cursor() as cursor:
        await cursor.execute(INSERT, (1,))


async def _stream(tx: Any) -> None:
    assert [row async for row in tx.stream("INSERT INTO things VALUES (1) RETURNING n")] == []


async def _nested(tx: Any) -> None:
    async with tx.transaction() as inner:
        await inner.execute(INSERT, (1,))


@pytest.mark.parametrize("use", [_many, _with_cursor, _stream, _nested])
async def test_after_its_block(make_scope: Any, database: Database, use: Any) -> None:
    """Used after its block, a transaction raises, whatever it is asked for, and nothing is written outside of it."""
    async with make_scope() as scope, scope.acquire() as db:
        async with db.transaction() as tx:
            pass
        with pytest.raises(PoolScopeError, match="ended"):
            await use(tx)
    assert things(database) == []


async def test_streams_one_after_the_other(make_scope: Any) -> None:
    """In one transaction a stream that is left by a break is in nobody's way, not even in that of its likes."""
    async with make_scope() as scope, scope.transaction() as tx:
        for _ in range(5):
            async for (n,) in tx.stream("SELECT generate_series(1, 10)", size=2):
                assert n == 1
                break
        assert await tx.fetchval("SELECT 1") == 1


async def test_a_borrow_that_ends_under_a_begin(make_scope: Any, database: Database) -> None:
    """A task that gives the connection back while another one begins a transaction spoils that, and no later one."""
    with wired(database) as wire:
        async with make_scope(wire.dsn, maxsize=1) as scope:
            db = ScopedConnection(scope._run.pool)

            async def briefly() -> None:
                async with db.acquire():
                    wire.frozen = True
                    await until(lambda: db._depth, "BEGIN")
                wire.frozen = False

            async def begin() -> None:
                async with db.transaction() as tx:
                    await tx.execute("SELECT 1")

            _, error = await asyncio.gather(briefly(), begin(), return_exceptions=True)
            assert isinstance(error, ConnectionReleased)
            async with db.transaction() as tx:
                assert db._depth == 1
                await tx.execute(INSERT, (1,))
            assert db._depth == 0
            db._end("its end")


async def test_a_session_that_dies_inside_can_be_released(make_scope: Any, database: Database) -> None:
    """A lease whose session has died inside transaction() can be given back there, and its room is free at once."""

    async def work(db: ScopedConnection) -> None:
        async with db.transaction() as tx:
            await tx.execute("SELECT 1")
            await asyncio.to_thread(database.kill)
            await until(lambda: db.closed, "the end of the connection")
            db.release()

    async with make_scope(maxsize=1) as scope:
        with pytest.raises(PoolScopeError):
            await work(await scope.acquire())
        assert await scope.fetchval("SELECT 42") == 42


async def test_a_cancelled_begin_that_is_caught(make_scope: Any, database: Database) -> None:
    """Whoever catches the cancellation of a block that was beginning does not go on inside its transaction."""

    async def begin() -> None:
        async with db.transaction():
            raise AssertionError("it has begun")

    with wired(database) as wire:
        async with make_scope(wire.dsn, maxsize=1) as scope, scope.acquire() as db:
            await db.fetchval("SELECT 1")
            wire.frozen = True
            beginning = asyncio.ensure_future(begin())
            await until(lambda: wire.queries[-1] == "BEGIN")
            beginning.cancel()
            await asyncio.sleep(0)
            wire.frozen = False
            await asyncio.wait([beginning])
            assert beginning.cancelled()
            assert not db.in_transaction
            await db.execute(INSERT, (1,))
            assert things(database) == [1]
