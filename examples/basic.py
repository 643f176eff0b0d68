"""The shortest way: one line of set-up, and every handler has request["db"].

DATABASE_URL=postgresql://localhost/app python examples/basic.py
curl http://127.0.0.1:8080/settings/max_connections
"""

import os
import sys

from aiohttp import web

import aiohttp_poolscope as poolscope


async def get_setting(request: web.Request) -> web.Response:
    row = await request["db"].fetchrow(
        "SELECT name, setting, unit FROM pg_settings WHERE name = %s", (request.match_info["name"],)
    )
    if row is None:
        raise web.HTTPNotFound(text="PostgreSQL has no such setting\n")
    name, setting, unit = row
    return web.json_response({"name": name, "setting": setting, "unit": unit})


async def slow(request: web.Request) -> web.Response:
    # Nothing is caught here: QueryTimeout becomes a 504, an exhausted pool or a lost database a 503.
    await request["db"].execute("SELECT pg_sleep(60)", timeout=1.0)
    return web.Response(text="never\n")


@poolscope.no_connection
async def version(request: web.Request) -> web.Response:
    return web.Response(text=f"{poolscope.__version__}, and no connection was touched for this\n")


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    poolscope.setup(app, dsn, maxsize=20)
    app.add_routes(
        [web.get("/settings/{name}", get_setting), web.get("/slow", slow), web.get("/version", version)],
    )
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
