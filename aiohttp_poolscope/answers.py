"""Errors as HTTP answers: RFC 9457 problem+json that tells a client what to do and nothing about the database."""

from __future__ import annotations

import functools
import json
import logging
import time

from aiohttp import web

from .errors import PoolScopeError, ShuttingDown

__all__ = ("answer", "only_ours")

logger = logging.getLogger("aiohttp_poolscope")

QUIET = 1.0
"""Seconds between two log lines about the same kind of refusal: an overload must not become one of the log."""


CLIENT_GONE = 499
"""nginx's "Client Closed Request": nobody is there to receive it, but the access log shows why the request ended."""

_last_logged: dict[type[PoolScopeError], tuple[float, int]] = {}


def answer(error: PoolScopeError) -> web.Response:
    """The answer to a request that ended with ``error``.

    A response to return, not an HTTPException to raise: raised, it would leave some twenty objects in reference
    cycles, and refusing must be cheap while there is most of it to do.
    """
    _log(error)
    response = web.Response(
        status=error.status,
        reason="Client Closed Request" if error.status == CLIENT_GONE else None,
        body=_body(error.title, error.status, error.code),
        content_type="application/problem+json",
        charset="utf-8",
        headers=None if error.retry_after is None else {"Retry-After": str(error.retry_after)},
    )
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


def _log(error: PoolScopeError) -> None:
    if error.status == web.HTTPInternalServerError.status_code:
        logger.error("%s", error, exc_info=error)  # a mistake in the program: it wants its traceback
        return
    kind, now = type(error), time.monotonic()
    last, suppressed = _last_logged.get(kind, (float("-inf"), 0))
    if now - last < QUIET:
        _last_logged[kind] = (last, suppressed + 1)
        return
    _last_logged[kind] = (now, 0)
    more = f" (and {suppressed} more since the last such line)" if suppressed else ""
    level = logging.INFO if error.status == CLIENT_GONE else logging.WARNING
    logger.log(level, "%s%s", error, more)
