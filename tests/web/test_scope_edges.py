"""A scope whose application holds a connection itself, that starts twice at once, or is asked by strange methods."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from aiohttp import web, web_protocol
from aiohttp.http_parser import HttpRequestParserPy

import aiohttp_poolscope as poolscope
from tests.conftest import Audit, Database, Serve, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


async def test_the_application_itself_holds_a_connection(dsn: str, database: Database) -> None:
    """A connection that start-up code holds is taken away at the end; the task that shuts down is not cancelled."""
    log: list[str] = []
    held: list[Any] = []

    async def start(_: web.Application) -> None:
        held.append(await scope.acquire())

    async def end(_: web.Application) -> None:
        log.append("on_cleanup")
        held[0].release()

    async def context(_: web.Application) -> AsyncIterator[None]:
        yield
        log.append("another context")

    app = web.Application()
    app.cleanup_ctx.append(context)  # ends after the scope's
    scope = poolscope.setup(app, dsn, drain_grace=0.05, drain_timeout=0.2)
    app.on_startup.append(start)
    app.on_cleanup.append(end)

    async def life() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        await runner.cleanup()
        log.append("the end")

    task = asyncio.ensure_future(life())
    await asyncio.wait([task])
    assert not task.cancelled()
    task.result()
    assert log == ["another context", "on_cleanup", "the end"]
    assert held[0].closed


async def test_one_scope_in_two_applications_that_start_at_once(dsn: str, database: Database, audit: Audit) -> None:
    """Two applications of one scope that start at once have one pool, which ends with the last of them."""
    scope = poolscope.PoolScope(dsn, minsize=2)
    runners = []
    for _ in range(2):
        app = web.Application()
        scope.setup(app)
        runners.append(web.AppRunner(app))
    await asyncio.gather(*(runner.setup() for runner in runners))
    assert len(database.backends()) == 2
    assert len(audit.runs) == 1
    await asyncio.gather(*(runner.cleanup() for runner in runners))
    assert scope.state == "closed"
    await until(lambda: not database.backends(), "the end of the connections")


async def test_of_two_that_start_at_once_the_first_fails(dsn: str, database: Database, audit: Audit) -> None:
    """Of two applications that start at once the second has its pool although the first could not start."""
    calls = 0

    async def on_connect(_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError("not the first")

    scope = poolscope.PoolScope(dsn, on_connect=on_connect)
    runners = []
    for _ in range(2):
        app = web.Application()
        scope.setup(app)
        runners.append(web.AppRunner(app))
    failed, started = await asyncio.gather(*(runner.setup() for runner in runners), return_exceptions=True)
    assert isinstance(failed, poolscope.DatabaseUnavailable)
    assert started is None
    assert await scope.fetchval("SELECT 42") == 42
    await asyncio.gather(*(runner.cleanup() for runner in runners))
    assert scope.state == "closed"


async def test_methods_that_clients_make_up(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many HTTP methods clients make up, what the scope remembers does not grow."""
    monkeypatch.setattr(web_protocol, "HttpRequestParser", HttpRequestParserPy)  # the one in C knows its methods

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_route("*", "/", handler)
    async with serve(app) as served:
        for number in range(20):
            async with served.client.request(f"MADEUP{number}", served.url) as response:
                assert (response.status, await response.text()) == (200, "42")
        assert len(scope._marks) == 1


def test_made_in_any_thread(dsn: str) -> None:
    """A scope can be made and set up in a thread that runs no module: tests of applications, workers."""
    found: list[object] = []

    def make() -> None:
        try:
            found.append(poolscope.setup(web.Application(), dsn).key)
            found.append(poolscope.PoolScope(dsn, key="other").key)
        except BaseException as error:  # noqa: BLE001
            found.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert found == ["db", "other"]
