"""Handlers without a connection of their own: the errors of what they borrow by themselves are answered too."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.conftest import Serve, until


@pytest.fixture(params=["mark", "skip"])
def without(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """Two ways to have no connection: a mark on the handler, or a setting of the scope."""
    if request.param == "mark":
        return poolscope.no_connection, {}
    return (lambda handler: handler), {"skip": lambda _: True}


async def test_its_errors_are_503_and_504(dsn: str, serve: Serve, without: tuple[Any, dict[str, Any]]) -> None:
    """scope.fetchval() and scope.acquire() in such a handler: a time-out is a 504, an exhausted pool a 503."""
    mark, settings = without

    @mark
    async def slow(request: web.Request) -> web.Response:
        return web.json_response(await scope.fetchval("SELECT pg_sleep(30)", timeout=0.05))

    @mark
    async def greedy(request: web.Request) -> web.Response:
        async with scope.acquire(), scope.acquire(timeout=0.05):
            return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, **settings)
    app.add_routes([web.get("/slow", slow), web.get("/greedy", greedy)])
    async with serve(app) as served:
        for path, status, code in (("/slow", 504, "query-timeout"), ("/greedy", 503, "pool-exhausted")):
            async with served.client.get(served.url / path[1:]) as response:
                assert (response.status, (await response.json())["code"]) == (status, code)


async def test_its_own_errors_stay_its_own(dsn: str, serve: Serve, without: tuple[Any, dict[str, Any]]) -> None:
    """What is not ours passes: an HTTPException as it is, any other as a 500."""
    mark, settings = without

    @mark
    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPPaymentRequired if request.query else ZeroDivisionError

    app = web.Application()
    poolscope.setup(app, dsn, maxsize=1, **settings)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status("/", params={"pay": "1"}) == 402
        assert await served.status("/") == 500


async def test_during_the_drain_it_is_503(dsn: str, serve: Serve, without: tuple[Any, dict[str, Any]]) -> None:
    """It may run then, but what it borrows is refused: 503, and the connection is closed."""
    mark, settings = without

    @mark
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(await scope.fetchval("SELECT 1"))

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, **settings)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        scope.begin_drain()
        await until(lambda: scope._run.pool is not None and scope._run.pool.gate.closed, "the end of the drain")
        async with served.client.get(served.url) as response:
            assert (response.status, (await response.json())["code"]) == (503, "shutting-down")
            assert response.headers["Connection"] == "close"


async def test_an_answer_on_its_way_is_not_mixed_with_another(dsn: str, serve: Serve) -> None:
    """After the first bytes of an answer an error ends the connection: there is no second answer inside the first."""

    @poolscope.no_connection
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await scope.fetchval("SELECT pg_sleep(30)", timeout=0.05)
        return response

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        reader, writer = await served.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        got = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert b"half" in got
        assert got.count(b"HTTP/1.1 ") == 1
