"""A service with metrics, for tests that run it under gunicorn: APP_DSN, APP_INTERVAL, PROMETHEUS_MULTIPROC_DIR."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import Counter

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.prometheus import setup_metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CUPS = Counter("cups", "Cups of tea: the application's own counter, which prometheus_client shares in its way.")


async def pid(request: web.Request) -> web.Response:
    """Which process answers, after a look at the database."""
    await request["db"].fetchval("SELECT 1")
    CUPS.inc()
    return web.Response(text=str(os.getpid()))


async def query(request: web.Request) -> web.Response:
    """Spends its time in the database."""
    await request["db"].execute("SELECT pg_sleep(%s)", (request.match_info["seconds"],))
    return web.Response(text="done")


async def locked(request: web.Request) -> web.Response:
    """Keeps its connection until the test lets go of the lock."""
    await request["db"].fetchval("SELECT pg_advisory_xact_lock(4711)")
    return web.Response(text="done")


@poolscope.no_connection
async def block(request: web.Request) -> web.Response:
    """Stops the event loop."""
    os.write(1, b"blocks\n")
    time.sleep(float(request.match_info["seconds"]))  # noqa: ASYNC251 - the point
    return web.Response(text="done")


async def ready(_app: web.Application) -> AsyncIterator[None]:
    os.write(1, f"ready {os.getpid()}\n".encode())
    yield


async def factory() -> web.AppRunner:
    """For gunicorn."""
    app = web.Application()
    scope = poolscope.setup(app, os.environ["APP_DSN"], maxsize=2, drain_grace=20, drain_timeout=25)
    reports = poolscope.setup(app, os.environ["APP_DSN"], key="reports", maxsize=1, acquire="lazy")
    setup_metrics(app, scope, reports, interval=float(os.environ["APP_INTERVAL"]))
    for path, handler in (("/", pid), ("/query/{seconds}", query), ("/locked", locked), ("/block/{seconds}", block)):
        app.router.add_get(path, handler)
    app.cleanup_ctx.append(ready)
    return web.AppRunner(app, access_log=None, shutdown_timeout=20.0)
