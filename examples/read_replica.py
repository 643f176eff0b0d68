"""Reads from a standby, writes to the primary, and whoever has just written reads what they wrote.

DATABASE_URL=postgresql://a,b/app python examples/read_replica.py    (makes a table poolscope_notes)
curl -c jar -d text=hello http://127.0.0.1:8080/
curl -b jar http://127.0.0.1:8080/    (from the primary; without -b jar, or five seconds later, from a standby)
"""

import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web

import aiohttp_poolscope as poolscope

BEHIND = 5
"""Seconds that a standby may be behind, by a wide margin."""

SCOPE = web.AppKey("scope", poolscope.PoolScope)


async def notes(request: web.Request) -> web.Response:
    """request["db"] is the standby's here, or the primary's: the handler need not know."""
    db = request["db"]
    standby = await db.fetchval("SELECT pg_is_in_recovery()")
    rows = await db.fetch("SELECT text FROM poolscope_notes ORDER BY id DESC LIMIT 10")
    return web.json_response({"from": "standby" if standby else "primary", "notes": [text for (text,) in rows]})


async def add(request: web.Request) -> web.Response:
    form = await request.post()
    await request["db"].execute("INSERT INTO poolscope_notes (text) VALUES (%s)", (form["text"],))
    response = web.Response(status=201)
    response.set_cookie("wrote", "1", max_age=BEHIND)
    return response


def only_reads(request: web.Request) -> bool:
    return request.method in ("GET", "HEAD") and "wrote" not in request.cookies


async def table(app: web.Application) -> AsyncIterator[None]:
    await app[SCOPE].execute("CREATE TABLE IF NOT EXISTS poolscope_notes (id serial PRIMARY KEY, text text NOT NULL)")
    yield


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn, target="primary")
    # While no standby answers the primary serves here, too. Sessions are read-only either way: a mistake shows at once.
    replica = poolscope.setup(app, dsn, key="replica", target="prefer-standby", readonly=True, acquire="lazy")
    app[SCOPE].read_from(replica, when=only_reads)
    app.cleanup_ctx.append(table)
    app.add_routes([web.get("/", notes), web.post("/", add)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
