"""PoolScope: the plugin. A middleware that gives each request a connection, and a context that holds the pool."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.driver import DatabaseError, cancelled_by_server, sqlstate
from aiohttp_poolscope.errors import ClientGone, ConfigError, DatabaseUnavailable, PoolScopeError, QueryTimeout
from aiohttp_poolscope.events import Events
from aiohttp_poolscope.logs import LOGGED, complain, write
from aiohttp_poolscope.pool import Pool

from .marks import Mark, mark_of
from .outside import Direct, State, current, is_plain
from .responses import answer, only_ours

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp.abc import AbstractMatchInfo
    from aiohttp.typedefs import Handler
    from yarl import URL

    from aiohttp_poolscope.config import Source

__all__ = ("PoolScope", "ScopeKey", "State", "setup")

logger = logging.getLogger("aiohttp_poolscope")

OUT_OF_RESOURCES = "53"
"""SQLSTATE class 53: disk full, out of memory, too many connections. The statement is not at fault."""


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


class PoolScope(Direct):
    """One pool of PostgreSQL connections for one application, and a connection for each of its requests.

    ``dsn`` is a URL, libpq's ``key=value`` form, None (libpq's ``PG*`` variables and service file), or a function (also
    async) that is asked for one at every connect. ``settings`` are those of PoolConfig. Raises ConfigError, with the
    setting's name, for whatever cannot be right.
    """

    def __init__(self, dsn: str | URL | Source = None, /, **settings: Any) -> None:
        self._set_config(PoolConfig.build(dsn, **settings))

    @classmethod
    def from_env(cls, prefix: str = "DB_", **settings: Any) -> PoolScope:
        """A scope configured by environment variables: ``DB_HOST``, ``DB_POOL_MAX``, ... and ``DATABASE_URL``."""
        scope = cls.__new__(cls)
        scope._set_config(PoolConfig.from_env(prefix, **settings))
        return scope

    def _set_config(self, config: PoolConfig) -> None:
        self.config = config
        self._events = Events(partial(complain, config.key))
        self._events.listen(write, *LOGGED)
        self.key = ScopeKey(config.key)
        self._pool: Pool | None = None
        self._ran = False
        self._contexts = 0
        self._serving: list[web.Application] = []
        self._starting: asyncio.Lock
        self._hooked: web.Application | None = None
        self._marks: dict[tuple[Any, str], Mark] = {}
        self._replica: PoolScope | None = None
        self._is_replica = False
        self._reads: Callable[[web.Request], bool] | None = None

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

    def read_from(self, replica: PoolScope, when: Callable[[web.Request], bool] | None = None) -> None:
        """Serve reads from another scope: one with ``readonly=True`` and ``target="prefer-standby"``, say.

        Handlers marked ``@poolscope.replica``, and requests for which ``when(request)`` is true, get their
        ``request["db"]`` from ``replica``; from this scope itself while that one is not running or its database is
        away. It has to be set up in the application, too; under its own key requests borrow at first use only, and
        its end refuses nobody. A replica is behind: what was just written may be missing.

        Raises ConfigError when ``replica`` is not another scope, or ``when`` not a function.
        """
        if not isinstance(replica, PoolScope) or replica is self or replica.config.key == self.config.key:
            raise ConfigError(f"read_from(replica={replica!r}): must be another PoolScope, with a key of its own")
        if when is not None and not is_plain(when):
            raise ConfigError(f"read_from(when={when!r}): must be a plain function of one argument, the request")
        self._replica, self._reads = replica, when
        replica._is_replica = True

    async def cleanup_ctx(self, app: web.Application) -> AsyncIterator[None]:
        """Open the pool, and at the end drain and close it. For ``app.cleanup_ctx``."""
        if not app.on_shutdown.frozen:  # in a sub-application it is, by now: there only setup() can do it
            self._hook_shutdown(app)
        if not self._contexts:
            self._starting = asyncio.Lock()
        self._contexts += 1
        self._serving.append(app)
        try:
            self._look_at(app)
            async with self._starting:  # two applications of one scope may start at once
                if self._pool is not None and self._pool.drain.begun:  # that of the run before
                    await asyncio.shield(self._pool.drain.begin())
                    self._pool = None
                if self._pool is None:
                    self._ran = False
                    pool = Pool(self.config, self._events)
                    await pool.start()
                    self._pool = pool
            yield
        finally:
            self._contexts -= 1
            self._ends(app)
            # Set up in several applications, or in one and its sub-application, it lives until the last of them ends.
            if self._pool is not None and not self._contexts:
                pool, self._ran = self._pool, True
                try:
                    await asyncio.shield(pool.drain.begin())
                finally:
                    self._pool = None

    def _look_at(self, app: web.Application) -> None:
        """Warn of what would be a riddle later."""
        if app.middlewares.count(self.middleware) > 1:
            said = "stands in app.middlewares more than once: scope.setup(app) has added it already"
        elif self._has_namesake(app):
            said = "stands beside that of another scope of this key, and hides its connection: give one another key"
        elif self.config.skip is None and not self._is_replica and not self._has_middleware(app):
            said = (
                f"is in no application, so request[{self.config.key!r}] will not exist: scope.setup(app) adds it, or "
                "app.middlewares.append(scope.middleware). For scope.acquire() alone say skip=lambda request: True"
            )
        else:
            return
        logger.warning("pool %r: the middleware %s", self.config.key, said, extra={"pool": self.config.key})

    def _has_namesake(self, app: web.Application) -> bool:
        owners = [getattr(middleware, "__self__", None) for middleware in app.middlewares]
        return any(isinstance(it, PoolScope) and it is not self and it.key == self.key for it in owners)

    def _has_middleware(self, app: web.Application) -> bool:
        return self.middleware in app.middlewares or any(map(self._has_middleware, app._subapps))

    def begin_drain(self) -> None:
        """Refuse new requests and start to close. Readiness says 503 from now on. Harmless when repeated."""
        if self._pool is not None:
            self._pool.drain.begin()

    def _hook_shutdown(self, app: web.Application) -> None:
        if self._hooked is not app:
            self._hooked = app
            # First of all: other hooks may take their time, and handlers hold our connections meanwhile.
            app.on_shutdown.insert(0, self._on_shutdown)

    async def _on_shutdown(self, app: web.Application) -> None:
        self._ends(app)
        if not self._serving:
            self.begin_drain()

    def _ends(self, app: web.Application) -> None:
        self._serving = [each for each in self._serving if not _is_within(each, app)]

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Attach a connection to the request, and take it back whatever happens."""
        pool = self._pool
        match: AbstractMatchInfo = request.match_info
        if pool is None or pool.drain.begun:
            return await (handler(request) if self._is_replica else self._answer_while_draining(request, handler))
        around = request.get(self.key) if len(request) else None
        # Unmatched, or attached already by the same scope in an outer application. Another scope with the same key
        # gives way to this one: its connection may be to another database.
        if match.http_exception is not None or (around is not None and self._is_ours(around)):
            return await handler(request)
        mark = self._mark(match.handler, request.method)
        if mark.acquire == "none" or (self.config.skip is not None and self.config.skip(request)):
            return await _answered(request, handler)
        source = pool if self._replica is None else self._pool_to_read(pool, self._replica, mark, request)
        db = ScopedConnection(source, home=pool)
        db.client = request
        db.route = request.match_info.route
        db.method = request.method
        db.task = asyncio.current_task()  # not request.task: that is the connection's, and waits for this one
        db.handling = True
        db.running = False
        request[self.key] = db
        current.set(db)
        pool.attached += 1
        source.attached += 1  # the same one, mostly: what counts is that it is not 0
        try:
            # An idle connection is lent without an await: no frame, no task, nothing to be cancelled in.
            if self._is_eager(mark, request) and (db._pool.on_acquire is not None or not db._pool.lend(db)):
                await db._lent()
                _must_be_there(request)
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
            source.attached -= 1
            db._end("the end of its handler")
            if around is not None:
                request[self.key] = around
        if pool.gate.draining and not response.prepared:
            response.force_close()
        return response

    def _is_ours(self, attached: Any) -> bool:
        return isinstance(attached, ScopedConnection) and attached._home is self._pool

    def _pool_to_read(self, own: Pool, replica: PoolScope, mark: Mark, request: web.Request) -> Pool:
        """The pool for this request: the replica's, if it may be and can be."""
        pool = replica._pool
        reads = mark.replica or (self._reads is not None and self._reads(request))
        if not reads or pool is None or pool.drain.begun:
            return own
        if not pool.gate.slots and (pool.opener.problem or pool.gate.opening):  # do not wait for what may not come
            return own
        return pool

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
            mark = Mark(acquire="none") if of_files else mark_of(handler, method)
            if self._is_replica and mark.acquire != "none":  # the other marks are about the scope that reads from it
                mark = Mark(acquire="lazy")
            self._marks[key] = mark
        return mark

    async def _answer_while_draining(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        match: AbstractMatchInfo = request.match_info
        needed = match.http_exception is None and self._mark(match.handler, request.method).acquire != "none"
        if needed and not (self.config.skip is not None and self.config.skip(request)):
            return answer(self._not_serving(), request)
        try:
            response = await _answered(request, handler)
        except web.HTTPException as raised:
            raised.force_close()
            raise
        if not response.prepared:
            response.force_close()
        return response


def setup(app: web.Application, dsn: str | URL | Source = None, /, **settings: Any) -> PoolScope:
    """Make a PoolScope and set it up in ``app``: ``scope = poolscope.setup(app, dsn, maxsize=20)``."""
    return PoolScope(dsn, **settings).setup(app)


def _is_within(app: web.Application, outer: web.Application) -> bool:
    return app is outer or any(_is_within(app, inner) for inner in outer._subapps)


def _answer_to(error: BaseException, request: web.Request, *, draining: bool = False) -> web.Response | None:
    """The answer to what left a handler; None for what is not ours to answer.

    A function of its own, so that no frame of the error's traceback holds the error: that would be a cycle.
    """
    ours: BaseException | None = error
    if isinstance(error, BaseExceptionGroup):
        ours = only_ours(error)
    elif isinstance(error, asyncio.CancelledError) and cancelled_by_server(error):
        ours = QueryTimeout("a statement run on db.raw was cancelled by the server")
    elif isinstance(error, DatabaseError) and (sqlstate(error) or "").startswith(OUT_OF_RESOURCES):
        ours = DatabaseUnavailable(f"the server has run out of something: {error}")
    response: web.Response | None = None
    # Not if an answer is on its way already: this one would end up inside of it.
    if isinstance(ours, PoolScopeError) and not request.writer.output_size:
        response = answer(ours, request)
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
