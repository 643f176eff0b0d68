"""@transactional: the whole request as one transaction (R7)."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg2
import pytest
from aiohttp import ServerDisconnectedError, web

import aiohttp_poolscope as poolscope
from tests.conftest import Database, Serve, until


async def write(request: web.Request) -> None:
    await request["db"].execute("INSERT INTO notes VALUES ('written')")


async def returns_200(request: web.Request) -> Any:
    await write(request)
    return web.Response()


async def returns_302(request: web.Request) -> Any:
    await write(request)
    return web.Response(status=302)


async def returns_399(request: web.Request) -> Any:
    await write(request)
    return web.Response(status=399)


async def raises_302(request: web.Request) -> Any:
    await write(request)
    raise web.HTTPFound("/elsewhere")


async def raises_204(request: web.Request) -> Any:
    await write(request)
    raise web.HTTPNoContent


async def returns_400(request: web.Request) -> Any:
    await write(request)
    return web.Response(status=400)


async def returns_503(request: web.Request) -> Any:
    await write(request)
    return web.Response(status=503)


async def raises_404(request: web.Request) -> Any:
    await write(request)
    raise web.HTTPNotFound


async def raises(request: web.Request) -> Any:
    await write(request)
    raise RuntimeError("a mistake in the handler")


async def returns_rubbish(request: web.Request) -> Any:
    await write(request)
    return "rubbish"


async def returns_nothing(request: web.Request) -> Any:
    await write(request)


async def fails_in_the_database(request: web.Request) -> Any:
    await write(request)
    await request["db"].execute("SELECT 1/0")


async def hides_a_failure(request: web.Request) -> Any:
    await write(request)
    try:
        await request["db"].execute("SELECT 1/0")
    except psycopg2.Error:
        return web.Response()


@pytest.fixture
def notes(database: Database) -> Database:
    database.sql("CREATE TABLE notes (text text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
    return database


@pytest.mark.parametrize(
    ("handler", "status", "written"),
    [
        (returns_200, 200, 1),
        (returns_302, 302, 1),
        (returns_399, 399, 1),
        (raises_302, 302, 1),
        (raises_204, 204, 1),
        (returns_400, 400, 0),
        (returns_503, 503, 0),
        (raises_404, 404, 0),
        (raises, 500, 0),
        (returns_rubbish, 500, 0),
        (returns_nothing, 500, 0),
        (fails_in_the_database, 500, 0),
        (hides_a_failure, 500, 0),
    ],
)
async def test_commit_below_400_and_rollback_otherwise(
    dsn: str, serve: Serve, *, notes: Database, handler: Any, status: int, written: int
) -> None:
    """R7: what the client is told and what is in the database agree; the answer itself is left as it is."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", poolscope.transactional(handler))
    async with serve(app) as served:
        assert await served.status(allow_redirects=False) == status
        assert notes.sql("SELECT count(*) FROM notes") == [(written,)]
        assert scope.stats().in_use == 0
        assert scope.stats().opened == 1


@pytest.mark.parametrize("mark", [poolscope.transactional, poolscope.eager, poolscope.no_connection])
@pytest.mark.parametrize("draining", [False, True])
async def test_a_handler_without_a_return(
    dsn: str, serve: Serve, caplog: pytest.LogCaptureFixture, mark: Any, *, draining: bool
) -> None:
    """The complaint is aiohttp's own, also while the pool drains."""
    app = web.Application()
    scope = poolscope.setup(app, dsn)

    async def handler(request: web.Request) -> None:
        if draining:
            scope.begin_drain()

    app.router.add_get("/", mark(handler))
    async with serve(app) as served:
        assert await served.status() == 500
    assert "Missing return statement on request handler" in caplog.messages
    assert "web/middleware.py" not in caplog.text  # no error of ours


async def test_a_refused_commit_is_no_success(dsn: str, serve: Serve, notes: Database) -> None:
    """R7: if COMMIT itself fails (a deferred constraint), the handler's 200 does not go out."""

    @poolscope.transactional
    async def handler(request: web.Request) -> web.Response:
        await write(request)
        await write(request)
        return web.Response(text="all is well")

    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        status, text = await served.get()
        assert status == 500
        assert "all is well" not in text
        assert notes.sql("SELECT count(*) FROM notes") == [(0,)]


