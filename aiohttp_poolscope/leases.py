"""Who holds a connection, in words. Only made when somebody asks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .stats import Lease

if TYPE_CHECKING:
    from .connection import ScopedConnection

__all__ = ("describe", "request_id")

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""What is taken for a request id: visible ASCII only, so that it can break no log line, and not a whole header."""


def describe(db: ScopedConnection, held: float) -> Lease:
    """The lease of ``db``, which it has had for ``held`` seconds."""
    request = db.client
    resource = getattr(db.route, "resource", None)
    return Lease(
        method=db.method,
        path=None if request is None else request.rel_url.raw_path,  # decoded, it could break a log line
        route=None if resource is None else resource.canonical,
        request_id=None if request is None else request_id(request),
        task=None if db.task is None else db.task.get_name(),
        held=held,
        where=_where(db),
        stack=_stack(db) if db._pool.config.stacks else None,
    )


def request_id(request: Any) -> str | None:
    """The request's ``X-Request-ID``, if it is one that can be shown."""
    given = request.headers.get("X-Request-ID")
    return given if given is not None and REQUEST_ID.fullmatch(given) else None


def _where(db: ScopedConnection) -> str | None:
    """The line that borrowed; the handler itself if the middleware did it."""
    if db.where is not None:
        return _line(*db.where[0])
    handler = getattr(db.route, "handler", None)
    if handler is None:
        return None
    while hasattr(handler, "func"):  # functools.partial
        handler = handler.func
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__  # not its repr: that is user's code
    code = getattr(handler, "__code__", None)
    return name if code is None else f"{code.co_filename}:{code.co_firstlineno} in {name}"


def _stack(db: ScopedConnection) -> tuple[str, ...]:
    """What led to the borrow, outermost first; where the handler stands now if the middleware borrowed for it."""
    if db.where is not None:
        return tuple(_line(code, line) for code, line in reversed(db.where))
    lines = []
    awaited: Any = None if db.task is None else db.task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        lines.append(_line(frame.f_code, frame.f_lineno))
        awaited = awaited.cr_await
    return tuple(lines)


def _line(code: Any, number: int) -> str:
    return f"{code.co_filename}:{number} in {code.co_qualname}"
