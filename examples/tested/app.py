"""A small service whose tests are beside it: notes, and a copy of one.

DATABASE_URL=postgresql://localhost/app python examples/tested/app.py    (makes a table notes)
python -m pytest examples/tested    (needs pytest-asyncio)
"""

import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web

import aiohttp_poolscope as poolscope

SCOPE = web.AppKey("scope", poolscope.PoolScope)

SCHEMA = """
    CREATE TABLE IF NOT EXISTS notes (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        text text NOT NULL UNIQUE CHECK (text <> ''),
        copy_of integer REFERENCES notes
    )
"""


async def list_notes(request: web.Request) -> web.Response:
    rows = await request["db"].fetch("SELECT text FROM notes ORDER BY id")
    return web.json_response([text for (text,) in rows])


@poolscope.transactional
async def create_note(request: web.Request) -> web.Response:
    db = request["db"]
    number = await db.fetchval("INSERT INTO notes (text) VALUES (%s) RETURNING id", (await request.text(),))
    if await db.fetchval("SELECT count(*) > 3 FROM notes"):
        raise web.HTTPConflict(text="three notes are enough")  # and the fourth is rolled back
    return web.json_response(number, status=201)


async def copy_note(request: web.Request) -> web.Response:
    number = int(request.match_info["id"])
    sql = "INSERT INTO notes (text, copy_of) SELECT 'copy of ' || text, id FROM notes WHERE id = %s"
    done = await request["db"].execute(sql, (number,))
    return web.Response(status=201 if done == "INSERT 0 1" else 404)


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    app.router.add_get("/notes", list_notes)
    app.router.add_post("/notes", create_note)
    app.router.add_post("/notes/{id:[0-9]+}/copy", copy_note)
    app[SCOPE] = poolscope.setup(app, dsn, statement_timeout=2)
    return app


async def create_tables(app: web.Application) -> AsyncIterator[None]:
    await app[SCOPE].execute(SCHEMA)
    yield


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    app = make_app(url)
    app.cleanup_ctx.append(create_tables)  # after the pool's: it can use the pool
    web.run_app(app, host="127.0.0.1", port=8080)