async def test_nothing_is_visible_before_the_commit(dsn: str, serve: Serve, notes: Database) -> None:
    """R7: the commit comes after the handler and before the answer."""
    inside: list[Any] = []

    @poolscope.transactional
    async def handler(request: web.Request) -> web.Response:
        await write(request)
        inside.extend(notes.sql("SELECT count(*) FROM notes"))
        inside.append(request["db"].in_transaction)
        return web.Response()

    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 200
        assert notes.sql("SELECT count(*) FROM notes") == [(1,)]
        assert inside == [(0,), True]


async def test_a_cancelled_request_is_rolled_back(dsn: str, serve: Serve, notes: Database) -> None:
    """R7: cancelled between two statements, nothing of it is written."""

    @poolscope.transactional
    async def handler(request: web.Request) -> web.Response:
        await write(request)
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(60)
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        with pytest.raises(ServerDisconnectedError):
            await served.status()
        await until(lambda: not scope.stats().in_use, "the connection's return")
        assert notes.sql("SELECT count(*) FROM notes") == [(0,)]


async def test_the_server_sees_the_options(dsn: str, serve: Serve) -> None:
    """R7: isolation, readonly and deferrable are those of the transaction, on functions, views and methods."""
    asked = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")

    async def tells(request: web.Request) -> web.Response:
        found = [await request["db"].fetchval(f"SHOW {name}") for name in asked]
        return web.Response(text=", ".join(found))

    class View(web.View):
        @poolscope.transactional(isolation="repeatable read")
        async def get(self) -> web.Response:
            return await tells(self.request)

        async def post(self) -> web.Response:
            return await tells(self.request)

    app = web.Application()
    poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/plain", tells)
    app.router.add_view("/method", View)
    marked = poolscope.transactional(isolation="serializable", readonly=True, deferrable=True)

    @marked
    async def function(request: web.Request) -> web.Response:
        return await tells(request)

    @poolscope.transactional(readonly=True)
    class Whole(web.View):
        async def get(self) -> web.Response:
            return await tells(self.request)

    app.router.add_get("/function", function)
    app.router.add_view("/class", Whole)
    async with serve(app) as served:
        assert await served.get("/function") == (200, "serializable, on, on")
        assert await served.get("/method") == (200, "repeatable read, off, off")
        assert await served.get("/class") == (200, "read committed, on, off")
        assert await served.get("/plain") == (200, "read committed, off, off")
        async with served.client.post(served.url / "method") as response:
            assert await response.text() == "read committed, off, off"


async def test_writing_in_a_readonly_request_fails(dsn: str, serve: Serve, notes: Database) -> None:
    """R7: readonly is kept by the server."""
    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_get("/", poolscope.transactional(readonly=True)(returns_200))
    async with serve(app) as served:
        assert await served.status() == 500
        assert notes.sql("SELECT count(*) FROM notes") == [(0,)]


@pytest.mark.parametrize("mark", [poolscope.lazy, poolscope.eager])
async def test_it_goes_with_the_other_marks(dsn: str, serve: Serve, notes: Database, mark: Any) -> None:
    """Marks add up, in whatever order they are written."""
    app = web.Application()
    scope = poolscope.setup(app, dsn)

    async def handler(request: web.Request) -> web.Response:
        await write(request)
        return web.json_response(request["db"].in_transaction)

    app.router.add_get("/", mark(poolscope.transactional(handler)))
    async with serve(app) as served:
        assert await served.get() == (200, "true")
        assert scope.stats().in_use == 0
        assert notes.sql("SELECT count(*) FROM notes") == [(1,)]


async def test_a_release_inside_is_an_error(dsn: str, serve: Serve, notes: Database) -> None:
    """An early release would cut the transaction in two: it is refused, and nothing is written."""

    @poolscope.transactional
    async def handler(request: web.Request) -> web.Response:
        await write(request)
        request["db"].release()
        return web.Response()

    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 500
        assert notes.sql("SELECT count(*) FROM notes") == [(0,)]


def test_an_unknown_isolation_is_refused_where_it_is_written() -> None:
    """A misspelt isolation level fails when the module is imported, not at the first request."""
    with pytest.raises(ValueError, match=r"transactional\(isolation='serialisable'\): must be one of"):
        poolscope.transactional(isolation="serialisable")  # type: ignore[call-overload]
