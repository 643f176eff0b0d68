"""The same service, written with each library as its documentation does: poolscope, aiopg by hand, and others.

A candidate is a function of a DSN and of settings that its library knows. Each gives a request its connection before
the handler runs; statements commit by themselves unless there is a transaction. What they need is imported where it is
used: a process loads only what it measures, and this package, which mends aiopg from inside, mends nobody else's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiopg
from aiohttp import web

from . import drivers
from .handlers import DB, Candidate, Handler, OnePerSocket, answer, nothing, offer, two_accounts
from .work import CONNECTIONS, ONE, PUT, ROWS, TAKE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp_poolscope import PoolScope

SCOPE: web.AppKey[PoolScope] = web.AppKey("scope")


def poolscope(dsn: str, settings: dict[str, Any]) -> web.Application:
    """This package, with all that is on by default."""
    import aiohttp_poolscope

    app = web.Application()
    app[SCOPE] = aiohttp_poolscope.setup(app, dsn, minsize=CONNECTIONS, maxsize=CONNECTIONS, **settings)

    async def one(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval(ONE)))

    async def rows(request: web.Request) -> web.Response:
        return answer(await request["db"].fetch(ROWS))

    async def transfer(request: web.Request) -> web.Response:
        source, target = two_accounts()
        async with request["db"].transaction() as tx:
            await tx.execute(TAKE + "%s", (source,))
            await tx.execute(PUT + "%s", (target,))
        return web.Response(text="done")

    async def sleep(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(%s)", (request.query["seconds"],))
        return web.Response(text="done")

    return offer(app, one, rows, transfer, sleep, nothing)


def by_hand(dsn: str, settings: dict[str, Any]) -> web.Application:
    """aiopg's pool in a cleanup context, and a middleware that gives each request a connection in an ``async with``."""
    app = web.Application()
    pool_key = web.AppKey("pool", aiopg.Pool)

    async def hold_pool(app: web.Application) -> AsyncIterator[None]:
        async with aiopg.create_pool(dsn, minsize=CONNECTIONS, maxsize=CONNECTIONS, **settings) as pool:
            app[pool_key] = pool
            yield

    @web.middleware
    async def with_connection(request: web.Request, handler: Handler) -> web.StreamResponse:
        async with request.app[pool_key].acquire() as connection:
            request[DB] = connection
            return await handler(request)

    app.middlewares.append(with_connection)
    app.cleanup_ctx.append(hold_pool)
    return offer(app, *with_aiopg())


def no_pool(dsn: str, settings: dict[str, Any]) -> web.Application:
    """aiopg, and a connection for each client socket: what is left of "by hand" when a pool costs nothing."""
    app = web.Application()
    owned_key = web.AppKey("owned", OnePerSocket)

    async def hold_connections(app: web.Application) -> AsyncIterator[None]:
        connections = [await aiopg.connect(dsn, **settings) for _ in range(2 * CONNECTIONS)]
        app[owned_key] = OnePerSocket(connections)
        yield
        for connection in connections:
            await connection.close()

    @web.middleware
    async def with_connection(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[DB] = request.app[owned_key].of(request)
        return await handler(request)

    app.middlewares.append(with_connection)
    app.cleanup_ctx.append(hold_connections)
    return offer(app, *with_aiopg())


def with_aiopg() -> tuple[Handler, ...]:
    """Handlers as one writes them with aiopg, for whoever has set ``request[DB]``."""

    async def one(request: web.Request) -> web.Response:
        async with request[DB].cursor() as cursor:
            await cursor.execute(ONE)
            (value,) = await cursor.fetchone()
        return web.Response(text=str(value))

    async def rows(request: web.Request) -> web.Response:
        async with request[DB].cursor() as cursor:
            await cursor.execute(ROWS)
            return answer(await cursor.fetchall())

    async def transfer(request: web.Request) -> web.Response:
        source, target = two_accounts()
        async with request[DB].cursor() as cursor:
            await cursor.execute("BEGIN")
            try:
                await cursor.execute(TAKE + "%s", (source,))
                await cursor.execute(PUT + "%s", (target,))
                await cursor.execute("COMMIT")
            except Exception:
                await cursor.execute("ROLLBACK")
                raise
        return web.Response(text="done")

    async def sleep(request: web.Request) -> web.Response:
        async with request[DB].cursor() as cursor:
            await cursor.execute("SELECT pg_sleep(%s)", (request.query["seconds"],))
        return web.Response(text="done")

    return one, rows, transfer, sleep, nothing


CANDIDATES: dict[str, Candidate] = {
    "poolscope": poolscope,
    "by hand": by_hand,
    "no pool": no_pool,
    "asyncpg": drivers.with_asyncpg,
    "asyncpg, no reset": drivers.with_asyncpg_no_reset,
    "psycopg_pool": drivers.with_psycopg_pool,
    "aiohttp-sqlalchemy": drivers.with_aiohttp_sqlalchemy,
    "psycopg2 polling": drivers.with_polling,
}


def seen(dsn: str, settings: dict[str, Any]) -> web.Application:
    """This package with Prometheus's route and the page."""
    from aiohttp_poolscope.contrib.dashboard import setup_dashboard
    from aiohttp_poolscope.contrib.prometheus import setup_metrics

    app = poolscope(dsn, settings)
    setup_metrics(app, app[SCOPE])
    setup_dashboard(app, app[SCOPE], allow="loopback")
    return app


def traced(dsn: str, settings: dict[str, Any]) -> web.Application:
    """This package with OpenTelemetry's metrics, in its SDK."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from aiohttp_poolscope.contrib.opentelemetry import instrument

    app = poolscope(dsn, settings)
    instrument(app[SCOPE], meter_provider=MeterProvider([InMemoryMetricReader()]))
    return app


OBSERVED: dict[str, Candidate] = {"Prometheus and page": seen, "OpenTelemetry": traced}
"""What the study of the costs of being seen compares with ``poolscope``."""


def refusal(dsn: str, settings: dict[str, Any]) -> web.Application:
    """503 for everybody, without a middleware, a pool or a database: no refusal can cost less than this one."""
    app = web.Application()

    async def sleep(request: web.Request) -> web.Response:
        return web.Response(status=503, text="no")

    app.router.add_get("/sleep", sleep)
    return app


LIMITS: dict[str, Candidate] = {"aiohttp alone": refusal}
"""What no candidate can surpass; they do no work of their own."""
