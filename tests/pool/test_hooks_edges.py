"""Hooks that leave something behind, hang, or hold on to their cancellation."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.errors import DatabaseUnavailable, PoolExhausted, PoolScopeError, QueryTimeout
from aiohttp_poolscope.pool import pool as pool_module
from tests.conftest import DEADLINE, Database, Serve, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PID = "SELECT pg_backend_pid()"

LEFT_OPEN = "left a transaction, a stream or a statement open"


class Untidy:
    """Hooks that leave something open, as long as ``untidy``; and what they were given, by its backend."""

    def __init__(self) -> None:
        self.untidy = True
        self.pids: list[int] = []
        self.tasks: list[asyncio.Task[Any]] = []

    async def transaction(self, db: Any) -> None:
        await db.execute("BEGIN; SET LOCAL work_mem = '8MB'")

    async def stream(self, db: Any) -> None:
        async for _ in db.stream("SELECT generate_series(1, 9)", size=2):
            break

    async def statement(self, db: Any) -> None:
        """Abandons one."""
        await self.awaited(db)
        self.tasks[-1].cancel()
        await asyncio.wait(self.tasks)

    async def awaited(self, db: Any) -> None:
        """Leaves a task behind that awaits one."""
        self.tasks.append(asyncio.ensure_future(db.execute("SELECT pg_sleep(30)")))
        await until(lambda: db._link.running_since)

    def hook(self, what: str) -> Any:
        async def hook(db: Any) -> None:
            if self.untidy:
                self.pids.append(await db.fetchval(PID))
                await getattr(self, what)(db)

        return hook

    async def ended(self) -> None:
        """The tasks that were left behind have got an error."""
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def _things(database: Database) -> Iterator[None]:
    database.sql("CREATE TABLE things (n int)")
    return


LEFTOVERS = ["transaction", "stream", "statement", "awaited"]


@pytest.mark.parametrize("what", LEFTOVERS)
async def test_on_connect_that_leaves_something_open(make_scope: Any, database: Database, what: str) -> None:
    """on_connect that leaves a transaction, a stream or a statement open fails the start, which says so."""
    untidy = Untidy()
    with pytest.raises(DatabaseUnavailable, match=LEFT_OPEN):
        async with make_scope(on_connect=untidy.hook(what)) as scope:
            await scope.execute("INSERT INTO things VALUES (1)")
    await untidy.ended()
    await until(lambda: not database.backends(), "the end of its connection")


@pytest.mark.parametrize("what", LEFTOVERS)
async def test_on_acquire_that_leaves_something_open(make_scope: Any, database: Database, what: str) -> None:
    """on_acquire that leaves something open is an error for the borrower, and its connection is closed."""
    untidy = Untidy()
    async with make_scope(maxsize=1, on_acquire=untidy.hook(what)) as scope:
        with pytest.raises(PoolScopeError, match=LEFT_OPEN):
            await scope.execute("INSERT INTO things VALUES (1)")
        await untidy.ended()
        untidy.untidy = False
        async with scope.transaction() as tx:
            await tx.execute("INSERT INTO things VALUES (2)")
        assert (scope.stats().opened, scope.stats().closed) == (2, 1)
    assert database.sql("SELECT n FROM things") == [(2,)]


@pytest.mark.parametrize("what", LEFTOVERS)
async def test_on_release_that_leaves_something_open(make_scope: Any, database: Database, what: str) -> None:
    """After on_release that leaves something open nobody gets that connection, and nothing written is lost."""
    untidy = Untidy()
    async with make_scope(maxsize=1, on_release=untidy.hook(what)) as scope:
        await scope.execute("INSERT INTO things VALUES (1)")
        await scope.execute("INSERT INTO things VALUES (2)")
        await until(lambda: len(untidy.pids) == 2, "both releases")
        await untidy.ended()
        assert len(set(untidy.pids)) == 2
    assert database.sql("SELECT n FROM things ORDER BY n") == [(1,), (2,)]


@contextlib.asynccontextmanager
async def _running(scope: poolscope.PoolScope, stubborn: Stubborn) -> Any:
    """A pool that runs, and ends within the deadline whatever a hook does; then the hook is let go."""
    block = scope.running()
    await block.__aenter__()
    try:
        yield
    finally:
        ending = asyncio.ensure_future(block.__aexit__(None, None, None))
        done, _ = await asyncio.wait([ending], timeout=DEADLINE)
        stubborn.go.set()
        await asyncio.wait([ending])
        assert done, "the shutdown hangs"


class Stubborn:
    """A hook that swallows every cancellation until it may ``go``."""

    def __init__(self) -> None:
        self.inside, self.go = asyncio.Event(), asyncio.Event()
        self.swallowed = 0

    async def __call__(self, db: Any) -> None:
        self.inside.set()
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.swallowed += 1


async def test_a_repair_that_swallows_its_cancellation(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """on_release that holds on to its cancellation cannot hang the shutdown; the log names it."""
    monkeypatch.setattr(pool_module, "CLOSE_LIMIT", 0.1)
    stubborn = Stubborn()
    scope = poolscope.PoolScope(dsn, maxsize=1, on_release=stubborn, drain_grace=0.05, drain_timeout=0.1)
    async with _running(scope, stubborn):
        pool = scope._open_pool()
        await scope.fetchval("SELECT 1")
        await stubborn.inside.wait()
    assert stubborn.swallowed
    assert "poolscope db: recycle does not end" in caplog.text
    await until(lambda: not list(pool.tasks), "the end of the hook")


async def test_an_opener_that_swallows_its_cancellation(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """on_connect that holds on to its cancellation cannot hang the shutdown; its connection is closed in the end."""
    monkeypatch.setattr(pool_module, "CLOSE_LIMIT", 0.1)
    stubborn = Stubborn()
    settings: dict[str, Any] = {"connect_at_start": False, "drain_grace": 0.05, "drain_timeout": 0.1}
    scope = poolscope.PoolScope(dsn, maxsize=1, on_connect=stubborn, **settings)
    async with _running(scope, stubborn):
        pool = scope._open_pool()
        await stubborn.inside.wait()
    assert stubborn.swallowed
    assert "poolscope db: opener does not end" in caplog.text
    await until(lambda: not list(pool.tasks), "the end of the hook")


async def cancelled_by_the_server(db: Any) -> None:
    """A statement on raw that the server cancels: aiopg raises that as a CancelledError."""
    # aiopg also complains to the loop, each time.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    cursor = await db.raw.cursor()
    await cursor.execute("SET statement_timeout = 10")
    await cursor.execute("SELECT pg_sleep(30)")


async def test_a_statement_of_on_connect_that_the_server_cancels_at_the_start(make_scope: Any) -> None:
    """A server that cancels a statement which on_connect runs on raw fails the start with a message."""
    with pytest.raises(DatabaseUnavailable, match="cancelled by the server"):
        async with make_scope(on_connect=cancelled_by_the_server):
            pass


async def test_a_statement_of_on_connect_that_the_server_cancels_later(make_scope: Any) -> None:
    """Cancelled by the server in on_connect, the opener counts a failure, says why, and goes on."""
    failing = True

    async def on_connect(db: Any) -> None:
        if failing:
            await cancelled_by_the_server(db)

    settings = {"connect_at_start": False, "breaker_failures": 2, "breaker_reset": 0.05}
    async with make_scope(on_connect=on_connect, **settings) as scope:
        with pytest.raises(DatabaseUnavailable, match="cancelled by the server"):
            await scope.fetchval("SELECT 1")
        assert scope._run.pool.opener.breaker.failures >= 2
        failing = False
        await until(lambda: scope.stats().idle, "its going on")
        assert await scope.fetchval("SELECT 1") == 1


async def test_a_statement_of_on_acquire_that_the_server_cancels(make_scope: Any) -> None:
    """Cancelled by the server in on_acquire, the borrower gets a QueryTimeout and is not cancelled itself."""
    async with make_scope(maxsize=1, on_acquire=cancelled_by_the_server) as scope:
        with pytest.raises(QueryTimeout, match="cancelled by the server"):
            await scope.fetchval("SELECT 1")
        await until(lambda: scope.stats().closed == 1, "the end of its connection")


async def test_on_acquire_that_hangs(dsn: str, serve: Serve) -> None:
    """on_acquire is part of the borrow: after acquire_timeout it is a 503, and its connection is closed."""
    pids: list[int] = []

    async def on_acquire(db: Any) -> None:
        pids.append(await db.fetchval(PID))
        if len(pids) == 1:
            await asyncio.Event().wait()

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval(PID)))

    app = web.Application()
    poolscope.setup(app, dsn, maxsize=1, on_acquire=on_acquire, acquire_timeout=0.3, drain_grace=0.1)
    app.router.add_get("/", handler)
    async with serve(app) as served, asyncio.timeout(DEADLINE):
        assert await served.status() == 503
        assert await served.get() == (200, str(pids[1]))
        assert pids[0] != pids[1]


async def test_on_acquire_that_hangs_outside_of_requests(make_scope: Any) -> None:
    """A borrow's own timeout counts for on_acquire too, and the error names the hook."""

    async def hanging(db: Any) -> None:
        await asyncio.Event().wait()

    async with make_scope(maxsize=1, on_acquire=hanging, drain_grace=0.1) as scope, asyncio.timeout(DEADLINE):
        with pytest.raises(PoolExhausted, match=r"on_acquire \(.*hanging\)"):
            await scope.acquire(timeout=0.1)
        assert scope.stats().in_use == 0


