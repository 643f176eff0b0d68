"""Maintenance: what is done to one connection. One real connection, and no pool."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.driver import FAILED, IN_TRANSACTION, Link
from aiohttp_poolscope.errors import DatabaseUnavailable, PoolScopeError
from aiohttp_poolscope.pool.maintenance import Maintenance
from tests.conftest import until
from tests.kit.wire import ask, driving, wired

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp_poolscope import ScopedConnection
    from tests.conftest import Database


class NoPool:
    """What a hook sees of a pool: a name. There is nothing to borrow, and nothing to take back."""

    key = "alone"
    stacks = False

    def check_loop(self) -> None: ...

    async def borrow(self, db: Any, timeout: float | None = None) -> None:
        raise AssertionError(db)

    def take_back(self, slot: Any) -> None:
        raise AssertionError(slot)


class Told:
    """What an observer was told of statements."""

    def __init__(self) -> None:
        self.failures: list[object] = []
        self.slow_ones: list[object] = []

    def failed(self, link: Link, sql: object, duration: float, error: psycopg2.Error) -> None:
        self.failures.append(sql)

    def slow(self, link: Link, sql: object, duration: float) -> None:
        self.slow_ones.append(sql)


@contextlib.asynccontextmanager
async def maintaining(dsn: str, told: Told | None = None, **settings: Any) -> AsyncIterator[Maintenance]:
    """Of connections to there, with a driver of its own. They are to be closed by the test."""
    async with driving(dsn, **settings) as driver:
        yield Maintenance(PoolConfig.build(dsn, **settings), driver, NoPool(), told or Told())


@contextlib.asynccontextmanager
async def maintained(dsn: str, told: Told | None = None, **settings: Any) -> AsyncIterator[tuple[Maintenance, Link]]:
    """And one of these connections."""
    async with maintaining(dsn, told, **settings) as maintenance:
        link = await maintenance.create()
        try:
            yield maintenance, link
        finally:
            link.close()


async def run(link: Link, sql: str) -> None:
    await link.run(link.cursor(), sql)


async def in_transaction(link: Link) -> None:
    await run(link, "BEGIN; INSERT INTO t VALUES (1)")
    assert link.status == IN_TRANSACTION


async def in_failed_transaction(link: Link) -> None:
    await run(link, "BEGIN; INSERT INTO t VALUES (1)")
    with pytest.raises(psycopg2.errors.DivisionByZero):
        await run(link, "SELECT 1/0")
    assert link.status == FAILED


async def with_a_statement_left(link: Link) -> None:
    task = asyncio.create_task(run(link, "WITH x AS (INSERT INTO t VALUES (1)) SELECT pg_sleep(60)"))
    await until(lambda: link.running_since, "the statement to run")
    task.cancel()
    await asyncio.wait((task,))
    assert link.executing


async def with_a_statement_left_in_a_transaction(link: Link) -> None:
    await in_transaction(link)
    await with_a_statement_left(link)


async def clean(link: Link) -> None:
    await run(link, "SELECT 1")
    assert link.clean


LEFT = [in_transaction, in_failed_transaction, with_a_statement_left, with_a_statement_left_in_a_transaction, clean]


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
async def test_restore(database: Database, leave: Any) -> None:
    """Whatever was left on it, the same connection is clean again, and nothing of it was written."""
    database.sql("CREATE TABLE t (id int)")
    async with maintained(database.dsn) as (maintenance, link):
        pid = await ask(link, "SELECT pg_backend_pid()")
        await leave(link)
        await maintenance.restore(link)
        assert link.clean
        assert await ask(link, "SELECT pg_backend_pid()") == pid
        assert await ask(link, "SELECT count(*) FROM t") == 0


async def test_restore_waits_for_a_cancel_under_way(database: Database) -> None:
    """A connection whose last statement has ended, and the request to cancel it is still under way, is kept."""
    with wired(database) as wire:
        wire.deaf_to_cancel = True
        async with maintained(wire.dsn) as (maintenance, link):
            await run(link, "SELECT 1")
            last = asyncio.ensure_future(run(link, "SELECT pg_sleep(0.1)"))
            await until(lambda: link.executing, "the statement to run")
            link.cancel()
            await last
            restored = asyncio.ensure_future(maintenance.restore(link))
            await until(lambda: wire.cancels, "the request")
            assert not restored.done()
            wire.deaf_to_cancel = False
            await restored
            assert link.clean


async def test_a_clean_connection_is_not_asked(database: Database) -> None:
    """With nothing to undo and no reset, nothing goes to the server."""
    async with maintained(database.dsn) as (maintenance, link):
        await run(link, "SELECT 'the last one'")
        await maintenance.restore(link)
        seen = database.sql("SELECT query FROM pg_stat_activity WHERE pid = %s", link.raw.get_backend_pid())
        assert seen == [("SELECT 'the last one'",)]


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
async def test_a_full_reset(database: Database, leave: Any) -> None:
    """``reset="full"`` forgets what the session was told, and on_connect tells it again, after on_release."""
    database.sql("CREATE TABLE t (id int)")
    order: list[str] = []

    async def on_connect(db: ScopedConnection) -> None:
        order.append("on_connect")
        await db.execute("SET work_mem = '77MB'")

    async def on_release(db: ScopedConnection) -> None:
        assert not db.in_transaction
        order.append("on_release")

    settings = {"reset": "full", "on_connect": on_connect, "on_release": on_release}
    async with maintained(database.dsn, **settings) as (maintenance, link):
        await run(link, "SET work_mem = '88MB'; SET statement_timeout = 0; CREATE TEMPORARY TABLE mine (id int)")
        await leave(link)
        await maintenance.restore(link)
        assert link.clean
        assert await ask(link, "SHOW work_mem") == "77MB"
        assert await ask(link, "SHOW statement_timeout") != "0"
        assert await ask(link, "SELECT to_regclass('mine')") is None
    assert order == ["on_connect", "on_release", "on_connect"]


async def test_a_reset_of_ones_own(dsn: str) -> None:
    """SQL as ``reset`` is run instead, and on_connect is not run again."""
    runs = []

    async def on_connect(db: ScopedConnection) -> None:
        runs.append(await db.fetchval("SELECT 1"))

    async with maintained(dsn, reset="RESET work_mem", on_connect=on_connect) as (maintenance, link):
        await run(link, "SET work_mem = '88MB'; SET lock_timeout = 99")
        await maintenance.restore(link)
        assert await ask(link, "SHOW work_mem") != "88MB"
        assert await ask(link, "SHOW lock_timeout") == "99ms"
    assert runs == [1]


async def test_a_hook_that_leaves_something(dsn: str) -> None:
    """on_release that leaves a transaction open is an error: whoever comes next would believe to have written."""

    async def on_release(db: ScopedConnection) -> None:
        await db.execute("BEGIN")

    async with maintained(dsn, on_release=on_release) as (maintenance, link):
        with pytest.raises(PoolScopeError, match="left a transaction, a stream or a statement open"):
            await maintenance.restore(link)


async def test_on_connect(dsn: str) -> None:
    """It runs once with a new connection, which has the observer, its limit and what comes before its statements."""
    told, came_first = Told(), []

    async def on_connect(db: ScopedConnection) -> None:
        await db.execute("SELECT pg_sleep(0.02)")

    async def before(link: Link, sql: object, timeout: float | None) -> float | None:
        came_first.append(sql)
        return timeout

    async with maintained(dsn, told, on_connect=on_connect, slow_threshold=0.01) as (maintenance, link):
        assert told.slow_ones == ["SELECT pg_sleep(0.02)"]
        maintenance.before.append(before)
        with pytest.raises(psycopg2.errors.DivisionByZero):
            await run(link, "SELECT 1/0")
        assert told.failures == came_first == ["SELECT 1/0"]


async def fails(db: ScopedConnection) -> None:
    await db.execute("SELECT 1/0")


async def is_wrong(db: ScopedConnection) -> None:
    raise LookupError("somebody's mistake")


async def is_slow(db: ScopedConnection) -> None:
    await db.execute("SELECT pg_sleep(60)")


async def is_too_patient(db: ScopedConnection) -> None:
    await asyncio.sleep(60)


FAILING = [
    (fails, r"on_connect failed: DivisionByZero \(22012\)"),
    (is_wrong, "the hook is_wrong failed: .*somebody's mistake"),
    (is_slow, r"on_connect failed: not done within 0\.2 s"),
    (is_too_patient, r"on_connect failed: not done within 0\.2 s"),
]


@pytest.mark.parametrize(("on_connect", "said"), FAILING, ids=lambda value: getattr(value, "__name__", ""))
async def test_on_connect_that_fails(database: Database, on_connect: Any, said: str) -> None:
    """One that raises, or does not end within ``connect_timeout``, closes the connection, and says why."""
    async with maintaining(database.dsn, on_connect=on_connect, connect_timeout=0.2) as maintenance:
        with pytest.raises(DatabaseUnavailable, match=said):
            await maintenance.create()
        await until(lambda: not database.backends(), "the end of the connection")


async def test_cancelled_in_on_connect(database: Database) -> None:
    """The connection of whoever is cancelled while on_connect runs is closed, too."""
    begun = asyncio.Event()

    async def on_connect(db: ScopedConnection) -> None:
        begun.set()
        await asyncio.sleep(60)

    async with maintaining(database.dsn, on_connect=on_connect) as maintenance:
        task = asyncio.create_task(maintenance.create())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not database.backends(), "the end of the connection")


async def test_ping(database: Database) -> None:
    """One round trip; on a connection that has died it is an error."""
    async with maintained(database.dsn) as (maintenance, link):
        await maintenance.ping(link)
        assert link.clean
        database.kill()
        with pytest.raises(DatabaseUnavailable):
            await maintenance.ping(link)
        assert link.closed
