"""Under gunicorn: a pool in each worker, made after the fork, and an end that fits into gunicorn's patience.

DATABASE_URL=postgresql://localhost/app gunicorn -c examples/gunicorn.conf.py
curl http://127.0.0.1:8080/
"""

import os

from aiohttp import web

import aiohttp_poolscope as poolscope

SHUTDOWN_TIMEOUT = 5.0
"""aiohttp waits for running handlers twice as long as this. Left to gunicorn it would be graceful_timeout * 0.95:
the worker would be killed in the middle of it, and nothing would be closed."""

DRAIN_GRACE = 5.0


async def index(request: web.Request) -> web.Response:
    backend = await request["db"].fetchval("SELECT pg_backend_pid()")
    return web.json_response({"worker": os.getpid(), "backend": backend})


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    poolscope.setup(app, dsn, maxsize=5, drain_grace=DRAIN_GRACE)
    app.router.add_get("/", index)
    return app


async def make_runner() -> web.AppRunner:
    """What gunicorn is told to run: awaited in each worker."""
    return web.AppRunner(make_app(os.environ["DATABASE_URL"]), shutdown_timeout=SHUTDOWN_TIMEOUT, access_log=None)


if __name__ == "__main__":
    web.run_app(make_app(os.environ["DATABASE_URL"]), host="127.0.0.1", port=8080)
