"""PoolScope: the plugin. A middleware that gives each request a connection, and a context that holds the pool."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from aiohttp import hdrs, web

from .answers import answer, only_ours
from .config import PoolConfig
from .connection import Acquisition, ScopedConnection
from .driver import DatabaseError, cancelled_by_server, sqlstate
from .errors import ClientGone, DatabaseUnavailable, PoolScopeError, QueryTimeout, ShuttingDown
from .marks import Mark, mark_of
from .pool import Pool
from .stats import Lease, PoolStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp.abc import AbstractMatchInfo
    from aiohttp.typedefs import Handler

    from .statements import Isolation, Transaction

__all__ = ("PoolScope", "ScopeKey", "State", "setup")

T = TypeVar("T")
State = Literal["starting", "serving", "draining", "closed"]

RETRIABLE = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected: the same transaction may succeed when it is run again."""

LONGEST_PAUSE = 1.0
"""Seconds: the upper limit of the random pause before a transaction is run again."""

_current: contextvars.ContextVar[ScopedConnection | None] = contextvars.ContextVar("poolscope_current", default=None)


class ScopeKey(web.RequestKey[ScopedConnection]):
    """A typed key that is the same entry as its plain string: ``request["db"]`` and ``request[scope.key]``."""

    __slots__ = ("_hash", "name")

    def __init__(self, name: str) -> None:
        super().__init__(name, ScopedConnection)
        self.name = name
        self._hash = hash(name)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or other == self.name or (isinstance(other, ScopeKey) and other.name == self.name)


