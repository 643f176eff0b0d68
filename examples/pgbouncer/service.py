"""Behind PgBouncer in transaction mode: what elsewhere lives in a session lives in a transaction here.

pgbouncer examples/pgbouncer/pgbouncer.ini
DATABASE_URL=postgresql://app@127.0.0.1:6432/app python examples/pgbouncer/service.py
curl http://127.0.0.1:8080/ann/whoami
curl -X POST http://127.0.0.1:8080/ann/report
"""

import os
import sys

from aiohttp import web

import aiohttp_poolscope as poolscope


async def whoami(request: web.Request) -> web.Response:
    """The tenant is set for this transaction only: with SET the next client of the server connection would have it."""
    async with request["db"].transaction() as tx:
        await tx.execute("SELECT set_config('app.tenant', %s, true)", (request.match_info["tenant"],))
        return web.Response(text=await tx.fetchval("SELECT current_setting('app.tenant')") + "\n")


@poolscope.transactional
async def report(request: web.Request) -> web.Response:
    """One at a time for each tenant. The lock goes with the transaction, which is the request."""
    db, tenant = request["db"], request.match_info["tenant"]
    if not await db.fetchval("SELECT pg_try_advisory_xact_lock(hashtext(%s))", (tenant,)):
        return web.Response(status=409, text="it is being written already\n")
    await db.execute("SELECT pg_sleep(0.5)")
    return web.Response(text="written\n")


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    poolscope.setup(app, dsn, pgbouncer=True, maxsize=20)
    app.add_routes([web.get("/{tenant}/whoami", whoami), web.post("/{tenant}/report", report)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
