"""The same service with other drivers: asyncpg, psycopg 3, SQLAlchemy, and psycopg2 with nothing around it."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

import psycopg2.extras
from aiohttp import web

from .handlers import DB, Handler, OnePerSocket, answer, nothing, offer, two_accounts
from .work import CONNECTIONS, ONE, PUT, ROWS, TAKE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def with_asyncpg(dsn: str, settings: dict[str, Any]) -> web.Application:
    """asyncpg's pool, which keeps a cache of prepared statements and resets a session that comes back."""
    import asyncpg

    app = web.Application()
    pool_key = web.AppKey("pool", asyncpg.Pool)

    async def hold_pool(app: web.Application) -> AsyncIterator[None]:
        async with asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, **settings) as pool:
            app[pool_key] = pool
            yield

    @web.middleware
    async def with_connection(request: web.Request, handler: Handler) -> web.StreamResponse:
        async with request.app[pool_key].acquire() as connection:
            request[DB] = connection
            return await handler(request)

    async def one(request: web.Request) -> web.Response:
        return web.Response(text=str(await request[DB].fetchval(ONE)))

    async def rows(request: web.Request) -> web.Response:
        return answer(await request[DB].fetch(ROWS))

    async def transfer(request: web.Request) -> web.Response:
        source, target = two_accounts()
        async with request[DB].transaction():
            await request[DB].execute(TAKE + "$1", source)
            await request[DB].execute(PUT + "$1", target)
        return web.Response(text="done")

    async def sleep(request: web.Request) -> web.Response:
        await request[DB].execute("SELECT pg_sleep($1)", float(request.query["seconds"]))
        return web.Response(text="done")

    app.middlewares.append(with_connection)
    app.cleanup_ctx.append(hold_pool)
    return offer(app, one, rows, transfer, sleep, nothing)


def with_asyncpg_no_reset(dsn: str, settings: dict[str, Any]) -> web.Application:
    """The same without the reset: what asyncpg itself costs. Session state then reaches the next borrower."""

    async def no_reset(connection: Any) -> None:
        pass

    return with_asyncpg(dsn, {**settings, "reset": no_reset})


def with_psycopg_pool(dsn: str, settings: dict[str, Any]) -> web.Application:
    """psycopg 3 and its pool; autocommit, or each SELECT would pay for BEGIN and COMMIT."""
    from psycopg_pool import AsyncConnectionPool

    app = web.Application()
    pool_key = web.AppKey("pool", AsyncConnectionPool)

    async def hold_pool(app: web.Application) -> AsyncIterator[None]:
        options: dict[str, Any] = {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "open": False, **settings}
        async with AsyncConnectionPool(dsn, kwargs={"autocommit": True}, **options) as pool:
            await pool.wait()
            app[pool_key] = pool
            yield

    @web.middleware
    async def with_connection(request: web.Request, handler: Handler) -> web.StreamResponse:
        async with request.app[pool_key].connection() as connection:
            request[DB] = connection
            return await handler(request)

    async def one(request: web.Request) -> web.Response:
        cursor = await request[DB].execute(ONE)
        (value,) = await cursor.fetchone()
        return web.Response(text=str(value))

    async def rows(request: web.Request) -> web.Response:
        cursor = await request[DB].execute(ROWS)
        return answer(await cursor.fetchall())

    async def transfer(request: web.Request) -> web.Response:
        source, target = two_accounts()
        async with request[DB].transaction():
            await request[DB].execute(TAKE + "%s", (source,))
            await request[DB].execute(PUT + "%s", (target,))
        return web.Response(text="done")

    async def sleep(request: web.Request) -> web.Response:
        await request[DB].execute("SELECT pg_sleep(%s)", (float(request.query["seconds"]),))
        return web.Response(text="done")

    app.middlewares.append(with_connection)
    app.cleanup_ctx.append(hold_pool)
    return offer(app, one, rows, transfer, sleep, nothing)


