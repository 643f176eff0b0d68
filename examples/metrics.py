"""Numbers for Prometheus: the pool's, the process's, and one of the application's own.

DATABASE_URL=postgresql://localhost/app python examples/metrics.py    (needs prometheus-client)
curl http://127.0.0.1:8080/          (a few times)
curl http://127.0.0.1:8080/metrics

Under gunicorn every worker answers for all of them, if it is told where they meet:

export PROMETHEUS_MULTIPROC_DIR=$(mktemp -d)
gunicorn examples.metrics:make_worker --worker-class aiohttp.GunicornWebWorker --workers 2

examples/prometheus has what Prometheus and Grafana need for it.
"""

import os
import sys

from aiohttp import web
from prometheus_client import Counter

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.prometheus import setup_metrics

GREETINGS = Counter("greetings", "Greetings that were given.")


async def index(request: web.Request) -> web.Response:
    name = await request["db"].fetchval("SELECT current_user")
    GREETINGS.inc()
    return web.Response(text=f"hello, {name}\n")


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=10)
    setup_metrics(app, scope)
    app.router.add_get("/", index)
    return app


def database_url() -> str:
    return os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")


async def make_worker() -> web.AppRunner:
    """What gunicorn is told to run: awaited in each worker."""
    return web.AppRunner(make_app(database_url()), shutdown_timeout=5.0)


if __name__ == "__main__":
    web.run_app(make_app(database_url()), host="127.0.0.1", port=8080)
