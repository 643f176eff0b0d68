"""Ready, alive, started: what Kubernetes or a load balancer asks; and a second pool that may be away without harm.

DATABASE_URL=postgresql://localhost/app python examples/health.py
curl -i http://127.0.0.1:8080/readyz           (also /livez, /startupz; stop PostgreSQL and ask again)
curl -i http://127.0.0.1:8080/readyz/reports
"""

import os
import sys

from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.health import setup_health


async def index(request: web.Request) -> web.Response:
    return web.json_response(await request["db"].fetchval("SELECT current_database()"))


async def report(request: web.Request) -> web.Response:
    return web.json_response(await request["reports"].fetchval("SELECT count(*) FROM pg_class WHERE relkind = 'r'"))


def make_app(dsn: str, reports_dsn: str) -> web.Application:
    app = web.Application()
    db = poolscope.setup(app, dsn, maxsize=20)
    reports = poolscope.setup(app, reports_dsn, key="reports", maxsize=2, acquire="lazy", connect_at_start=False)
    setup_health(app, db)
    # Without its reports this service is still worth a request: this is for people and alarms, not for the balancer.
    setup_health(app, reports, readiness="/readyz/reports", liveness=None, startup=None)
    app.add_routes([web.get("/", index), web.get("/report", report)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url, os.environ.get("REPORTS_URL", url)), host="127.0.0.1", port=8080)
