"""The middleware and the context, over real sockets."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

import aiohttp_poolscope as poolscope

from .conftest import Serve


async def test_a_request_has_a_connection(dsn: str, serve: Serve, cancellation: bool) -> None:
    """request["db"] runs a statement, and comes back."""

    async def handler(request: web.Request) -> web.Response:
        assert request["db"] is request[scope.key]
        return web.json_response(await request["db"].fetchval("SELECT 41 + %s", (1,)))

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2)
    app.router.add_get("/", handler)
    async with serve(app, handler_cancellation=cancellation) as served:
        assert await served.get() == (200, "42")
        assert scope.stats().in_use == 0