@pytest.mark.parametrize("name", ["on_connect", "on_acquire", "on_release"])
async def test_a_hook_that_is_cancelled_by_itself(make_scope: Any, name: str) -> None:
    """CancelledError, and nobody has cancelled anything: the hook has failed, and is told of as any other failure."""
    spoiled = False

    async def hook(db: Any) -> None:
        if spoiled:
            raise asyncio.CancelledError

    async with make_scope(maxsize=1, acquire_timeout=5, **{name: hook}) as scope:
        spoiled = True
        if name == "on_connect":
            scope.expire()
        if name != "on_release":
            with pytest.raises(DatabaseUnavailable, match="was cancelled, by itself"):
                await scope.fetchval("SELECT 1")
        else:
            closed: list[Any] = []
            scope.on_event(closed.append, poolscope.events.Closed)
            await scope.fetchval("SELECT 1")
            await until(lambda: closed, "the end of the connection")
            assert closed[0].reason == "failed"
        spoiled = False
        if name == "on_connect":
            assert scope.stats().connect_failed
            await until(lambda: scope.stats().breaker == "closed", "the next attempt")
        assert await scope.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("acquire", ["eager", "lazy"])
async def test_on_acquire_survives_its_connection(dsn: str, serve: Serve, acquire: str) -> None:
    """Whoever borrowed is told that the database is away, in whichever way."""

    async def hook(db: Any) -> None:
        with contextlib.suppress(Exception):
            await db.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval("SELECT 1")))

    app = web.Application()
    poolscope.setup(app, dsn, on_acquire=hook, acquire=acquire)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        status, said = await served.get("/")
    assert status == 503
    assert "database-unavailable" in said
