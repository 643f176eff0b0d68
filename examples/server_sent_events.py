"""Server-sent events: open for hours, a connection for milliseconds, and after a break nothing is missed or sent twice.

DATABASE_URL=postgresql://localhost/app python examples/server_sent_events.py    (makes a table poolscope_news)
curl -N http://127.0.0.1:8080/                              (-H 'Last-Event-ID: 1': what came after the first)
curl -d text=hello http://127.0.0.1:8080/
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

import aiohttp_poolscope as poolscope

INTERVAL = 1.0
"""Seconds between two looks. For thousands of clients let one listener look for all of them: listen_notify.py."""

SCOPE = web.AppKey("scope", poolscope.PoolScope)
ENDING = web.AppKey("ending", asyncio.Event)


@poolscope.lazy
async def events(request: web.Request) -> web.StreamResponse:
    db, ending = request["db"], request.app[ENDING]
    seen = request.headers.get("Last-Event-ID", "")  # what a browser sends when it comes back
    last = int(seen) if seen.isdecimal() else await db.fetchval("SELECT coalesce(max(id), 0) FROM poolscope_news")
    db.release()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):  # the client has left: nothing that the log should call an error
        while not ending.is_set():
            try:
                async with db.acquire():
                    rows = await db.fetch("SELECT id, text FROM poolscope_news WHERE id > %s ORDER BY id", (last,))
            except poolscope.PoolScopeError:
                rows = []  # busy or away: the next look finds what came meanwhile
            for last, text in rows:
                lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
                await response.write(f"id: {last}\n{lines}\n".encode())
            if not rows:
                await response.write(b":\n\n")  # a comment, to find out whether the client is still there
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), INTERVAL)
    return response


@poolscope.transactional
async def add(request: web.Request) -> web.Response:
    form = await request.post()
    # One writer at a time, for else number 2 could be seen before number 1 is, and 1 by nobody.
    await request["db"].execute("LOCK TABLE poolscope_news IN EXCLUSIVE MODE")
    await request["db"].execute("INSERT INTO poolscope_news (text) VALUES (%s)", (form["text"],))
    return web.Response(status=201)


async def table(app: web.Application) -> AsyncIterator[None]:
    await app[SCOPE].execute("CREATE TABLE IF NOT EXISTS poolscope_news (id bigserial PRIMARY KEY, text text NOT NULL)")
    yield


async def end(app: web.Application) -> None:
    """Else these handlers would be waited for. A browser comes back, to another process, with its Last-Event-ID."""
    app[ENDING].set()


def make_app(dsn: str, **settings: Any) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn, **settings)
    app[ENDING] = asyncio.Event()
    app.cleanup_ctx.append(table)
    app.on_shutdown.append(end)
    app.add_routes([web.get("/", events), web.post("/", add)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
