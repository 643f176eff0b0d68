"""The application that the tests of this folder run in processes of their own.

``python -m tests.server.applications`` runs it under ``web.run_app``; gunicorn imports ``factory``. The environment
says the rest: APP_DSN, APP_PORT, APP_SETTINGS (JSON, for PoolScope), APP_LAYOUT, APP_RUNNER (JSON, for aiohttp's
runner; with ``linger`` in it, gunicorn's is the one of the examples).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

EXAMPLES = Path(__file__).parents[2] / "examples"

leaked: list[Any] = []


@web.middleware
async def begins(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outside of the pool: a request of the traffic has reached the application, and is owed an answer."""
    if "id" in request.query:
        tell(f"began {request.query['id']}")
    return await handler(request)


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


async def statement(request: web.Request) -> web.Response:
    """Whatever the test wants to find running on the server."""
    await request["db"].execute(request.query["sql"])
    return web.Response(text="done")


async def transaction(request: web.Request) -> web.Response:
    """Writes, and neither commits nor rolls back."""
    async with request["db"].transaction() as tx:
        await tx.execute("INSERT INTO written VALUES (1)")
        started(request)
        await asyncio.Event().wait()
    return web.Response(text="done")


@poolscope.no_connection
async def block(request: web.Request) -> web.Response:
    """Stops the event loop."""
    started(request)
    time.sleep(float(request.match_info["seconds"]))  # noqa: ASYNC251 - the point
    return web.Response(text="done")


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


def tell(what: str) -> None:
    """Say a line, in one write: several workers say theirs in the same moment."""
    os.write(1, f"{what}\n".encode())


def started(request: web.Request) -> None:
    """For the test, which waits for it."""
    tell(f"started {request.path}")


async def ready(_app: web.Application) -> None:
    """Said once by each process, when its pool is open."""
    tell("ready")


def make() -> web.Application:
    """As APP_LAYOUT says: "setup", "pair", "sub-setup" or "sub-pair"."""
    layout = os.environ.get("APP_LAYOUT", "setup")
    scope = poolscope.PoolScope(os.environ["APP_DSN"], **json.loads(os.environ.get("APP_SETTINGS", "{}")))
    bare = layout.endswith("pair")
    app = web.Application(middlewares=[begins, scope.middleware] if bare else [begins])
    app[SCOPE] = scope
    if bare:
        app.cleanup_ctx.append(scope.cleanup_ctx)
    else:
        scope.setup(app)
    app.router.add_get("/pid", pid)
    app.router.add_get("/query/{seconds}", query)
    app.router.add_get("/late/{seconds}", late)
    app.router.add_get("/statement", statement)
    app.router.add_get("/transaction", transaction)
    app.router.add_get("/block/{seconds}", block)
    app.router.add_get("/leak", leak)
    app.router.add_get("/socket", socket)
    app.on_startup.append(ready)
    if not layout.startswith("sub-"):
        return app
    root = web.Application()
    root.add_subapp("/sub", app)
    return root


def runner_options() -> dict[str, Any]:
    """Nothing: all is left to run_app or to gunicorn's worker."""
    options: dict[str, Any] = json.loads(os.environ.get("APP_RUNNER", "{}"))
    return options


async def factory() -> web.Application | web.AppRunner:
    """For gunicorn."""
    log()
    options = runner_options()
    if "linger" not in options:
        return web.AppRunner(make(), access_log=None, **options) if options else make()
    sys.path.insert(0, str(EXAMPLES))
    from gunicorn_app import LingeringRunner

    return LingeringRunner(make(), access_log=None, **options)


def main() -> None:
    """Under run_app, with aiohttp's own settings but for what the test wants."""
    log()
    port = int(os.environ["APP_PORT"])
    web.run_app(make(), host="127.0.0.1", port=port, print=None, access_log=None, **runner_options())


def log() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(process)d %(message)s")


if __name__ == "__main__":
    main()
