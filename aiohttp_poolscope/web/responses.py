"""Errors as HTTP answers: RFC 9457 problem+json that tells a client what to do and nothing about the database."""

from __future__ import annotations

import functools
import json
import logging

from aiohttp import web

from aiohttp_poolscope.clock import SYSTEM
from aiohttp_poolscope.driver import sqlstate
from aiohttp_poolscope.errors import OutcomeUnknown, PoolScopeError, ShuttingDown
from aiohttp_poolscope.logs import LogLimiter, is_mistake, request_in_words
from aiohttp_poolscope.request import answer_begun, client_gone, path_of, request_id, route_of

__all__ = ("answer", "begin_anew", "note_undone", "only_ours")

logger = logging.getLogger("aiohttp_poolscope")

CLIENT_GONE = 499
"""nginx's "Client Closed Request": nobody is there to receive it, but the access log shows why the request ended."""

_limiter = LogLimiter()


def begin_anew(pool: str) -> None:
    """A scope is made: what another one of its key has refused lately leaves out none of its lines."""
    _limiter.forget(pool)


def answer(error: PoolScopeError, request: web.Request, pool: str) -> web.Response:
    """The answer to a request that ended with ``error``. ``pool`` is the key of its pool, if the error knows none.

    A response to return, not an HTTPException to raise: raised, it would leave some twenty objects in reference
    cycles, and refusing must be cheap while there is most of it to do.
    """
    _log(error, request, error.pool or pool)
    response = web.Response(
        status=error.status,
        reason="Client Closed Request" if error.status == CLIENT_GONE else None,
        body=_body(error.title, error.status, error.code),
        content_type="application/problem+json",
        charset="utf-8",
        headers=None if error.retry_after is None else {"Retry-After": str(error.retry_after)},
    )
    response.headers["X-Request-ID"] = request_id(request)
    if isinstance(error, ShuttingDown):
        response.force_close()
    return response


@functools.cache
def _body(title: str, status: int, code: str) -> bytes:
    return json.dumps({"type": "about:blank", "title": title, "status": status, "code": code}).encode()


def only_ours(group: BaseExceptionGroup[BaseException]) -> PoolScopeError | None:
    """The gravest error of a group that holds nothing but errors of this package; None for any other group.

    One that leaves a doubt of what was done, before one that invites to try again; of equals, the first.
    """
    gravest: PoolScopeError | None = None
    for error in group.exceptions:
        found = only_ours(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(found, PoolScopeError):
            return None
        if gravest is None or _gravity(found) > _gravity(gravest):
            gravest = found
    return gravest


def _gravity(error: PoolScopeError) -> int:
    return 2 if isinstance(error, OutcomeUnknown) else int(error.retry_after is None)


def note_undone(error: BaseException, request: web.Request, pool: str) -> None:
    """Log an answer that was on its way when its transaction was rolled back: its client believes what is not so."""
    sent = getattr(request.writer, "_eof", False) is True
    if not answer_begun(request) or (client_gone(request) and not sent):  # nobody has had that answer
        return
    more = _limiter.suffix((pool, "answer-undone"), SYSTEM.monotonic())
    if more is not None:
        lost, name = isinstance(error, OutcomeUnknown), type(error).__name__
        code = sqlstate(error)
        logger.error(
            "pool %r: the answer to %s had %s when its transaction was %s (%s): what it says %s written. Send it after "
            "the transaction%s",
            pool,
            _who(request),
            "been sent" if sent else "begun",
            "lost in its COMMIT" if lost else "rolled back",
            name if code is None else f"{name}, SQLSTATE {code}",
            "may not be" if lost else "is not",
            more,
            extra={"event": "answer-undone", "pool": pool, **_about(request)},
        )


def _log(error: PoolScopeError, request: web.Request, pool: str) -> None:
    mistake = is_mistake(error)
    # A mistake in one handler must not hide one in another.
    kind = (pool, error.code, route_of(request.match_info.route) if mistake else None)
    more = _limiter.suffix(kind, SYSTEM.monotonic())
    if more is None:
        return
    bad = error.status == web.HTTPInternalServerError.status_code
    level = logging.ERROR if bad else logging.INFO if error.status == CLIENT_GONE else logging.WARNING
    named = str(error) if f"pool {pool!r}" in str(error) else f"pool {pool!r}: {error}"
    statement = f": {error.statement}" if error.statement else ""
    told = {"event": error.code, "pool": pool, **_about(request)}
    if error.statement:
        told["statement"] = error.statement
    # A mistake in the program wants its traceback.
    logger.log(
        level,
        "%s [%s%s]%s",
        named,
        _who(request),
        statement,
        more,
        exc_info=error if mistake else None,
        extra=told,
    )


def _who(request: web.Request) -> str:
    return request_in_words(request.method, route_of(request.match_info.route) or path_of(request), request_id(request))


def _about(request: web.Request) -> dict[str, str | None]:
    return {
        "method": request.method,
        "path": path_of(request),
        "route": route_of(request.match_info.route),
        "request_id": request_id(request),
    }
