"""Watch: puts what happens in one pool into events. Nothing here is run for what nobody listens to."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

from aiohttp_poolscope import events as ev
from aiohttp_poolscope.driver import sqlstate
from aiohttp_poolscope.errors import (
    ClientGone,
    DatabaseUnavailable,
    PoolExhausted,
    PoolScopeError,
    QueueFull,
    ShuttingDown,
)
from aiohttp_poolscope.gate import Outcome
from aiohttp_poolscope.request import request_id

from .holders import describe, whose

if TYPE_CHECKING:
    from aiohttp_poolscope.connection import ScopedConnection
    from aiohttp_poolscope.driver import DatabaseError, Link
    from aiohttp_poolscope.gate import Slot

    from .pool import Pool

__all__ = ("Watch", "shown")

LONGEST: Final = 2000
"""Characters of a statement that are shown."""

HIDDEN: Final = re.compile(
    r"""
      '(?>(?:[^'\\]|'')*)'(?!\s*')            # a literal without any backslash
    | '.*                                     # one that may end anywhere: all that follows it
    | "(?>(?:[^"]|"")*)"
    | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*+)?)\$.*?(?:\$(?P=tag)\$|\Z)
    | --[^\n]*+
    | /\*(?>(?:[^*/]|\*(?!/)|/(?!\*))*)\*/  # a comment without another one in it
    | /\*.*
    | (?<![\w$])(?:\d|\.\d)(?>(?:[\w.]|(?<=[eE])[+-](?=\d))*)
    """,
    re.VERBOSE | re.DOTALL,
)
"""Literals, quoted names, comments and numbers. Where PostgreSQL may see the end elsewhere, the rest is hidden."""

UNSERVED: Final[dict[Outcome, type[ev.Unserved]]] = {
    Outcome.TIMED_OUT: ev.TimedOut,
    Outcome.REFUSED: ev.Refused,
    Outcome.SHED: ev.Shed,
    Outcome.CLIENT_GONE: ev.ClientLeft,
    Outcome.CANCELLED: ev.Cancelled,
    Outcome.FAILED: ev.Failed,
}


class Watch:
    """Tells whoever listens to the scope."""

    def __init__(self, pool: Pool, events: ev.Events) -> None:
        self._pool = pool
        self._events = events
        self.heard = events.heard
        self.errors: dict[str, int] = {"statement": 0, "timeout": 0, "connection": 0}

    def tell(self, kind: type[ev.Event], db: ScopedConnection | None = None, **fields: Any) -> None:
        """An event of this kind, now, about the request of ``db``, if anybody wants to know."""
        if kind in self.heard:
            who = {} if db is None else whose(db)
            self._events.tell(kind(pool=self._pool.key, at=time.time(), monotonic=time.monotonic(), **who, **fields))

    def lent(self, db: ScopedConnection, waited: float, *, queued: bool) -> None:
        """A borrow was served."""
        self.tell(ev.Acquired, db, waited=waited)
        if queued:
            self.tell(ev.Waited, db, waited=waited)

    def returned(self, db: object, held: float) -> None:
        """A lease has ended."""
        self.tell(ev.Released, db, held=held)  # type: ignore[arg-type]

    def unserved(self, db: ScopedConnection, outcome: Outcome | None, waited: float) -> PoolScopeError:
        """A borrow was not served: the error that its borrower gets."""
        error = self._refusal(outcome, waited)
        if db.client is not None:
            error.request_id = request_id(db.client)
        self.ended(db, outcome, waited, str(error))
        return error

    def ended(self, db: ScopedConnection, outcome: Outcome | None, waited: float, cause: str | None = None) -> None:
        """A borrow has ended without a connection."""
        kind = ev.TimedOut if outcome is None else UNSERVED.get(outcome)
        if kind is not None:
            self.tell(kind, db, waited=waited, cause=cause)

    def leaked(self, db: ScopedConnection, held: float) -> None:
        """A connection is held for too long."""
        self.tell(ev.Leaked, db, lease=describe(db, held))

    def came_late(self, db: ScopedConnection, held: float) -> None:
        """A lease that was reported as a leak has ended after all."""
        self.tell(ev.ReturnedLate, db, lease=describe(db, held))

    def closed(self, slot: Slot[Link], reason: ev.CloseReason, cause: str | None) -> None:
        """A connection was closed."""
        self.tell(ev.Closed, reason=reason, unused=max(0.0, time.monotonic() - slot.used), cause=cause)

    def failed(self, link: Link, sql: object, duration: float, error: DatabaseError) -> None:
        """A statement raised ``error``."""
        fault = link.fault(error)
        self.errors[fault] += 1
        if ev.StatementFailed in self.heard:
            cause, state, holder = type(error).__name__, sqlstate(error), self._holder(link)
            said = {"statement": shown(sql), "duration": duration, "fault": fault, "sqlstate": state}
            self.tell(ev.StatementFailed, holder, **said, cause=cause, error=error)

    def slow(self, link: Link, sql: object, duration: float) -> None:
        """A statement took longer than ``slow_threshold``."""
        if ev.SlowStatement in self.heard:
            self.tell(ev.SlowStatement, self._holder(link), statement=shown(sql), duration=duration)

    def _holder(self, link: Link) -> ScopedConnection | None:
        return next((db for slot, db in self._pool.holders() if slot.link is link), None)

    def _refusal(self, outcome: Outcome | None, waited: float) -> PoolScopeError:
        pool = self._pool
        gate, key, problem = pool.gate, pool.key, pool.opener.problem
        numbers = f"{gate.lent}/{gate.maxsize} in use, {gate.waiting} waiting, waited {waited:.1f} s"
        match outcome:
            case Outcome.CLIENT_GONE:
                return ClientGone(f"pool {key!r}: the client left while its request waited ({numbers})")
            case Outcome.FAILED:
                return DatabaseUnavailable(f"pool {key!r}: {problem} ({numbers})")
            case Outcome.REFUSED if gate.draining:
                return ShuttingDown(f"pool {key!r} is shutting down")
            case Outcome.REFUSED:
                return QueueFull(
                    f"pool {key!r}: the queue is full ({numbers}). max_waiting is {pool.config.max_waiting}"
                )
            case Outcome.SHED:
                return PoolExhausted(
                    f"pool {key!r}: more requests come than can be served, the longest waiting are refused "
                    f"({numbers}). Shorten the leases, raise maxsize, or see queue_target"
                )
        trouble = f" {problem}." if problem else ""
        return PoolExhausted(
            f"pool {key!r}: no connection within acquire_timeout ({numbers}).{trouble} "
            "scope.leases() tells who holds them"
        )


def shown(sql: object) -> str:
    """A statement's text for people: literals are ``?``, comments are left out, and after a while it ends.

    Only a str is shown; psycopg2's composed statements may hold values anywhere.
    """
    text = getattr(sql, "statement", sql)
    if not isinstance(text, str):
        return f"<{type(sql).__name__}>"
    return " ".join(HIDDEN.sub(_masked, text[:LONGEST]).split()) + ("..." if len(text) > LONGEST else "")


def _masked(found: re.Match[str]) -> str:
    quoted = found[0]
    if quoted.startswith('"'):
        return quoted
    return " " if quoted.startswith(("--", "/*")) else "?"