class PoolScope:
    """One pool of PostgreSQL connections for one application, and a connection for each of its requests.

    ``dsn`` is a URL, libpq's ``key=value`` form, or None (libpq's ``PG*`` variables and service file). ``settings``
    are those of PoolConfig. Raises ConfigError, with the setting's name, for whatever cannot be right.
    """

    def __init__(self, dsn: str | None = None, /, **settings: Any) -> None:
        self._set_config(PoolConfig.build(dsn, **settings))

    @classmethod
    def from_env(cls, prefix: str = "DB_", **settings: Any) -> PoolScope:
        """A scope configured by environment variables: ``DB_HOST``, ``DB_POOL_MAX``, ... and ``DATABASE_URL``."""
        scope = cls.__new__(cls)
        scope._set_config(PoolConfig.from_env(prefix, **settings))
        return scope

    def _set_config(self, config: PoolConfig) -> None:
        self.config = config
        self.key = ScopeKey(config.key)
        self._pool: Pool | None = None
        self._ran = False
        self._contexts = 0
        self._starting: asyncio.Lock
        self._hooked: web.Application | None = None
        self._marks: dict[tuple[Any, str], Mark] = {}

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<PoolScope {self.config.key!r} {self.state}: {stats.in_use} in use, {stats.idle} idle, "
            f"{stats.waiting} waiting of {stats.maxsize}>"
        )

    def setup(self, app: web.Application) -> PoolScope:
        """Add the middleware, the cleanup context and the start of the drain to ``app``."""
        app.middlewares.append(self.middleware)
        app.cleanup_ctx.append(self.cleanup_ctx)
        self._hook_shutdown(app)
        return self

    async def cleanup_ctx(self, app: web.Application) -> AsyncIterator[None]:
        """Open the pool, and at the end drain and close it. For ``app.cleanup_ctx``."""
        if not app.on_shutdown.frozen:  # in a sub-application it is, by now: there only setup() can do it
            self._hook_shutdown(app)
        if not self._contexts:
            self._starting = asyncio.Lock()
        self._contexts += 1
        try:
            async with self._starting:  # two applications of one scope may start at once
                if self._pool is None:
                    self._ran = False
                    pool = Pool(self.config)
                    await pool.start()
                    self._pool = pool
            yield
        finally:
            self._contexts -= 1
            # Set up in an application and in its sub-application, it lives until the last of them ends.
            if self._pool is not None and not self._contexts:
                pool, self._ran = self._pool, True
                try:
                    await asyncio.shield(pool.drain.begin())
                finally:
                    self._pool = None

    def begin_drain(self) -> None:
        """Refuse new requests and start to close. Readiness says 503 from now on. Harmless when repeated."""
        if self._pool is not None:
            self._pool.drain.begin()

    def expire(self) -> None:
        """Replace every connection as it comes back: after a change of passwords, roles or the primary."""
        self._running().expire()

    @property
    def state(self) -> State:
        """``starting`` until the pool is open, ``serving``, ``draining`` once the shutdown began, then ``closed``."""
        if self._pool is None:
            return "closed" if self._ran else "starting"
        return "draining" if self._pool.drain.begun else "serving"

    def _hook_shutdown(self, app: web.Application) -> None:
        if self._hooked is not app:
            self._hooked = app
            # First of all: other hooks may take their time, and handlers hold our connections meanwhile.
            app.on_shutdown.insert(0, self._on_shutdown)

    async def _on_shutdown(self, _app: web.Application) -> None:
        self.begin_drain()

    def _running(self) -> Pool:
        if self._pool is None:
            raise self._not_serving()
        return self._pool

    def _not_serving(self) -> PoolScopeError:
        if self._pool is not None or self._ran:
            return ShuttingDown(f"pool {self.config.key!r} is shutting down or closed")
        return PoolScopeError(
            f"pool {self.config.key!r} is not started: use scope.setup(app), or append scope.cleanup_ctx to "
            "app.cleanup_ctx, and run the application"
        )

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Attach a connection to the request, and take it back whatever happens."""
        pool = self._pool
        match: AbstractMatchInfo = request.match_info
        if pool is None or pool.drain.begun:
            return await self._answer_while_draining(request, handler)
        around = request.get(self.key) if len(request) else None
        # Unmatched, or attached already by the same scope in an outer application. Another scope with the same key
        # gives way to this one: its connection may be to another database.
        if match.http_exception is not None or getattr(around, "_pool", None) is pool:
            return await handler(request)
        mark = self._mark(match.handler, request.method)
        if mark.acquire == "none" or (self.config.skip is not None and self.config.skip(request)):
            return await _answered(request, handler)
        db = ScopedConnection(pool)
        db.client = request
        db.route = request.match_info.route
        db.method = request.method
        db.task = request.task
        db.running = False
        request[self.key] = db
        _current.set(db)
        pool.attached += 1
        try:
            if self._is_eager(mark, request):
                await self._borrow(pool, db, request)
            db.running = True
            if mark.transaction is not None:
                response = await _in_transaction(db, mark.transaction, request, handler)
            else:
                response = await handler(request)
        except BaseException as error:
            refusal = _answer_to(error, request, draining=pool.gate.draining)
            if refusal is None:
                raise
            return refusal
        finally:
            pool.attached -= 1
            db._end("the end of its handler")
            if around is not None:
                request[self.key] = around
        if pool.gate.draining and not response.prepared:
            response.force_close()
        return response

    async def _borrow(self, pool: Pool, db: ScopedConnection, request: web.Request) -> None:
        if self.config.on_acquire is not None or not pool.lend(db):
            await pool.borrow(db)
            _must_be_there(request)

    def _is_eager(self, mark: Mark, request: web.Request) -> bool:
        how = mark.acquire or self.config.acquire
        if how == "auto":
            # While a body is still to come a slow client would pin the connection; a websocket would for hours.
            return request.content.is_eof() and hdrs.UPGRADE not in request.headers
        return how == "eager"

    def _mark(self, handler: Any, method: str) -> Mark:
        key = (handler, method if method in hdrs.METH_ALL else "*")  # clients may make up methods without end
        mark = self._marks.get(key)
        if mark is None:
            of_files = isinstance(getattr(handler, "__self__", None), web.StaticResource)
            mark = self._marks[key] = Mark(acquire="none") if of_files else mark_of(handler, method)
        return mark

    async def _answer_while_draining(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        match: AbstractMatchInfo = request.match_info
        needed = match.http_exception is None and self._mark(match.handler, request.method).acquire != "none"
        if needed and not (self.config.skip is not None and self.config.skip(request)):
            return answer(self._not_serving())
        try:
            response = await _answered(request, handler)
        except web.HTTPException as raised:
            raised.force_close()
            raise
        if not response.prepared:
            response.force_close()
        return response

    def acquire(self, timeout: float | None = None) -> Acquisition:
        """A connection for code outside of requests, or a second one inside.

        ``async with scope.acquire() as db``, or ``db = await scope.acquire()`` and then ``db.release()``. Waits
        ``timeout`` seconds at most (default: ``acquire_timeout``). Raises PoolExhausted, DatabaseUnavailable or
        ShuttingDown.
        """
        db = ScopedConnection(self._running(), once=True)
        db.task = asyncio.current_task()
        around = _current.get()
        if around is not None:
            db.client, db.route, db.method = around.client, around.route, around.method
        return Acquisition(db, timeout)

    @contextlib.asynccontextmanager
    async def transaction(
        self, isolation: Isolation | None = None, *, readonly: bool = False, deferrable: bool = False
    ) -> AsyncIterator[Transaction]:
        """A connection and a transaction on it: COMMIT at the end, ROLLBACK on any exception."""
        async with self.acquire() as db, db.transaction(isolation, readonly=readonly, deferrable=deferrable) as tx:
            yield tx

    async def run_transaction(
        self,
        fn: Callable[[Transaction], Awaitable[T]],
        retries: int = 3,
        *,
        isolation: Isolation | None = None,
        readonly: bool = False,
    ) -> T:
        """Run ``await fn(tx)`` in a transaction and return its result.

        It is run again, ``retries`` times at most, after a serialization failure or a deadlock (SQLSTATE 40001 and
        40P01), with a random pause in between and no connection held meanwhile. ``fn`` must bear being run again.
        """
        attempt = 0
        while True:
            try:
                async with self.transaction(isolation, readonly=readonly) as tx:
                    return await fn(tx)
            except Exception as error:
                if sqlstate(error) not in RETRIABLE or attempt >= retries:
                    raise
            attempt += 1
            await asyncio.sleep(random.random() * min(LONGEST_PAUSE, 0.01 * 2**attempt))  # noqa: S311

    async def fetch(self, sql: str, params: Any = None, *, timeout: float | None = None) -> list[Any]:
        """All rows of one statement."""
        async with self.acquire() as db:
            return await db.fetch(sql, params, timeout=timeout)

    async def fetchrow(self, sql: str, params: Any = None, *, timeout: float | None = None) -> Any:
        """The first row of one statement, or None."""
        async with self.acquire() as db:
            return await db.fetchrow(sql, params, timeout=timeout)

    async def fetchval(self, sql: str, params: Any = None, *, timeout: float | None = None) -> Any:
        """The first column of the first row of one statement, or None."""
        async with self.acquire() as db:
            return await db.fetchval(sql, params, timeout=timeout)

    async def execute(self, sql: str, params: Any = None, *, timeout: float | None = None) -> str:
        """Run one statement; returns its command status."""
        async with self.acquire() as db:
            return await db.execute(sql, params, timeout=timeout)

    async def check(self) -> float:
        """One round trip to the database, in seconds, on a connection of the pool; or DatabaseUnavailable."""
        try:
            async with self.acquire() as db:
                begun = time.monotonic()
                await db.fetchval("SELECT 1")
                return time.monotonic() - begun
        except DatabaseUnavailable:
            raise
        except (PoolScopeError, DatabaseError) as error:
            raise DatabaseUnavailable(f"pool {self.config.key!r}: the check failed: {error}") from error

    def stats(self) -> PoolStats:
        """The numbers of this moment; all zero while there is no pool."""
        if self._pool is None:
            return PoolStats(minsize=self.config.minsize, maxsize=self.config.maxsize)
        return self._pool.stats()

    def leases(self) -> tuple[Lease, ...]:
        """Who holds a connection, since when and for which request; the longest first."""
        return () if self._pool is None else self._pool.leases()


def setup(app: web.Application, dsn: str | None = None, /, **settings: Any) -> PoolScope:
    """Make a PoolScope and set it up in ``app``: ``scope = poolscope.setup(app, dsn, maxsize=20)``."""
    return PoolScope(dsn, **settings).setup(app)


def _answer_to(error: BaseException, request: web.Request, *, draining: bool = False) -> web.Response | None:
    """The answer to what left a handler; None for what is not ours to answer.

    A function of its own, so that no frame of the error's traceback holds the error: that would be a cycle.
    """
    ours: BaseException | None = error
    if isinstance(error, BaseExceptionGroup):
        ours = only_ours(error)
    elif isinstance(error, asyncio.CancelledError) and cancelled_by_server(error):
        ours = QueryTimeout("a statement run on db.raw was cancelled by the server")
    response: web.Response | None = None
    # Not if an answer is on its way already: this one would end up inside of it.
    if isinstance(ours, PoolScopeError) and not request.writer.output_size:
        response = answer(ours)
    closing = error if isinstance(error, web.HTTPException) else response
    if draining and closing is not None:
        # Else a client with a second request under way on this connection gets no answer to it.
        closing.force_close()
    return response


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run a handler that has no connection of its own: what it borrows by scope.acquire() is answered for as well."""
    try:
        return await handler(request)
    except BaseException as error:
        refusal = _answer_to(error, request)
        if refusal is None:
            raise
        return refusal


def _must_be_there(request: web.Request) -> None:
    """After each await before the handler: a client that has left meanwhile does not start it."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ClientGone("the client left between the borrow and its handler")


class _UndoneError(Exception):
    """Carries a response of 400 or above out of a transaction, so that it is rolled back."""

    def __init__(self, response: web.StreamResponse) -> None:
        self.response = response


async def _in_transaction(
    db: ScopedConnection, options: dict[str, Any], request: web.Request, handler: Handler
) -> web.StreamResponse:
    redirect: web.HTTPException | None = None
    try:
        async with db.transaction(**options):
            _must_be_there(request)
            try:
                response = await handler(request)
            except web.HTTPException as raised:
                if raised.status >= web.HTTPBadRequest.status_code:
                    raise
                response = redirect = raised
            if response.status >= web.HTTPBadRequest.status_code:
                raise _UndoneError(response)
    except _UndoneError as undone:
        return undone.response
    if redirect is not None:
        raise redirect
    return response
