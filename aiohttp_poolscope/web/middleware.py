"""Middleware: attaches a connection to a request, and takes it back whatever happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web

from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.driver import OUT_OF_RESOURCES, DatabaseError, cancelled_by_server, sqlstate
from aiohttp_poolscope.errors import ClientGone, DatabaseUnavailable, PoolScopeError, QueryTimeout
from aiohttp_poolscope.request import answer_begun, client_gone

from .marks import Mark, mark_of
from .outside import Outside, current
from .replica import ReplicaOrHome
from .responses import answer, begin_anew, note_undone, only_ours

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.abc import AbstractMatchInfo
    from aiohttp.typedefs import Handler

    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.pool import Pool

__all__ = ("Middleware", "ScopeKey")


class ScopeKey(web.RequestKey[ScopedConnection]):
    """A typed key that is the same entry as its plain string: ``request["db"]`` and ``request[scope.key]``."""

    __slots__ = ("_hash", "name")

    def __init__(self, name: str) -> None:
        # aiohttp's own looks for the module that is being imported, to name the key after it. A thread imports none.
        self._name = self.name = name
        self._t = ScopedConnection
        self._hash = hash(name)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or other == self.name or (isinstance(other, ScopeKey) and other.name == self.name)


class Middleware(Outside):
    """A scope's side of a request. ``_replica`` is the scope to read from, for what ``_reads`` or a mark names."""

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(config)
        begin_anew(config.key)
        self.key = ScopeKey(config.key)
        self._marks: dict[tuple[Any, str], Mark] = {}
        self._replica: Outside | None = None
        self._is_replica = False
        self._reads: Callable[[web.Request], bool] | None = None

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Attach a connection to the request, and take it back whatever happens."""
        run = self._run
        match: AbstractMatchInfo = request.match_info
        if run is None or run.draining:
            return await (handler(request) if self._is_replica else self._answer_while_draining(request, handler))
        pool = run.pool
        around = request.get(self.key) if len(request) else None
        # Unmatched, or attached already by the same scope in an outer application.
        if match.http_exception is not None or (around is not None and _is_of_this_pass(around, pool, match)):
            return await handler(request)
        mark = self._mark(match, request.method, handler)
        if mark.acquire == "none" or (self.config.skip is not None and self.config.skip(request)):
            return await self._answered(request, handler)
        source = pool if self._replica is None else self._pool_to_read(pool, self._replica, mark, request)
        db = ScopedConnection(pool if source is pool else ReplicaOrHome(source, pool))
        db.client = request
        db.route = request.match_info.route
        db.method = request.method
        db.task = asyncio.current_task()  # not request.task: that is the connection's, and waits for this one
        db.handling = True
        db.running = False
        request[self.key] = db
        current.set(db)
        pool.attached += 1
        source.attached += source is not pool
        try:
            # An idle connection is lent without an await: no frame, no task, nothing to be cancelled in.
            if self._is_eager(mark, request) and (source.on_acquire is not None or not source.lend(db)):
                await db._lender.borrow(db)
                _must_be_there(request)
            db.running = True
            if mark.transaction is not None:
                response = await _in_transaction(db, mark.transaction, request, handler)
            else:
                response = await handler(request)
        except BaseException as error:
            _note_failure(db, error)
            refusal = _answer_to(error, request, db._lender.key, draining=pool.gate.draining)
            if refusal is None:
                raise
            return refusal
        finally:
            pool.attached -= 1
            source.attached -= source is not pool
            db._end("the end of its handler")
            if around is not None:
                self._restore(around, pool, request)
        if pool.gate.draining:
            _close_after(response)
        return response

    def _restore(self, around: Any, pool: Pool, request: web.Request) -> None:
        """What was there before: of another scope, under the key; of an earlier pass, for what is borrowed beside."""
        if _home_of(around) is not pool:
            request[self.key] = around
        else:
            current.set(around)

    def _pool_to_read(self, own: Pool, replica: Outside, mark: Mark, request: web.Request) -> Pool:
        """The pool for this request: the replica's, if it may be and can be."""
        run = replica._run
        reads = mark.replica or (self._reads is not None and self._reads(request))
        if not reads or run is None or run.draining:
            return own
        pool = run.pool
        if not pool.gate.slots and (pool.opener.problem or pool.gate.opening):  # do not wait for what may not come
            return own
        return pool

    def _is_eager(self, mark: Mark, request: web.Request) -> bool:
        how = mark.acquire or self.config.acquire
        if how == "auto":
            # While a body is still to come a slow client would pin the connection; a websocket would for hours.
            return request.content.is_eof() and hdrs.UPGRADE not in request.headers
        return how == "eager"

    def _mark(self, match: AbstractMatchInfo, method: str, called: Any = None) -> Mark:
        handler: Any = match.handler
        key = (handler, method if method in hdrs.METH_ALL else "*")  # clients may make up methods without end
        mark = self._marks.get(key)
        if mark is None:
            if called is not None and not isinstance(getattr(match, "route", None), web.AbstractRoute):
                return mark_of(called, method)  # make_mocked_request's: each has a route of its own, that knows nothing
            of_files = isinstance(getattr(handler, "__self__", None), web.StaticResource)
            mark = Mark(acquire="none") if of_files else mark_of(handler, method)
            if self._is_replica and mark.acquire != "none":  # the other marks are about the scope that reads from it
                mark = Mark(acquire="lazy")
            self._marks[key] = mark
        return mark

    async def _answer_while_draining(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        match: AbstractMatchInfo = request.match_info
        needed = match.http_exception is None and self._mark(match, request.method).acquire != "none"
        if needed and not (self.config.skip is not None and self.config.skip(request)):
            return answer(self._not_serving(), request, self.config.key)
        try:
            response = await self._answered(request, handler)
        except web.HTTPException as raised:
            raised.force_close()
            raise
        _close_after(response)
        return response

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Run a handler without a connection of its own: what it borrows by scope.acquire() is answered for as well."""
        try:
            return await handler(request)
        except BaseException as error:
            refusal = _answer_to(error, request, self.config.key)
            if refusal is None:
                raise
            return refusal


def _close_after(response: web.StreamResponse | None) -> None:
    """No more requests on this connection. Of a handler that has returned nothing, it is aiohttp that complains."""
    if response is not None and not response.prepared:
        response.force_close()


def _home_of(attached: Any) -> object:
    """The pool of the scope that a connection was attached by."""
    lender = getattr(attached, "_lender", None)
    return lender.home if isinstance(lender, ReplicaOrHome) else lender


def _is_of_this_pass(attached: Any, pool: Pool, match: AbstractMatchInfo) -> bool:
    """Whether a request's connection was attached by the same scope, in the same pass through its middlewares.

    Another scope with the same key gives way: its connection may be to another database. A request that is handled
    again has one that has ended; a clone that is dispatched has that of its original, and a match of its own.
    """
    request: web.Request | None = getattr(attached, "client", None)
    return request is not None and _home_of(attached) is pool and request.match_info is match


def _is_redirect(error: BaseException) -> bool:
    """Whether it is an answer that is raised, and no error: ``raise web.HTTPFound(...)``."""
    return isinstance(error, web.HTTPException) and error.status < web.HTTPBadRequest.status_code


def _note_failure(db: ScopedConnection, error: BaseException) -> None:
    if not _is_redirect(error):
        db._fail()


def _answer_to(error: BaseException, request: web.Request, pool: str, *, draining: bool = False) -> web.Response | None:
    """The answer to what left a handler; None for what is not ours to answer. ``pool`` is the key of the request's.

    A function of its own, so that no frame of the error's traceback holds the error: that would be a cycle.
    """
    ours: BaseException | None = error
    if isinstance(error, BaseExceptionGroup):
        ours = only_ours(error)
    elif isinstance(error, asyncio.CancelledError) and cancelled_by_server(error):
        ours = QueryTimeout("a statement run on db.raw was cancelled by the server")
    elif isinstance(error, DatabaseError) and (sqlstate(error) or "").startswith(OUT_OF_RESOURCES):
        ours = DatabaseUnavailable(f"the server has run out of something: {error}")
        ours.pool, ours.statement = getattr(error, "pool", None), getattr(error, "statement", None)
    response: web.Response | None = None
    # Not if an answer is on its way already: this one would end up inside of it.
    if isinstance(ours, PoolScopeError) and not answer_begun(request):
        response = answer(ours, request, pool)
    closing = error if isinstance(error, web.HTTPException) else response
    if draining and closing is not None:
        # Else a client with a second request under way on this connection gets no answer to it.
        closing.force_close()
    return response


def _must_be_there(request: web.Request) -> None:
    """After each await before the handler: a client that has left meanwhile does not start it."""
    if client_gone(request):
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
                if not _is_redirect(raised):
                    raise
                response = redirect = raised
            # None is no answer. aiohttp says so, in a 500.
            if getattr(response, "status", web.HTTPInternalServerError.status_code) >= web.HTTPBadRequest.status_code:
                raise _UndoneError(response)
    except _UndoneError as undone:
        return undone.response
    except BaseException as error:
        note_undone(error, request, db._lender.key)
        raise
    if redirect is not None:
        raise redirect
    return response
