"""A websocket that is open for hours and holds a connection for milliseconds.

DATABASE_URL=postgresql://localhost/app python examples/websocket.py
(Messages to ws://127.0.0.1:8080/ are names of PostgreSQL's settings; answers are their values.)
"""

import asyncio
import os
import sys

from aiohttp import WSCloseCode, WSMsgType, web

import aiohttp_poolscope as poolscope

SCOPE = web.AppKey("scope", poolscope.PoolScope)
SOCKETS = web.AppKey("sockets", set[web.WebSocketResponse])


async def talk(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(heartbeat=30)
    await socket.prepare(request)
    request.app[SOCKETS].add(socket)
    db = request["db"]  # nothing is borrowed yet: a request to upgrade borrows at first use
    try:
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            try:
                async with db.acquire():
                    value = await db.fetchval("SELECT setting FROM pg_settings WHERE name = %s", (message.data,))
            except poolscope.PoolScopeError as error:  # there is no status code any more to say it with
                await socket.send_json({"error": error.code})
            else:
                await socket.send_json({"value": value})
    finally:
        request.app[SOCKETS].discard(socket)
    return socket


async def say_goodbye(app: web.Application) -> None:
    """Else their handlers would be waited for: they end when the client does."""
    await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in app[SOCKETS]))


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn)
    app[SOCKETS] = set()
    app.on_shutdown.append(say_goodbye)
    app.router.add_get("/", talk)
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
