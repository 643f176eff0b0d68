"""Transactions: a whole request, a block, one that is tried again, and a savepoint.

DATABASE_URL=postgresql://localhost/app python examples/transactions.py    (makes a table poolscope_jars)
curl -d to=left -d amount=5 http://127.0.0.1:8080/put
curl -d from=left -d to=right -d amount=3 http://127.0.0.1:8080/move
"""

import os
import sys
from collections.abc import AsyncIterator

import psycopg2
from aiohttp import web

import aiohttp_poolscope as poolscope

SCOPE = web.AppKey("scope", poolscope.PoolScope)


@poolscope.transactional
async def put(request: web.Request) -> web.Response:
    """COMMIT when it returns below 400. The 400 below is a ROLLBACK, and so is any exception."""
    form = await request.post()
    db = request["db"]
    await db.execute(
        "INSERT INTO poolscope_jars VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET coins = poolscope_jars.coins + %s",
        (form["to"], form["amount"], form["amount"]),
    )
    if await db.fetchval("SELECT sum(coins) FROM poolscope_jars") > 1000:
        return web.Response(status=400, text="more coins than there are\n")
    return web.Response(text="ok\n")


@poolscope.lazy  # run_transaction borrows for each try; a connection of the request's own would be one too many
async def move(request: web.Request) -> web.Response:
    """Serializable, so that it needs no locks; PostgreSQL may then ask for another try."""
    form = await request.post()

    async def attempt(tx: poolscope.Transaction) -> int:
        await tx.execute("UPDATE poolscope_jars SET coins = coins - %s WHERE name = %s", (form["amount"], form["from"]))
        await tx.execute("UPDATE poolscope_jars SET coins = coins + %s WHERE name = %s", (form["amount"], form["to"]))
        left: int = await tx.fetchval("SELECT coins FROM poolscope_jars WHERE name = %s", (form["from"],))
        return left

    try:
        left = await request.app[SCOPE].run_transaction(attempt, isolation="serializable")
    except psycopg2.errors.CheckViolation:
        raise web.HTTPConflict(text="not that many coins\n") from None
    return web.json_response({"left": left})


async def names(request: web.Request) -> web.Response:
    """A statement that may fail is put into a transaction() inside the transaction(): a savepoint."""
    async with request["db"].transaction() as tx:
        try:
            async with tx.transaction() as inner:
                await inner.execute("INSERT INTO poolscope_jars VALUES ('left', 0)")
        except psycopg2.errors.UniqueViolation:
            pass  # there is one: only the savepoint was rolled back
        rows = await tx.fetch("SELECT name, coins FROM poolscope_jars ORDER BY name")
    return web.json_response(dict(rows))


async def table(app: web.Application) -> AsyncIterator[None]:
    await app[SCOPE].execute(
        "CREATE TABLE IF NOT EXISTS poolscope_jars (name text PRIMARY KEY, coins int NOT NULL CHECK (coins >= 0))"
    )
    yield


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn)
    app.cleanup_ctx.append(table)  # after the pool's: it can use the pool
    app.add_routes([web.post("/put", put), web.post("/move", move), web.get("/", names)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
