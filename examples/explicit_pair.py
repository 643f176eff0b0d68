"""The same by hand: the middleware at a place of your choice, and two pools side by side.

DATABASE_URL=postgresql://localhost/app python examples/explicit_pair.py
curl -i http://127.0.0.1:8080/report
"""

import os
import sys
import time

from aiohttp import web
from aiohttp.typedefs import Handler

import aiohttp_poolscope as poolscope


@web.middleware
async def timing(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outside of the pools: what it measures includes the wait for a connection, and their 503 and 504 as well."""
    begun = time.monotonic()
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPException as raised:
        raised.headers["Server-Timing"] = f"app;dur={(time.monotonic() - begun) * 1000:.1f}"
        raise
    response.headers["Server-Timing"] = f"app;dur={(time.monotonic() - begun) * 1000:.1f}"
    return response


async def index(request: web.Request) -> web.Response:
    return web.json_response(await request["db"].fetchval("SELECT current_database()"))


@poolscope.lazy  # the other pool is not needed here
async def report(request: web.Request) -> web.Response:
    # Slow statements have a small pool of their own: however many of them wait, request["db"] is not theirs.
    tables = await request["reports"].fetchval("SELECT count(*) FROM pg_class WHERE relkind = 'r'")
    return web.json_response({"tables": tables})


def make_app(dsn: str) -> web.Application:
    db = poolscope.PoolScope(dsn, maxsize=10, statement_timeout=2.0)
    reports = poolscope.PoolScope(dsn, key="reports", maxsize=2, statement_timeout=60.0)
    app = web.Application(middlewares=[timing, db.middleware, reports.middleware])
    app.cleanup_ctx.append(db.cleanup_ctx)
    app.cleanup_ctx.append(reports.cleanup_ctx)
    app.add_routes([web.get("/", index), web.get("/report", report)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
