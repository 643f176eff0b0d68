"""What requests and borrows hold in memory, and what they leave there."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import tracemalloc
from typing import TYPE_CHECKING, Any

from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.connection import ScopedConnection
from benchmarks.services.inside import PATIENCE, ask, descriptors, running, served, until

if TYPE_CHECKING:
    from benchmarks.study import Figures

CYCLES = 2_000
"""To warm up."""

REQUESTS = 200
PLAIN = "plain aiohttp"
WAITING = 5_000
"""Requests that wait while their memory is measured: fewer where the descriptors do not suffice."""

MANY, OF_THEM_BLOCKS = 1_000_000, 100_000
"""Cycles within which nothing may grow, and how many of them are by ``async with acquire()``: these take longer."""


async def memory_of_waiting(kind: str, dsn: str) -> Figures:
    """``bytes`` that Python allocates for a request that waits, on a socket that was there before.

    For a connection (``poolscope``), or in its handler for an event (``plain aiohttp``).
    """
    number = min(WAITING, (descriptors() - 200) // 2)
    app = web.Application()
    event, began = asyncio.Event(), 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal began
        began += 1
        await event.wait()
        return web.Response()

    app.router.add_get("/", handler)
    settings = {"max_waiting": number, "queue_target": None, "acquire_timeout": PATIENCE, "drain_grace": 0.1}
    scope = poolscope.PoolScope(dsn, minsize=1, maxsize=1, processes=1, **settings)
    if kind != PLAIN:
        scope.setup(app)
    async with served(app) as address, contextlib.AsyncExitStack() as stack:
        if kind != PLAIN:
            await stack.enter_async_context(scope.acquire())
        clients = [stack.enter_context(socket.socket()) for _ in range(number)]
        for client in clients:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, address)
        await asyncio.sleep(0.1)
        before = traced()
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: began + scope.stats().waiting == number)
        bytes_each = (traced() - before) / number
        event.set()
        for client in clients:
            client.close()
        await until(lambda: scope.stats().waiting == 0)
    return {"bytes": bytes_each, "requests": float(number)}


def traced() -> int:
    """Bytes that Python has allocated since the first call."""
    gc.collect()
    tracemalloc.start()
    return tracemalloc.get_traced_memory()[0]


async def growth(dsn: str) -> Figures:
    """What a million borrows and returns leave: ``bytes`` and ``objects`` for each of them."""
    async with running(dsn, 10) as scope:
        pool: Any = scope._run.pool

        async def cycles(by_the_pool: int, by_a_block: int) -> None:
            for _ in range(by_the_pool):
                db = ScopedConnection(pool)
                pool.lend(db)
                db._end("")
            for _ in range(by_a_block):
                async with scope.acquire():
                    pass

        await cycles(CYCLES, CYCLES)
        before, objects = traced(), len(gc.get_objects())
        await cycles(MANY - OF_THEM_BLOCKS, OF_THEM_BLOCKS)
        return {"bytes": (traced() - before) / MANY, "objects": (len(gc.get_objects()) - objects) / MANY}


async def garbage(kind: str, dsn: str) -> Figures:
    """``objects`` that a request leaves to the cyclic collector."""

    async def handler(request: web.Request) -> web.Response:
        if kind == "a statement":
            await request["db"].fetchval("SELECT 1")
        elif kind == "a transaction":
            async with request["db"].transaction() as tx:
                await tx.fetchval("SELECT 1")
        return web.Response(text="done")

    app = web.Application()
    app.router.add_get("/", handler)
    if kind != PLAIN:
        poolscope.setup(app, dsn, minsize=2, maxsize=2, processes=1)
    async with served(app) as address:
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(REQUESTS):
            await ask(reader, writer)
        gc.collect()
        gc.disable()
        for _ in range(REQUESTS):
            await ask(reader, writer)
        left = gc.collect()
        writer.close()
    return {"objects": left / REQUESTS}
