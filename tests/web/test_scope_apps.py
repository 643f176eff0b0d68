"""One scope or several, in applications inside applications."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.conftest import Database, Serve, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def name(request: web.Request) -> web.Response:
    """Which database, by which pool, and how many connections the process has."""
    return web.Response(text=await request["db"].fetchval("SELECT current_setting('application_name')"))


def sub_application(*middlewares: Any) -> web.Application:
    sub = web.Application(middlewares=middlewares)
    sub.router.add_get("/", name)
    return sub


async def test_a_sub_application_inherits(dsn: str, serve: Serve) -> None:
    """A scope of the outer application serves the inner ones."""
    app, sub, deeper = web.Application(), sub_application(), sub_application()
    scope = poolscope.setup(app, dsn, application_name="outer")
    sub.add_subapp("/deeper", deeper)
    app.add_subapp("/sub", sub)
    async with serve(app) as served:
        assert await served.get("/sub/") == (200, "outer")
        assert await served.get("/sub/deeper/") == (200, "outer")
        assert scope.stats().in_use == 0


async def test_a_sub_application_has_a_scope_of_its_own(dsn: str, serve: Serve, database: Database) -> None:
    """A scope of the inner application serves only that one, and is closed with it."""
    app, sub = web.Application(), sub_application()
    scope = poolscope.setup(sub, dsn, application_name="inner")
    app.add_subapp("/sub", sub)

    async def outside(request: web.Request) -> web.Response:
        return web.json_response("db" in request)

    app.router.add_get("/", outside)
    async with serve(app) as served:
        assert await served.get("/sub/") == (200, "inner")
        assert await served.get("/") == (200, "false")
        assert scope.stats().in_use == 0
    assert scope.state == "closed"
    await until(lambda: not database.backends(), "the end of the connections")


async def test_outer_and_inner_scope_with_keys_of_their_own(dsn: str, serve: Serve) -> None:
    """Scopes with different keys do not disturb each other."""

    async def both(request: web.Request) -> web.Response:
        sql = "SELECT current_setting('application_name')"
        return web.json_response([await request[key].fetchval(sql) for key in ("db", "reports")])

    app, sub = web.Application(), web.Application()
    poolscope.setup(app, dsn, application_name="outer")
    poolscope.setup(sub, dsn, application_name="inner", key="reports")
    sub.router.add_get("/", both)
    app.add_subapp("/sub", sub)
    async with serve(app) as served:
        assert await served.get("/sub/") == (200, '["outer", "inner"]')


async def test_the_inner_scope_wins_over_an_outer_one_of_the_same_key(dsn: str, serve: Serve) -> None:
    """Never the wrong database: inside, the key means the inner scope; around it, the outer one again."""
    seen: list[str] = []

    @web.middleware
    async def watching(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        seen.append(await request["db"].fetchval("SELECT current_setting('application_name')"))
        return response

    app, sub = web.Application(), sub_application()
    outer = poolscope.setup(app, dsn, application_name="outer")
    app.middlewares.append(watching)
    inner = poolscope.setup(sub, dsn, application_name="inner")
    app.add_subapp("/sub", sub)
    async with serve(app) as served:
        assert await served.get("/sub/") == (200, "inner")
        assert seen == ["outer"]
        assert (outer.stats().in_use, inner.stats().in_use) == (0, 0)


async def test_one_scope_in_outer_and_inner_application(dsn: str, serve: Serve) -> None:
    """A13: set up in both, there is one pool, and a request borrows once."""
    app, sub = web.Application(), sub_application()
    app.router.add_get("/", name)
    scope = poolscope.PoolScope(dsn, maxsize=1, acquire_timeout=0.2)
    scope.setup(app)
    scope.setup(sub)
    app.add_subapp("/sub", sub)
    async with serve(app) as served:
        before = scope.stats().lent
        assert await served.status("/sub/") == 200
        assert await served.status("/") == 200
        assert scope.stats().lent - before == 2
        assert scope.stats().size == 1
    assert scope.state == "closed"


async def test_the_shared_pool_lives_until_the_last_context_ends(dsn: str, serve: Serve) -> None:
    """A13: the outer cleanup contexts end first; the pool is there until the inner ones have ended too."""
    seen: list[str] = []

    async def watching(app: web.Application) -> AsyncIterator[None]:
        yield
        seen.append(scope.state)

    app, sub = web.Application(), sub_application()
    scope = poolscope.PoolScope(dsn)
    for each in (app, sub):
        each.cleanup_ctx.append(watching)  # ends after the scope's
        scope.setup(each)
    app.add_subapp("/sub", sub)
    async with serve(app) as served:
        assert await served.status("/sub/") == 200
    assert seen == ["draining", "closed"]


async def test_the_explicit_pair_in_a_sub_application(dsn: str, serve: Serve, database: Database) -> None:
    """Middleware and context put into a sub-application by hand work, and end with it."""
    scope = poolscope.PoolScope(dsn, application_name="inner")
    app, sub = web.Application(), sub_application(scope.middleware)
    sub.cleanup_ctx.append(scope.cleanup_ctx)
    app.add_subapp("/sub", sub)
    async with serve(app) as served:
        assert await served.get("/sub/") == (200, "inner")
    assert scope.state == "closed"
    await until(lambda: not database.backends(), "the end of the connections")


async def test_the_middleware_outside_and_the_context_inside(dsn: str, serve: Serve) -> None:
    """The pool may live in another application than the middleware: what counts is the scope object."""
    scope = poolscope.PoolScope(dsn, application_name="shared")
    app, sub = web.Application(middlewares=[scope.middleware]), sub_application()
    sub.cleanup_ctx.append(scope.cleanup_ctx)
    app.add_subapp("/sub", sub)
    app.router.add_get("/", name)
    async with serve(app) as served:
        assert await served.get("/") == (200, "shared")
        assert await served.get("/sub/") == (200, "shared")


async def test_the_drain_begins_with_the_shutdown_of_a_sub_application(dsn: str, serve: Serve) -> None:
    """setup() in a sub-application drains from the first moment of the shutdown too."""
    seen: list[str] = []

    async def hook(_: web.Application) -> None:
        seen.append(scope.state)

    app, sub = web.Application(), sub_application()
    sub.on_shutdown.append(hook)
    scope = poolscope.setup(sub, dsn)
    app.add_subapp("/sub", sub)
    async with serve(app):
        pass
    assert seen == ["draining"]


async def test_one_of_two_applications_ends(dsn: str, serve: Serve) -> None:
    """Two applications of one scope in one process: the end of one is no end for the other, but that of both is."""
    scope = poolscope.PoolScope(dsn, application_name="both")
    apps = [sub_application(), sub_application()]
    for app in apps:
        scope.setup(app)
    async with serve(apps[0]) as first:
        async with serve(apps[1]) as second:
            assert await second.get("/") == (200, "both")
        assert await first.get("/") == (200, "both")
        assert scope.state == "serving"
    assert scope.state == "closed"


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_start_while_the_last_run_drains(dsn: str, serve: Serve, *, by_hand: bool) -> None:
    """The next application of the same scope waits for the end of the last one, and then has a pool of its own."""
    scope = poolscope.PoolScope(dsn, application_name="again", drain_grace=5, connect_at_start=False)
    before, after = sub_application(), sub_application()
    for app in (before, after):
        scope.setup(app)
    runner = web.AppRunner(before)
    await runner.setup()
    held = await scope.acquire()
    if by_hand:  # the start has waited for longer than the end of the application has
        scope.begin_drain()
        asyncio.get_running_loop().call_later(0.05, lambda: endings.append(asyncio.create_task(runner.cleanup())))
        endings: list[asyncio.Task[None]] = []
    else:
        endings = [asyncio.create_task(runner.cleanup())]
        await until(lambda: scope.state == "draining", "the drain")
    asyncio.get_running_loop().call_later(0.1, held.release)
    async with serve(after) as served:
        await asyncio.gather(*endings)
        assert scope.state == "serving"
        assert await served.get("/") == (200, "again")
    assert scope.state == "closed"
