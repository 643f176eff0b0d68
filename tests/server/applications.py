"""The application that the tests of this folder run in processes of their own.

``python -m tests.server.applications`` runs it under ``web.run_app``; gunicorn imports ``factory``. The environment
says the rest: APP_DSN, APP_PORT, APP_SETTINGS (JSON, for PoolScope), APP_LAYOUT.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from typing import Any

from aiohttp import web

import aiohttp_poolscope as poolscope

leaked: list[Any] = []


async def pid(request: web.Request) -> web.Response:
    """Which process answers, and that it can ask the database."""
    await request["db"].fetchval("SELECT 1")
    return web.Response(text=str(os.getpid()))


async def query(request: web.Request) -> web.Response:
    """Spends its time in the database."""
    started(request)
    await request["db"].execute("SELECT pg_sleep(%s)", (request.match_info["seconds"],))
    return web.Response(text="done")


@poolscope.lazy
async def late(request: web.Request) -> web.Response:
    """Borrows at its end only."""
    started(request)
    await asyncio.sleep(float(request.match_info["seconds"]))
    return web.Response(text=str(await request["db"].fetchval("SELECT 'done'")))


async def leak(request: web.Request) -> web.Response:
    """Borrows and forgets."""
    leaked.append(await request.config_dict[SCOPE].acquire())
    return web.Response(text="leaked")


async def socket(request: web.Request) -> web.WebSocketResponse:
    """A websocket on which nothing happens."""
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    started(request)
    async for _ in ws:
        pass
    return ws


SCOPE = web.AppKey("scope", poolscope.PoolScope)


def started(request: web.Request) -> None:
    """For the test, which waits for it."""
    print("started", request.path, flush=True)


async def ready(_app: web.Application) -> None:
    """Said once by each process, when its pool is open."""
    print("ready", flush=True)


def make() -> web.Application:
    """As APP_LAYOUT says: "setup", "pair", "sub-setup" or "sub-pair"."""
    layout = os.environ.get("APP_LAYOUT", "setup")
    scope = poolscope.PoolScope(os.environ["APP_DSN"], **json.loads(os.environ.get("APP_SETTINGS", "{}")))
    bare = layout.endswith("pair")
    app = web.Application(middlewares=[scope.middleware] if bare else [])
    app[SCOPE] = scope
    if bare:
        app.cleanup_ctx.append(scope.cleanup_ctx)
    else:
        scope.setup(app)
    app.router.add_get("/pid", pid)
    app.router.add_get("/query/{seconds}", query)
    app.router.add_get("/late/{seconds}", late)
    app.router.add_get("/leak", leak)
    app.router.add_get("/socket", socket)
    app.on_startup.append(ready)
    if not layout.startswith("sub-"):
        return app
    root = web.Application()
    root.add_subapp("/sub", app)
    return root


async def factory() -> web.Application:
    """For gunicorn."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(process)d %(message)s")
    return make()


def main() -> None:
    """Under run_app, with aiohttp's own settings."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(process)d %(message)s")
    web.run_app(make(), host="127.0.0.1", port=int(os.environ["APP_PORT"]), print=None, access_log=None)


if __name__ == "__main__":
    main()
