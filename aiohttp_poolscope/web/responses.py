"""Errors as HTTP answers: RFC 9457 problem+json that tells a client what to do and nothing about the database."""

from __future__ import annotations

import functools
import json
import logging

from aiohttp import web

from aiohttp_poolscope.clock import SYSTEM
from aiohttp_poolscope.errors import OutcomeUnknown, PoolScopeError, ShuttingDown
from aiohttp_poolscope.logs import LogLimiter
from aiohttp_poolscope.request import path_of, request_id, route_of

__all__ = ("answer", "only_ours")

logger = logging.getLogger("aiohttp_poolscope")

CLIENT_GONE = 499
"""nginx's "Client Closed Request": nobody is there to receive it, but the access log shows why the request ended."""

_limiter = LogLimiter()


def answer(error: PoolScopeError, request: web.Request | None = None) -> web.Response:
    """The answer to a request that ended with ``error``.

    A response to return, not an HTTPException to raise: raised, it would leave some twenty objects in reference
    cycles, and refusing must be cheap while there is most of it to do.
    """
    _log(error, request)
    response = web.Response(
        status=error.status,
        reason="Client Closed Request" if error.status == CLIENT_GONE else None,
        body=_body(error.title, error.status, error.code),
        content_type="application/problem+json",
        charset="utf-8",
        headers=None if error.retry_after is None else {"Retry-After": str(error.retry_after)},
    )
    if request is not None:
        response.headers["X-Request-ID"] = request_id(request)
    if isinstance(error, ShuttingDown):
        response.force_close()
    return response


@functools.cache
def _body(title: str, status: int, code: str) -> bytes:
    return json.dumps({"type": "about:blank", "title": title, "status": status, "code": code}).encode()


def only_ours(group: BaseExceptionGroup[BaseException]) -> PoolScopeError | None:
    """The first error of a group that holds nothing but errors of this package; None for any other group."""
    first: PoolScopeError | None = None
    for error in group.exceptions:
        found = only_ours(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(found, PoolScopeError):
            return None
        first = first or found
    return first


def _log(error: PoolScopeError, request: web.Request | None) -> None:
    bad = error.status == web.HTTPInternalServerError.status_code
    mistake = bad and not isinstance(error, OutcomeUnknown)
    more = "" if mistake else _limiter.suffix(error.code, SYSTEM.monotonic())
    if more is None:
        return
    level = logging.ERROR if bad else logging.INFO if error.status == CLIENT_GONE else logging.WARNING
    # A mistake in the program wants its traceback.
    logger.log(level, "%s%s", error, more, exc_info=error if mistake else None, extra=_structured(error, request))


def _structured(error: PoolScopeError, request: web.Request | None) -> dict[str, str | None]:
    if request is None:
        return {"event": error.code}
    return {
        "event": error.code,
        "method": request.method,
        "path": path_of(request),
        "route": route_of(request.match_info.route),
        "request_id": request_id(request),
    }
