"""A task beside the requests, with a connection only while it needs one, and an end.

DATABASE_URL=postgresql://localhost/app python examples/background_task.py
curl http://127.0.0.1:8080/
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

import aiohttp_poolscope as poolscope

INTERVAL = 1.0

logger = logging.getLogger(__name__)


@dataclass
class Latest:
    """What the task has found out."""

    bytes: int = 0
    rounds: int = 0


SCOPE = web.AppKey("scope", poolscope.PoolScope)
LATEST = web.AppKey("latest", Latest)


async def measure(scope: poolscope.PoolScope, latest: Latest) -> None:
    while True:
        try:
            async with scope.acquire() as db:  # returned before the pause, not held through it
                latest.bytes = await db.fetchval("SELECT pg_database_size(current_database())")
                latest.rounds += 1
        except poolscope.ShuttingDown:
            return
        except poolscope.PoolScopeError as error:  # the database is away: it will be back, and so shall we
            logger.warning("not measured: %s", error)
        await asyncio.sleep(INTERVAL)


async def measuring(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(measure(app[SCOPE], app[LATEST]))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@poolscope.no_connection
async def index(request: web.Request) -> web.Response:
    latest = request.app[LATEST]
    return web.json_response({"bytes": latest.bytes, "rounds": latest.rounds})


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn)
    app[LATEST] = Latest()
    app.cleanup_ctx.append(measuring)  # after the pool's, so that it ends before the pool does
    app.router.add_get("/", index)
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
