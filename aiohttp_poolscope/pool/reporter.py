"""Reporter: turns the activity of one pool into events. An event nobody subscribed to is never built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp_poolscope import events as ev
from aiohttp_poolscope.driver import OUT_OF_RESOURCES, sqlstate
from aiohttp_poolscope.gate import Outcome
from aiohttp_poolscope.sql.masking import shown
from aiohttp_poolscope.stats import Histogram

from .holders import describe, holders, whose

if TYPE_CHECKING:
    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.connection import ScopedConnection
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.gate import Gate, Slot
    from aiohttp_poolscope.stats import Duration

__all__ = ("Reporter",)

UNSERVED: Final[dict[Outcome, type[ev.Unserved]]] = {
    Outcome.TIMED_OUT: ev.TimedOut,
    Outcome.REFUSED: ev.Refused,
    Outcome.SHED: ev.Shed,
    Outcome.CLIENT_GONE: ev.ClientLeft,
    Outcome.CANCELLED: ev.Cancelled,
    Outcome.FAILED: ev.Failed,
}


class Reporter:
    """Tells the subscribers of the scope. ``errors`` counts statements that raised, by what was at fault."""

    def __init__(self, key: str, events: ev.Events, gate: Gate[OpenConnection], clock: Clock) -> None:
        self.subscribed = events.subscribed
        self.errors: dict[str, int] = {"statement": 0, "timeout": 0, "connection": 0}
        self._key = key
        self._events = events
        self._gate = gate
        self._clock = clock

    def histogram(self, of: Duration) -> Histogram:
        """A histogram whose durations are told to whoever asked for them."""
        return Histogram(self._events.durations[of])

    def emit(self, kind: type[ev.Event], db: ScopedConnection | None = None, **fields: Any) -> None:
        """An event of this kind, now, about the request of ``db``."""
        if kind in self.subscribed:
            who = {} if db is None else whose(db)
            at, monotonic = self._clock.time(), self._clock.monotonic()
            self._events.emit(kind(pool=self._key, at=at, monotonic=monotonic, **who, **fields))

    def lent(self, db: ScopedConnection, waited: float, *, queued: bool) -> None:
        """A borrow was served."""
        self.emit(ev.Acquired, db, waited=waited)
        if queued:
            self.emit(ev.Waited, db, waited=waited)

    def returned(self, db: ScopedConnection, held: float) -> None:
        """A lease has ended."""
        self.emit(ev.Released, db, held=held)

    def unserved(self, db: ScopedConnection, outcome: Outcome | None, waited: float, cause: str | None = None) -> None:
        """A borrow has ended without a connection."""
        kind = ev.TimedOut if outcome is None else UNSERVED.get(outcome)
        if kind is not None:
            self.emit(kind, db, waited=waited, cause=cause)

    def leaked(self, db: ScopedConnection, held: float) -> None:
        """A connection is held for too long."""
        running = None if db._link is None else db._link.in_flight
        self.emit(ev.Leaked, db, lease=describe(db, held), statement=None if running is None else shown(running))

    def returned_late(self, db: ScopedConnection, held: float) -> None:
        """A lease that was reported as a leak has ended after all."""
        self.emit(ev.ReturnedLate, db, lease=describe(db, held))

    def returned_dirty(self, db: ScopedConnection, held: float) -> None:
        """A lease that ended well has come back inside a transaction."""
        self.emit(ev.ReturnedDirty, db, lease=describe(db, held))

    def lease_cancelled(self, db: ScopedConnection, held: float) -> None:
        """The drain ends a lease."""
        self.emit(ev.LeaseCancelled, db, lease=describe(db, held))

    def closed(self, slot: Slot[OpenConnection], reason: ev.CloseReason, cause: str | None) -> None:
        """A connection was closed."""
        self.emit(ev.Closed, reason=reason, unused=max(0.0, self._clock.monotonic() - slot.used), cause=cause)

    def failed(self, link: OpenConnection, sql: object, duration: float, error: Exception) -> None:
        """A statement raised ``error``."""
        fault, state = link.fault(error), sqlstate(error)
        self.errors[fault] += 1
        if (state or "").startswith(OUT_OF_RESOURCES):
            vars(error).update(pool=self._key, statement=shown(sql))
        if ev.StatementFailed in self.subscribed:
            cause, holder = type(error).__name__, self._holder(link)
            said = {"statement": shown(sql), "duration": duration, "fault": fault, "sqlstate": state}
            self.emit(ev.StatementFailed, holder, **said, cause=cause, error=error)

    def slow(self, link: OpenConnection, sql: object, duration: float) -> None:
        """A statement took longer than ``slow_threshold``."""
        if ev.SlowStatement in self.subscribed:
            self.emit(ev.SlowStatement, self._holder(link), statement=shown(sql), duration=duration)

    def _holder(self, link: OpenConnection) -> ScopedConnection | None:
        return next((db for slot, db in holders(self._gate) if slot.link is link), None)
