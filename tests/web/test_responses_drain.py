"""While the pool drains every answer closes its connection (A7), however the handler ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Serve


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: web.Response(status=201), 201),
        (web.HTTPConflict, 409),
        (lambda: poolscope.QueryTimeout("as if"), 504),
        (lambda: ExceptionGroup("both", [poolscope.QueueFull("as if"), poolscope.PoolExhausted("as if")]), 503),
    ],
    ids=["returned", "raised", "ours", "a group of ours"],
)
@pytest.mark.parametrize("mark", [poolscope.eager, poolscope.no_connection], ids=["with", "without a connection"])
async def test_every_answer_says_that_the_connection_closes(
    dsn: str, serve: Serve, make: Callable[[], web.Response | Exception], status: int, mark: object
) -> None:
    """A handler that was running when the drain began answers with Connection: close, and so does one refused then."""
    inside, go = asyncio.Event(), asyncio.Event()

    @poolscope.eager
    async def handler(request: web.Request) -> web.Response:
        inside.set()
        await go.wait()
        if isinstance(end := make(), Exception):
            raise end
        return end

    @poolscope.no_connection
    async def plain(request: web.Request) -> web.Response:
        if isinstance(end := make(), Exception):
            raise end
        return end

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2)
    app.router.add_get("/with", handler)
    app.router.add_get("/without", plain)
    async with serve(app) as served:
        path = "/with" if mark is poolscope.eager else "/without"
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        if path == "/with":
            reader, writer = await served.raw(request)
            await until(inside.is_set)
            scope.begin_drain()
            go.set()
        else:
            scope.begin_drain()
            reader, writer = await served.raw(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"\r\nConnection: close\r\n" in answer
