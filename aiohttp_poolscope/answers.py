"""Errors as HTTP answers: RFC 9457 problem+json that tells a client what to do and nothing about the database."""

from __future__ import annotations

import json
import logging
import time

from aiohttp import web

from .errors import PoolScopeError, ShuttingDown

__all__ = ("answer", "only_ours")

logger = logging.getLogger("aiohttp_poolscope")

QUIET = 1.0
"""Seconds between two log lines about the same kind of refusal: an overload must not become one of the log."""


class HTTPClientClosedRequest(web.HTTPException):
    """nginx's 499: nobody is there to receive it, but the access log shows why the request ended."""

    status_code = 499

    def __init__(self, **options: object) -> None:
        super().__init__(reason="Client Closed Request", **options)  # type: ignore[arg-type]


CLASSES: dict[int, type[web.HTTPException]] = {
    499: HTTPClientClosedRequest,
    500: web.HTTPInternalServerError,
    503: web.HTTPServiceUnavailable,
    504: web.HTTPGatewayTimeout,
}

_last_logged: dict[type[PoolScopeError], tuple[float, int]] = {}


def answer(error: PoolScopeError) -> web.HTTPException:
    """The answer to a request that ended with ``error``."""
    _log(error)
    body = {"type": "about:blank", "title": error.title, "status": error.status, "code": error.code}
    response = CLASSES[error.status](
        text=json.dumps(body),
        content_type="application/problem+json",
        headers=None if error.retry_after is None else {"Retry-After": str(error.retry_after)},
    )
    if isinstance(error, ShuttingDown):
        response.force_close()
    return response


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
    level = logging.INFO if error.status == HTTPClientClosedRequest.status_code else logging.WARNING
    logger.log(level, "%s%s", error, more)
