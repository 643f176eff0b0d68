"""PoolScope: its key in the request, its states, and what it says when it is used wrongly."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.conftest import Database, Serve, until


async def answer_42(request: web.Request) -> web.Response:
    return web.json_response(await request["db"].fetchval("SELECT 41 + %s", (1,)))


async def test_setup_gives_each_request_a_connection(dsn: str, serve: Serve, cancellation: bool) -> None:
    """setup() is all it takes: request["db"] runs a statement, and comes back."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2)
    app.router.add_get("/", answer_42)
    async with serve(app, handler_cancellation=cancellation) as served:
        assert await served.get() == (200, "42")
        assert scope.stats().in_use == 0


async def test_the_explicit_pair_does_the_same(dsn: str, serve: Serve) -> None:
    """scope.middleware and scope.cleanup_ctx, put in place by hand, are enough."""
    scope = poolscope.PoolScope(dsn)
    app = web.Application(middlewares=[scope.middleware])
    app.cleanup_ctx.append(scope.cleanup_ctx)
    app.router.add_get("/", answer_42)
    async with serve(app) as served:
        assert await served.get() == (200, "42")
        assert scope.stats().in_use == 0


async def test_from_env_makes_a_scope(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service configured by its environment alone works."""
    monkeypatch.setenv("DB_URL", dsn)
    monkeypatch.setenv("DB_POOL_MAX", "3")
    app = web.Application()
    scope = poolscope.PoolScope.from_env().setup(app)
    app.router.add_get("/", answer_42)
    async with serve(app) as served:
        assert await served.get() == (200, "42")
        assert scope.stats().maxsize == 3


@pytest.mark.parametrize("key", ["db", "reports"])
async def test_string_and_typed_key_are_one_entry(
    dsn: str, serve: Serve, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """request["db"] and request[scope.key] are one entry, and nothing warns, however warnings are filtered."""
    monkeypatch.setattr(web.BaseRequest, "_seen_str_keys", set())
    found: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        assert request[key] is request[scope.key]
        assert (key in request, scope.key in request) == (True, True)
        found.extend(request)
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, key=key)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", web.NotAppKeyWarning)
            assert await served.status() == 200
        assert [w for w in caught if issubclass(w.category, web.NotAppKeyWarning)] == []
    assert found == [key]
    assert isinstance(found[0], web.RequestKey)


async def test_several_scopes_live_in_one_app(dsn: str, serve: Serve) -> None:
    """Two scopes give a request two connections of two pools."""

    async def handler(request: web.Request) -> web.Response:
        sql = "SELECT pg_backend_pid(), current_setting('application_name')"
        (one, first), (other, second) = await request["db"].fetchrow(sql), await request["reports"].fetchrow(sql)
        assert one != other
        return web.json_response([first.partition("@")[0], second.partition("@")[0]])

    app = web.Application()
    db = poolscope.setup(app, dsn)
    reports = poolscope.setup(app, dsn, key="reports")
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.get() == (200, '["db", "reports"]')
        assert (db.stats().in_use, reports.stats().in_use) == (0, 0)
        assert (db.stats().lease.count, reports.stats().lease.count) == (1, 1)


async def test_states_follow_the_life_of_the_application(dsn: str) -> None:
    """starting, serving, draining, closed; the repr says it with the numbers."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, minsize=2, maxsize=5)
    assert scope.state == "starting"
    assert repr(scope) == "<PoolScope 'db' starting: 0 in use, 0 idle, 0 waiting of 5>"
    runner = web.AppRunner(app)
    await runner.setup()
    assert scope.state == "serving"
    async with scope.acquire():
        assert repr(scope) == "<PoolScope 'db' serving: 1 in use, 1 idle, 0 waiting of 5>"
        scope.begin_drain()
        scope.begin_drain()
        assert scope.state == "draining"
    await runner.cleanup()
    assert scope.state == "closed"
    assert repr(scope) == "<PoolScope 'db' closed: 0 in use, 0 idle, 0 waiting of 5>"


async def test_a_missing_cleanup_context_is_a_clear_error(
    serve: Serve, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the middleware but no cleanup context, requests get 500 and the log says what to do."""
    scope = poolscope.PoolScope(dsn)
    app = web.Application(middlewares=[scope.middleware])
    app.router.add_get("/", answer_42)
    async with serve(app) as served:
        assert await served.status() == 500
    assert "use scope.setup(app), or append scope.cleanup_ctx" in caplog.text


async def test_use_before_the_start_is_a_clear_error(dsn: str) -> None:
    """Before the application runs, the scope says so."""
    scope = poolscope.PoolScope(dsn)
    with pytest.raises(poolscope.PoolScopeError, match=r"'db' is not started: use scope\.setup"):
        scope.acquire()
    with pytest.raises(poolscope.PoolScopeError, match="not started"):
        await scope.fetchval("SELECT 1")
    with pytest.raises(poolscope.PoolScopeError, match="not started"):
        scope.expire()
    scope.begin_drain()
    assert (scope.stats().size, scope.leases(), scope.state) == (0, (), "starting")


async def test_use_after_the_end_is_a_clear_error(dsn: str, make_scope: Any) -> None:
    """After the application has stopped, the scope says so; asking for numbers stays harmless."""
    async with make_scope() as scope:
        assert await scope.fetchval("SELECT 1") == 1
    with pytest.raises(poolscope.ShuttingDown, match="'db' is shutting down or closed"):
        await scope.fetchval("SELECT 1")
    with pytest.raises(poolscope.ShuttingDown):
        scope.acquire()
    scope.begin_drain()
    assert (scope.stats().size, scope.leases()) == (0, ())


async def test_a_second_run_with_the_same_scope(dsn: str, serve: Serve, database: Database) -> None:
    """S5: the same scope serves a new application in the same process, with new connections."""
    scope = poolscope.PoolScope(dsn)
    for _ in range(2):
        app = web.Application()
        scope.setup(app)
        app.router.add_get("/", answer_42)
        async with serve(app) as served:
            assert scope.state == "serving"
            assert await served.get() == (200, "42")
            assert scope.stats().opened == 1
        assert scope.state == "closed"
        await until(lambda: not database.backends(), "the backends' end")


async def test_the_drain_begins_before_the_other_shutdown_hooks(dsn: str, serve: Serve) -> None:
    """The pool drains from the first moment of the shutdown, also when it was put in place by hand."""
    seen: list[str] = []

    async def slow_hook(_: web.Application) -> None:
        seen.extend(scope.state for scope in scopes)

    app = web.Application()
    app.on_shutdown.append(slow_hook)
    scopes = [poolscope.setup(app, dsn), poolscope.PoolScope(dsn, key="reports")]
    app.middlewares.append(scopes[1].middleware)
    app.cleanup_ctx.append(scopes[1].cleanup_ctx)
    async with serve(app):
        pass
    assert seen == ["draining", "draining"]


async def test_expire_replaces_every_connection(make_scope: Any) -> None:
    """expire(): what is idle is closed now, what is lent when it comes back; the lease itself is not disturbed."""
    async with make_scope(minsize=2) as scope:
        async with scope.acquire() as db:
            lent = await db.fetchval("SELECT pg_backend_pid()")
            scope.expire()
            assert await db.fetchval("SELECT pg_backend_pid()") == lent
        await until(lambda: scope.stats().closed == 2 and scope.stats().idle == 2, "two new connections")
        assert await scope.fetchval("SELECT pg_backend_pid()") != lent


async def test_check_is_one_round_trip(make_scope: Any, database: Database) -> None:
    """check() answers with the seconds it took, and with DatabaseUnavailable if there is no answer."""
    async with make_scope(maxsize=1, acquire_timeout=0.05) as scope:
        assert 0 < await scope.check() < 5
        async with scope.acquire():
            with pytest.raises(poolscope.DatabaseUnavailable, match=r"check failed: pool 'db': no connection"):
                await scope.check()
        async with asyncio.timeout(5):
            assert await scope.check() > 0
