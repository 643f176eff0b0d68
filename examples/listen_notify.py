"""A chat room over any number of processes: each has one connection that listens, for all of its websockets.

DATABASE_URL=postgresql://localhost/app python examples/listen_notify.py
(What is sent to ws://127.0.0.1:8080/ comes to everybody there, as does: psql -c "NOTIFY poolscope_room, 'hello'")
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import psycopg2
from aiohttp import WSCloseCode, WSMsgType, web

import aiohttp_poolscope as poolscope

PAUSE = 0.5
"""Seconds between two attempts to listen again."""

BEHIND = 100
"""Messages that may wait for one client."""

MISSED = '{"missed": true}'
"""For a client that was too slow, and for all after the connection was lost: NOTIFY waits for nobody. Who needs every
message would write them into a table, and now read there what is missing."""

SCOPE = web.AppKey("scope", poolscope.PoolScope)
LISTENER = web.AppKey("listener", poolscope.PoolScope)
ROOM = web.AppKey("room", dict[web.WebSocketResponse, "asyncio.Queue[str]"])
logger = logging.getLogger(__name__)


def tell(room: dict[web.WebSocketResponse, "asyncio.Queue[str]"], message: str) -> None:
    """Everybody, and wait for nobody."""
    for inbox in room.values():
        if inbox.full():
            while not inbox.empty():
                inbox.get_nowait()
            inbox.put_nowait(MISSED)
        inbox.put_nowait(message)


async def listen(app: web.Application) -> None:
    """For as long as the application lives, over one connection after the other."""
    while True:
        try:
            async with app[LISTENER].acquire() as db:
                await db.execute("LISTEN poolscope_room")
                tell(app[ROOM], MISSED)
                while True:
                    tell(app[ROOM], (await db.raw.notifies.get()).payload)
        except poolscope.ShuttingDown:
            return
        except psycopg2.Error as error:
            logger.warning("no longer listening: %s", error)
        except poolscope.PoolScopeError:
            pass  # the pool itself has told of it
        await asyncio.sleep(PAUSE)


async def listening(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(listen(app))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def talk(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(heartbeat=30, max_msg_size=4096)  # what a NOTIFY can carry is less than 8000 bytes
    await socket.prepare(request)
    db, room = request["db"], request.app[ROOM]
    inbox = room[socket] = asyncio.Queue[str](BEHIND + 1)
    writer = asyncio.create_task(write(socket, inbox))
    try:
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            try:
                async with db.acquire():
                    await db.execute("SELECT pg_notify('poolscope_room', %s)", (message.data,))
            except poolscope.PoolScopeError as error:
                await socket.send_json({"error": error.code})
    finally:
        del room[socket]
        writer.cancel()
    return socket


async def write(socket: web.WebSocketResponse, inbox: "asyncio.Queue[str]") -> None:
    with contextlib.suppress(ConnectionResetError):  # the client has left
        while True:
            await socket.send_str(await inbox.get())


async def say_goodbye(app: web.Application) -> None:
    await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in app[ROOM]))


def make_app(dsn: str, **settings: Any) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn, **settings)
    # A pool of one: no request waits for a connection that never comes back. Nothing is asked on it, so it is left to
    # the kernel to notice a network that has gone silent.
    app[LISTENER] = poolscope.PoolScope(
        dsn, key="listener", maxsize=1, leak_threshold=None, keepalives_idle=30, skip=lambda _: True
    )
    app.cleanup_ctx.append(app[LISTENER].cleanup_ctx)
    app[ROOM] = {}
    app.cleanup_ctx.append(listening)
    app.on_shutdown.append(say_goodbye)
    app.router.add_get("/", talk)
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
