"""No reference cycles: what is left to the garbage collector becomes the slowest answers under load."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .conftest import Serve

TIMES = 50


async def garbage_per_call(call: Callable[[], Awaitable[object]]) -> float:
    """Objects in cycles that each call leaves, after some to warm up."""
    for _ in range(10):
        await call()
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            await call()
        return gc.collect() / TIMES
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/fine", "/sql-error", "/refused", "/transaction", "/unused"])
async def test_a_request_leaves_no_cycle(path: str, dsn: str, serve: Serve) -> None:
    """Request, connection, errors and answers are freed by reference counting alone."""

    async def fine(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval("SELECT 1")))

    async def sql_error(request: web.Request) -> web.Response:
        with contextlib.suppress(Exception):
            await request["db"].fetch("SELECT 1/0")
        return web.Response(text="caught")

    async def refused(request: web.Request) -> web.Response:
        raise poolscope.QueueFull("as if")

    async def transaction(request: web.Request) -> web.Response:
        async with request["db"].transaction() as tx:
            return web.Response(text=str(await tx.fetchval("SELECT 1")))

    @poolscope.lazy
    async def unused(request: web.Request) -> web.Response:
        return web.Response(text="unused")

    app = web.Application()
    poolscope.setup(app, dsn, maxsize=2)
    for handler in (fine, sql_error, refused, transaction, unused):
        app.router.add_get("/" + handler.__name__.replace("_", "-"), handler)
    async with serve(app, access_log=None) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)

        async def call() -> None:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))

        assert await garbage_per_call(call) < 1
        writer.close()


@pytest.mark.parametrize("kind", ["error", "timeout", "exhausted", "stream"])
async def test_a_failure_leaves_no_cycle(kind: str, make_scope: Any) -> None:
    """Neither do failed statements, time-outs, refusals at a full pool, and streams."""
    async with make_scope(maxsize=1) as scope:

        async def call() -> None:
            with contextlib.suppress(Exception):
                if kind == "error":
                    await scope.fetch("SELECT 1/0")
                elif kind == "timeout":
                    await scope.fetch("SELECT pg_sleep(1)", timeout=0.002)
                elif kind == "stream":
                    async with scope.acquire() as db:
                        assert [row async for row in db.stream("SELECT 1")] == [(1,)]
                else:
                    async with scope.acquire():
                        await scope.acquire(timeout=0.001)

        for _ in range(5):
            opened = scope.stats().opened
            left = await garbage_per_call(call)
            if scope.stats().opened == opened:  # aiopg's connections are cycles, and a slow machine replaces some
                break
        assert left < 1
