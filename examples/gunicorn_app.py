"""Under gunicorn: a pool in each worker, made after the fork, and an end that loses no request.

DATABASE_URL=postgresql://localhost/app gunicorn -c examples/gunicorn.conf.py    (needs gunicorn)
curl http://127.0.0.1:8080/
kill -HUP <gunicorn's process id>    (new workers for old ones: a deployment)
"""

import asyncio
import os
import sys
from http import HTTPStatus
from typing import Any

from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.health import setup_health

LINGER = 1.0
"""Longer than the pauses between two requests on a busy keep-alive connection."""

SHUTDOWN_TIMEOUT = 5.0
"""aiohttp waits for running handlers twice as long as this. Left to gunicorn it would be graceful_timeout * 0.95:
the worker would be killed in the middle of it, and nothing would be closed."""

DRAIN_GRACE = 5.0


class LingeringRunner(web.AppRunner):
    """Takes no new connections at its end, and serves those it has until each has heard ``Connection: close``.

    aiohttp's own end closes them at once, unless a handler runs: a request that is on its way is dropped unseen.
    """

    def __init__(self, app: web.Application, *, linger: float, **options: Any) -> None:
        super().__init__(app, **options)
        self._linger = linger
        self._leaving = False
        app.on_response_prepare.append(self._close_behind)

    async def cleanup(self) -> None:
        # Time to accept what is in the kernel's queue. A timer, not sleep(0): it runs behind the events of its round,
        # and asyncio drops what it accepts in the very round in which the listener is closed.
        await asyncio.sleep(0.05)
        for site in self.sites:
            await site.stop()
        self._leaving = True
        await asyncio.sleep(self._linger)
        await super().cleanup()

    async def _close_behind(self, _request: web.Request, response: web.StreamResponse) -> None:
        if self._leaving and response.status != HTTPStatus.SWITCHING_PROTOCOLS:
            response.force_close()
            response.headers["Connection"] = "close"  # the header has been chosen before this signal


async def index(request: web.Request) -> web.Response:
    backend = await request["db"].fetchval("SELECT pg_backend_pid()")
    return web.json_response({"worker": os.getpid(), "backend": backend})


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=5, drain_grace=DRAIN_GRACE)
    setup_health(app, scope)  # what kubernetes.yaml asks for
    app.router.add_get("/", index)
    return app


def database_url() -> str:
    return os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")


async def make_runner() -> web.AppRunner:
    """What gunicorn is told to run: awaited in each worker."""
    app = make_app(database_url())
    return LingeringRunner(app, linger=LINGER, shutdown_timeout=SHUTDOWN_TIMEOUT, access_log=None)


if __name__ == "__main__":
    web.run_app(make_app(database_url()), host="127.0.0.1", port=8080)
