"""What the log says of events. Structured: each record has its event's fields as attributes, as ``extra`` gives them.

Nothing above INFO happens on a healthy day. What may come a thousand times a second is one line a second, which says
how many there were.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from logging import DEBUG, ERROR, INFO, WARNING
from typing import TYPE_CHECKING, Any

from . import events as ev
from .clock import SYSTEM
from .errors import DatabaseUnavailable, OutcomeUnknown, PoolScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from .events import Event

__all__ = (
    "LOGGED",
    "LogLimiter",
    "begin_anew",
    "is_mistake",
    "left_out",
    "log_callback_error",
    "log_mistake",
    "request_in_words",
    "structured",
    "write",
)

logger = logging.getLogger("aiohttp_poolscope")

QUIET = 1.0
"""Seconds between two log lines of one kind: trouble with the database must not become trouble with the log."""


MISTAKE = PoolScopeError.status
"""The status of errors that say nothing of the database, nor of the load."""


class LogLimiter:
    """Lets one of a kind through in ``QUIET`` seconds, and counts the others."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[Sequence[Hashable], tuple[float, int]] = {}

    def suffix(self, kind: Sequence[Hashable], now: float) -> str | None:
        """What to add to the line: how many were left out since the last one. None: leave this one out, too."""
        last, left_out = self._last.get(kind, (float("-inf"), 0))
        if now - last < QUIET:
            self._last[kind] = (last, left_out + 1)
            return None
        self._last[kind] = (now, 0)
        return f" (and {left_out} more since the last such line)" if left_out else ""

    def forget(self, pool: str) -> None:
        """Nothing was said of this pool: it begins anew. Each kind is a tuple, and begins with its pool."""
        self._last = {kind: said for kind, said in self._last.items() if kind[0] != pool}


_limiter = LogLimiter()


def begin_anew(pool: str) -> None:
    """A scope is made: what another one of its key has said lately leaves out none of its lines."""
    _limiter.forget(pool)


def structured(event: Event) -> dict[str, Any]:
    """An event as plain values, without what is None and without exceptions: for ``extra``, JSON, a page."""
    found: dict[str, Any] = {"event": event.kind}
    for each in fields(event):
        value = getattr(event, each.name)
        if value is not None and not isinstance(value, BaseException):
            found[each.name] = asdict(value) if each.name == "lease" else value
    return found


def is_mistake(error: BaseException) -> bool:
    """Whether it is an error of this package that somebody's program is to blame for, and wants its traceback."""
    return isinstance(error, PoolScopeError) and error.status == MISTAKE and not isinstance(error, OutcomeUnknown)


def request_in_words(method: str, route: str | None, request_id: str | None) -> str:
    """A request in a line of the log. None of it may break the line: a route, or a path that is quoted."""
    return f"{method} {route or '?'} (request {request_id})"


def log_callback_error(pool: str, kind: str, error: BaseException) -> None:
    """A callback has raised."""
    log_mistake(pool, "callback", f"a callback failed at {kind!r}", error)


def log_mistake(pool: str, kind: str, words: str, error: BaseException) -> None:
    """Somebody's code has raised what it should not have: one line of this kind, and its traceback, in a while."""
    if (more := left_out(pool, kind)) is not None:
        logger.error("pool %r: %s%s", pool, words, more, exc_info=error)


def left_out(pool: str, kind: str) -> str | None:
    """``LogLimiter.suffix`` for a line of this kind, now."""
    return _limiter.suffix((pool, kind), SYSTEM.monotonic())


def write(event: Event) -> None:
    """One line for an event."""
    level, words = _WORDS[type(event)](event)
    if not logger.isEnabledFor(level):
        return
    more = _limiter.suffix((event.pool, event.kind), event.monotonic) if type(event) in LIMITED else ""
    if more is None:
        return
    error = getattr(event, "error", None)
    # Anything but a refused connect is somebody's mistake, and wants its traceback.
    strange = error if error is not None and not isinstance(error, DatabaseUnavailable) else None
    logger.log(level, "pool %r: %s%s", event.pool, words, more, exc_info=strange, extra=structured(event))


def _connect_failed(event: ev.ConnectFailed) -> tuple[int, str]:
    return WARNING if event.attempt == 1 else DEBUG, f"{event.cause} (attempt {event.attempt})"


def _breaker_opened(event: ev.BreakerOpened) -> tuple[int, str]:
    return ERROR, f"requests are refused until the database answers: {event.cause} (attempt {event.attempt})"


def _breaker_closed(event: ev.BreakerClosed) -> tuple[int, str]:
    return WARNING, f"the database answers again, after {event.duration:.1f} s"


def _closed(event: ev.Closed) -> tuple[int, str]:
    level = INFO if event.reason in ("dead", "failed") else DEBUG
    return level, f"a connection is closed: {event.cause or event.reason}, {event.unused:.1f} s after its last use"


def _whose(event: ev.RequestEvent, of: str = " of ") -> str:
    if event.method is None:
        return ""
    return of + request_in_words(event.method, event.route or event.path, event.request_id)


def _slow(event: ev.SlowStatement) -> tuple[int, str]:
    return WARNING, f"a statement{_whose(event)} took {event.duration:.3f} s: {event.statement}"


def _leaked(event: ev.Leaked) -> tuple[int, str]:
    running = f", which runs {event.statement}" if event.statement else ""
    return (
        WARNING,
        f"a connection is held for {event.lease.held:.1f} s{_whose(event, ' by ')}: {event.lease!r}{running}",
    )


def _returned_late(event: ev.ReturnedLate) -> tuple[int, str]:
    return WARNING, f"a connection came back after {event.lease.held:.1f} s{_whose(event, ' from ')}: {event.lease!r}"


def _returned_dirty(event: ev.ReturnedDirty) -> tuple[int, str]:
    where = f". Borrowed at {event.lease.where}" if event.lease.where else ""
    return WARNING, (
        f"a connection{_whose(event)} came back inside a transaction, after {event.lease.held:.1f} s: what it has "
        f"written is rolled back. End it with COMMIT, or use db.transaction(){where}"
    )


def _drained(event: ev.DrainFinished) -> tuple[int, str]:
    names = f": {', '.join(event.forced)}" if event.forced else ""
    numbers = f"{event.served} served meanwhile, {event.cancelled} cancelled, {len(event.forced)} forced{names}"
    return WARNING if event.forced else INFO, f"drained in {event.duration:.2f} s, {numbers}"


_WORDS: dict[type[Event], Callable[[Any], tuple[int, str]]] = {
    ev.ConnectFailed: _connect_failed,
    ev.BreakerOpened: _breaker_opened,
    ev.BreakerClosed: _breaker_closed,
    ev.Closed: _closed,
    ev.SlowStatement: _slow,
    ev.Leaked: _leaked,
    ev.ReturnedLate: _returned_late,
    ev.ReturnedDirty: _returned_dirty,
    ev.DrainFinished: _drained,
}

LOGGED = tuple(_WORDS)
"""The events that ``write`` has words for."""

LIMITED = (ev.Closed, ev.SlowStatement, ev.ReturnedDirty)
"""What may come a thousand times a second."""