def with_aiohttp_sqlalchemy(dsn: str, settings: dict[str, Any]) -> web.Application:
    """SQLAlchemy's sessions on asyncpg, attached by aiohttp-sqlalchemy; autocommit but for the transfer."""
    import aiohttp_sqlalchemy
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    # Its keys are strings, of which aiohttp would warn at each request.
    warnings.simplefilter("ignore", web.NotAppKeyWarning)
    engine = create_async_engine(
        dsn.replace("postgresql://", "postgresql+asyncpg://", 1),
        isolation_level="AUTOCOMMIT",
        **{"pool_size": CONNECTIONS, "max_overflow": 0, **settings},
    )
    app = web.Application()
    aiohttp_sqlalchemy.setup(app, [aiohttp_sqlalchemy.bind(engine)])
    session_of = aiohttp_sqlalchemy.get_session
    select_one, select_rows = text(ONE), text(ROWS)
    take, put, pg_sleep = text(TAKE + ":id"), text(PUT + ":id"), text("SELECT pg_sleep(:seconds)")

    async def dispose(app: web.Application) -> None:
        await engine.dispose()

    async def one(request: web.Request) -> web.Response:
        return web.Response(text=str(await session_of(request).scalar(select_one)))

    async def rows(request: web.Request) -> web.Response:
        return answer(await session_of(request).execute(select_rows))

    async def transfer(request: web.Request) -> web.Response:
        source, target = two_accounts()
        session = session_of(request)
        async with session.begin():
            await session.connection(execution_options={"isolation_level": "READ COMMITTED"})
            await session.execute(take, {"id": source})
            await session.execute(put, {"id": target})
        return web.Response(text="done")

    async def sleep(request: web.Request) -> web.Response:
        await session_of(request).execute(pg_sleep, {"seconds": float(request.query["seconds"])})
        return web.Response(text="done")

    app.on_cleanup.append(dispose)
    return offer(app, one, rows, transfer, sleep, nothing)


class Polled:
    """A psycopg2 connection, its one cursor, and the least code that waits for a result without blocking."""

    def __init__(self, dsn: str, settings: dict[str, Any]) -> None:
        self.raw = psycopg2.connect(dsn, **settings, async_=True)
        psycopg2.extras.wait_select(self.raw)
        self.cursor = self.raw.cursor()
        self._loop = asyncio.get_running_loop()
        self._waiter = self._loop.create_future()
        self._fd = self.raw.fileno()
        self._loop.add_reader(self._fd, self._readable)

    async def execute(self, sql: str, params: Any = None) -> Any:
        """Run a statement that fits into the socket's buffer; the cursor with its result."""
        self._waiter = self._loop.create_future()
        self.cursor.execute(sql, params)
        self._readable()  # psycopg2's documentation polls first, then waits
        await self._waiter
        return self.cursor

    def _readable(self) -> None:
        try:
            state = self.raw.poll()
        except psycopg2.Error as error:
            if self.raw.closed:
                self._loop.remove_reader(self._fd)
            if not self._waiter.done():
                self._waiter.set_exception(error)
        else:
            if state == psycopg2.extensions.POLL_OK and not self._waiter.done():
                self._waiter.set_result(None)

    def close(self) -> None:
        """Close the connection."""
        if not self.raw.closed:
            self._loop.remove_reader(self._fd)
            self.raw.close()


def with_polling(dsn: str, settings: dict[str, Any]) -> web.Application:
    """psycopg2 with one connection and one cursor for each client socket: the limit of what can be had with it."""
    app = web.Application()
    owned_key = web.AppKey("owned", OnePerSocket)

    async def hold_connections(app: web.Application) -> AsyncIterator[None]:
        connections = [Polled(dsn, settings) for _ in range(2 * CONNECTIONS)]
        app[owned_key] = OnePerSocket(connections)
        yield
        for connection in connections:
            connection.close()

    async def one(request: web.Request) -> web.Response:
        cursor = await request.app[owned_key].of(request).execute(ONE)
        return web.Response(text=str(cursor.fetchone()[0]))

    async def rows(request: web.Request) -> web.Response:
        cursor = await request.app[owned_key].of(request).execute(ROWS)
        return answer(cursor.fetchall())

    async def transfer(request: web.Request) -> web.Response:
        source, target = two_accounts()
        connection = request.app[owned_key].of(request)
        await connection.execute("BEGIN")
        try:
            await connection.execute(TAKE + "%s", (source,))
            await connection.execute(PUT + "%s", (target,))
            await connection.execute("COMMIT")
        except Exception:
            await connection.execute("ROLLBACK")
            raise
        return web.Response(text="done")

    async def sleep(request: web.Request) -> web.Response:
        await request.app[owned_key].of(request).execute("SELECT pg_sleep(%s)", (request.query["seconds"],))
        return web.Response(text="done")

    app.cleanup_ctx.append(hold_connections)
    return offer(app, one, rows, transfer, sleep, nothing)
