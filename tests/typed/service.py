"""A service as its users write it, with types: mypy (strict) and pyright must accept it as it is.

It is not run, only checked, by ``make lint``. ``assert_type`` says what an editor shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

routes = web.RouteTableDef()
scope = poolscope.PoolScope("postgresql://localhost/app", maxsize=20)
reports = poolscope.PoolScope(key="reports", readonly=True, target="prefer-standby")


@routes.get("/users/{id}")
async def get_user(request: web.Request) -> web.Response:
    """By the plain string, and by the typed key."""
    row = await request["db"].fetchrow("SELECT id, email FROM users WHERE id = %s", (request.match_info["id"],))
    db = request[scope.key]
    assert_type(db, poolscope.ScopedConnection)
    assert_type(await db.fetch("SELECT 1"), list[Any])
    assert_type(await db.execute("UPDATE users SET seen = now()"), str)
    return web.json_response({"email": row[1]})


@routes.post("/transfer")
@poolscope.lazy
async def transfer(request: web.Request) -> web.Response:
    """Transactions, nested ones, and one that is run again."""
    async with request[scope.key].transaction("serializable") as tx:
        assert_type(tx, poolscope.Transaction)
        await tx.execute("UPDATE accounts SET balance = balance - %(amount)s", {"amount": 1})
        async with tx.transaction() as inner:
            await inner.executemany("INSERT INTO log VALUES (%s)", [("a",), ("b",)])

    async def move(tx: poolscope.Transaction) -> int:
        number: int = await tx.fetchval("SELECT 1")
        return number

    assert_type(await scope.run_transaction(move), int)
    return web.Response()


@routes.get("/both")
@poolscope.transactional(isolation="repeatable read", readonly=True)
async def both(request: web.Request) -> web.StreamResponse:
    """Cursors, streams, and connections borrowed for a block."""
    response = web.StreamResponse()
    await response.prepare(request)
    async with request[scope.key].stream("SELECT id FROM users", size=100) as rows:
        async for (number,) in rows:
            await response.write(str(number).encode())
    async with request[reports.key].acquire(timeout=1.0) as other, other.cursor() as cursor:
        await cursor.execute("SELECT 1")
        assert_type(await cursor.fetchall(), list[Any])
    borrowed = await scope.acquire()
    assert_type(borrowed, poolscope.ScopedConnection)
    borrowed.release()
    return response


@routes.view("/items")
class Items(web.View):
    """Marks work on the methods of views."""

    @poolscope.no_connection
    async def get(self) -> web.Response:
        """No database."""
        return web.Response()


@scope.on_event
def see(event: events.Event) -> None:
    """Events by their class."""
    match event:
        case events.TimedOut(route=route, waited=waited):
            print(route, waited)
        case events.Leaked(lease=lease):
            assert_type(lease, poolscope.Lease)
        case _:
            pass


async def show() -> float:
    """The numbers."""
    stats = scope.stats()
    assert_type(stats, poolscope.PoolStats)
    assert_type(scope.leases(), tuple[poolscope.Lease, ...])
    return stats.wait.quantile(0.99) + await scope.check()


async def watching(app: web.Application) -> AsyncIterator[None]:
    """A context of the application's own."""
    await scope.execute("INSERT INTO starts DEFAULT VALUES")
    yield


def make_app() -> web.Application:
    """Both ways to set it up."""
    app = web.Application(middlewares=[reports.middleware])
    app.cleanup_ctx.append(reports.cleanup_ctx)
    scope.setup(app)
    scope.read_from(reports, when=lambda request: request.method == "GET")
    app.cleanup_ctx.append(watching)
    app.add_routes(routes)
    return app
