"""Two databases: who does not use the second one never waits for it, and does not notice when it is away.

DATABASE_URL=postgresql://localhost/app ARCHIVE_URL=postgresql://elsewhere/archive python examples/several_databases.py
curl -d text=hello http://127.0.0.1:8080/              (makes tables poolscope_orders and poolscope_archive)
curl -X POST http://127.0.0.1:8080/1/archive
"""

import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web

import aiohttp_poolscope as poolscope

DB = web.AppKey("db", poolscope.PoolScope)
ARCHIVE = web.AppKey("archive", poolscope.PoolScope)


async def orders(request: web.Request) -> web.Response:
    rows = await request["db"].fetch("SELECT id, text FROM poolscope_orders ORDER BY id")
    return web.json_response(dict(rows))


async def add(request: web.Request) -> web.Response:
    form = await request.post()
    sql = "INSERT INTO poolscope_orders (text) VALUES (%s) RETURNING id"
    return web.json_response({"id": await request["db"].fetchval(sql, (form["text"],))}, status=201)


async def archive(request: web.Request) -> web.Response:
    """No transaction spans two databases. So: in an order that loses nothing, and every step can be repeated."""
    db, number = request["db"], int(request.match_info["id"])
    async with db.transaction() as tx:
        text = await tx.fetchval("SELECT text FROM poolscope_orders WHERE id = %s FOR UPDATE", (number,))
        if text is None:
            raise web.HTTPNotFound(text="no such order here\n")
        # First there, and committed. If what follows fails, the order is in both until somebody asks again.
        await request["archive"].execute(
            "INSERT INTO poolscope_archive VALUES (%s, %s) ON CONFLICT DO NOTHING", (number, text)
        )
        await tx.execute("DELETE FROM poolscope_orders WHERE id = %s", (number,))
    return web.Response(status=204)


async def tables(app: web.Application) -> AsyncIterator[None]:
    await app[DB].execute("CREATE TABLE IF NOT EXISTS poolscope_orders (id serial PRIMARY KEY, text text NOT NULL)")
    await app[ARCHIVE].execute("CREATE TABLE IF NOT EXISTS poolscope_archive (id int PRIMARY KEY, text text NOT NULL)")
    yield


def make_app(dsn: str, archive_dsn: str) -> web.Application:
    app = web.Application()
    app[DB] = poolscope.setup(app, dsn, maxsize=10)
    # A short time-out: who needs both holds a connection of the first while it waits for one of the second.
    app[ARCHIVE] = poolscope.setup(app, archive_dsn, key="archive", acquire="lazy", maxsize=3, acquire_timeout=1.0)
    app.cleanup_ctx.append(tables)
    app.add_routes([web.get("/", orders), web.post("/", add), web.post("/{id:[0-9]+}/archive", archive)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url, os.environ.get("ARCHIVE_URL", url)), host="127.0.0.1", port=8080)
