"""Gate: who gets the next connection.

Pure and synchronous: no I/O, no event loop, no clock; the time is an argument (seconds, monotonic). The pool
around it opens, repairs and closes connections and tells the gate what happened; the gate decides who is served.

A connection lives in a Slot; ``slots.TRANSITIONS`` has its states, and the calls that lead from one to another.
``give`` hands the slot straight to whoever waits (LENT) and only otherwise puts it on the idle stack. A slot that
was handed over counts as lent before its waiter has woken up: the waiter then either ``claim``s it or ``withdraw``s.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from .overload import Overload
from .slots import CHECKING, GONE, IDLE, LENT, REPAIRING, STATES, Outcome, Slot, Waiter

__all__ = ("Gate", "Room")

L = TypeVar("L")

OPENINGS = 1
"""Connections that are opened at once: connects do not pile up on a database that may be struggling."""

GAVE_UP = (Outcome.CLIENT_GONE, Outcome.TIMED_OUT, Outcome.CANCELLED)
"""How a borrow ends that somebody no longer waits for."""


class Gate(Generic[L]):
    """The idle stack, the queue, and the slots between them.

    ``overload`` decides when the queue *stands*, so that the newest is served first, and who is shed then.

    ``max_waiting`` bounds those who wait for a return: a waiter that a connection which is not lent could still serve
    (idle, being checked or repaired, still to be opened) does not count.
    """

    def __init__(
        self,
        *,
        maxsize: int,
        minsize: int = 0,
        max_waiting: int = 1000,
        check_after_idle: float = 1.0,
        overload: Overload | None = None,
    ) -> None:
        self.maxsize = maxsize
        self.minsize = minsize
        self.slots: dict[Slot[L], None] = {}  # in order of birth, so that a simulation can be repeated
        self.lent = 0
        self.opening = 0
        self.checking = 0
        self.handed = 0
        self.draining = False
        self.closed = False
        self.crowded = False
        self.not_begun = 0
        self.up_since = float("-inf")
        self.overload = overload or Overload()
        self.borrows = 0
        self.taken = 0
        self.ended: dict[Outcome, int] = {outcome: 0 for outcome in Outcome if outcome is not Outcome.LENT}
        self._max_waiting = max_waiting
        self._fresh_for = check_after_idle
        self._idle: list[Slot[L]] = []
        # Not a plain dict: after many removals at the front, that one searches for its first key.
        self._waiters: OrderedDict[Waiter[L], None] = OrderedDict()
        self._recent: deque[float] = deque(maxlen=maxsize)

    @property
    def idle(self) -> int:
        """Connections nobody has."""
        return len(self._idle)

    @property
    def busy(self) -> bool:
        """Whether there is no room for another connection and none that nobody has: all one can do is wait."""
        return not self._idle and len(self.slots) >= self.maxsize

    @property
    def waiting(self) -> int:
        """Places in the queue."""
        return len(self._waiters)

    @property
    def repairing(self) -> int:
        """Connections that are being reset or checked."""
        return len(self.slots) - len(self._idle) - self.lent

    @property
    def size(self) -> int:
        """Connections there are, the one being opened included; never above ``maxsize``."""
        return len(self.slots) + self.opening

    def idle_slots(self) -> tuple[Slot[L], ...]:
        """The idle stack, longest unused first."""
        return tuple(self._idle)

    def waiters(self) -> tuple[Waiter[L], ...]:
        """The queue, longest waiting first."""
        return tuple(self._waiters)

    def leases(self, now: float) -> list[float]:
        """Seconds of the recent leases and of those that still run."""
        return [*self._recent, *(now - slot.since for slot in self.slots if slot.state is LENT)]

    def try_acquire(self, now: float) -> Slot[L] | None:
        """The idle connection returned last, if it is fresh and young. Otherwise None: ``join`` the queue."""
        idle = self._idle
        if idle:
            slot = idle[-1]
            if now - slot.since <= self._fresh_for and now < slot.expires:
                idle.pop()
                slot.state = LENT
                slot.since = now
                self.lent += 1
                self.borrows += 1
                self.taken += 1
                return slot
        return None

    def join(self, waiter: Waiter[L], now: float) -> None:
        """Queue up, or be refused at once: then ``waiter.outcome`` is set."""
        self.borrows += 1
        waiter.since = now
        if self.closed or (self.draining and not waiter.running):
            self._end(waiter, Outcome.REFUSED)
            return
        if self._full():
            self._observe(now)
            if self._full():
                if not self.overload.standing:
                    self._end(waiter, Outcome.REFUSED)
                    return
                self._settle(next(iter(self._waiters)), Outcome.SHED)
        self._waiters[waiter] = None
        self.not_begun += not waiter.running

    def make_room(self) -> None:
        """Somebody comes whose work has not begun: in a crowd, the oldest of these makes room."""
        if self.overload.has_no_room(self):
            self._settle(next(waiter for waiter in self._waiters if not waiter.running), Outcome.SHED)

    def claim(self, waiter: Waiter[L]) -> Slot[L]:
        """The waiter has woken up and keeps the slot that was handed to it."""
        slot = waiter.slot
        if slot is None:
            raise AssertionError("claim() without a slot: the waiter was not served")
        waiter.slot = None
        self.handed -= 1
        self.taken += 1
        return slot

    def cancel_lend(self, slot: Slot[L]) -> None:
        """A connection just lent turns out to be dead: it was no lease, and the borrow is still to come."""
        self.borrows -= 1
        self.taken -= 1
        self.lent -= 1
        slot.state = REPAIRING

    def withdraw(self, waiter: Waiter[L], outcome: Outcome, now: float) -> None:
        """The waiter leaves by itself: cancelled, timed out, or its client is gone.

        If a slot was handed to it in the same instant, the slot goes to the next one. If it has been settled
        otherwise, that outcome stands.
        """
        slot = waiter.slot
        if slot is not None:
            waiter.slot = None
            self.handed -= 1
            self._end(waiter, outcome)
            if slot.state is LENT:
                # Nobody used it: as a lease of no length it would make every wait look too long.
                self.lent -= 1
                slot.state = REPAIRING
                self.give(slot, now)
        elif waiter.outcome is None:
            if outcome in GAVE_UP:
                self._notice(waiter, now)
            self._remove(waiter)
            self._end(waiter, outcome)

    def give(self, slot: Slot[L], now: float) -> None:
        """A clean connection is free: to the next waiter, else on the idle stack."""
        state = slot.state
        if state is LENT:
            self.lent -= 1
            self._recent.append(now - slot.since)
            slot.used = now
        elif state is CHECKING:
            self.checking -= 1
        elif state is not REPAIRING:
            raise AssertionError(f"give() of a connection that is {state.value}")
        slot.since = now
        if self._waiters:
            waiter = self._next(now)
            if waiter is not None:
                slot.state = LENT
                self.lent += 1
                self.handed += 1
                waiter.slot = slot
                waiter.outcome = Outcome.LENT
                waiter.wake()
                # Only now: with a connection in hand, even the last and latest is served rather than shed.
                self._observe(now)
                return
        slot.state = IDLE
        self._idle.append(slot)
        self.crowded = False

    def repair(self, slot: Slot[L], now: float) -> None:
        """A lent or idle connection is set aside to be reset, pinged or closed; ``give`` or ``lost`` ends that."""
        self._leave(slot, now)
        slot.state = REPAIRING
        slot.since = now

    def lost(self, slot: Slot[L], now: float) -> None:
        """A connection is gone; its room is free."""
        self._leave(slot, now)
        slot.state = GONE
        self.slots.pop(slot, None)
        if not self._waiters or not self.slots:  # an outage is waited out
            self.crowded = False

    def next_check(self, now: float) -> Slot[L] | None:
        """An idle connection that must be checked for one who waits, or None. Call until it says None."""
        if self._idle and len(self._waiters) > self.checking:
            slot = self._idle.pop()
            slot.state = CHECKING
            slot.since = now
            self.checking += 1
            return slot
        return None

    def wants_opening(self) -> bool:
        """Whether a connection should be opened now: for those who wait, or to keep ``minsize``."""
        if self.closed or self.opening >= OPENINGS or self.size >= self.maxsize:
            return False
        return len(self._waiters) > self.checking + self.opening or (not self.draining and self.size < self.minsize)

    def reserve(self) -> Room[L]:
        """Reserve room for a connection, before it is opened."""
        if self.opening >= OPENINGS or self.size >= self.maxsize:
            raise AssertionError("reserve() without room")
        self.opening += 1
        return Room(self)

    def _admit(self, slot: Slot[L], now: float) -> None:
        if not self.slots:
            self.up_since = now
        self.slots[slot] = None
        slot.used = now
        self.give(slot, now)

    def sweep(self, now: float) -> None:
        """Pass over the queue: those whose client has left go, and a standing queue sheds."""
        for waiter in [waiter for waiter in self._waiters if waiter.client_gone()]:
            self._notice(waiter, now)
            self._settle(waiter, Outcome.CLIENT_GONE)
        self._observe(now)

    def fail(self) -> None:
        """Nobody can be served: everyone who waits fails."""
        self._settle_all(Outcome.FAILED)

    def drain(self) -> None:
        """Refuse whoever has not started: only waiters that are ``running`` are still served."""
        self.draining = True
        for waiter in [waiter for waiter in self._waiters if not waiter.running]:
            self._settle(waiter, Outcome.REFUSED)

    def close(self) -> None:
        """Refuse everyone."""
        self.draining = self.closed = True
        # Nothing idle is fresh any more: try_acquire() lends nothing, without looking at ``closed`` on the hot path.
        self._fresh_for = float("-inf")
        self._settle_all(Outcome.REFUSED)

    def _leave(self, slot: Slot[L], now: float) -> None:
        state = slot.state
        if state is LENT:
            self.lent -= 1
            self._recent.append(now - slot.since)
            slot.used = now
        elif state is CHECKING:
            self.checking -= 1
        elif state is IDLE:
            self._idle.remove(slot)

    def _full(self) -> bool:
        return len(self._waiters) + self.lent >= self._max_waiting + self.maxsize

    def _next(self, now: float) -> Waiter[L] | None:
        while self._waiters:
            waiter = next(reversed(self._waiters)) if self.overload.standing else next(iter(self._waiters))
            if not waiter.client_gone():
                self._remove(waiter)
                return waiter
            self._notice(waiter, now)
            self._settle(waiter, Outcome.CLIENT_GONE)
        return None

    def _observe(self, now: float) -> None:
        """Send away whom the overload policy does not leave at the head of the queue."""
        while self._waiters:
            oldest = next(iter(self._waiters))
            outcome = self.overload.judge(oldest, self, now)
            if outcome is None:
                return
            self.crowded |= outcome is Outcome.SHED
            self._settle(oldest, outcome)

    def _notice(self, waiter: Waiter[L], now: float) -> None:
        """Somebody leaves unserved; the policy counts those at the head of the queue."""
        if waiter is next(iter(self._waiters)):
            self.overload.gave_up(now)

    def _settle_all(self, outcome: Outcome) -> None:
        for waiter in list(self._waiters):
            self._settle(waiter, outcome)

    def _settle(self, waiter: Waiter[L], outcome: Outcome) -> None:
        self._remove(waiter)
        self._end(waiter, outcome)
        waiter.wake()

    def _remove(self, waiter: Waiter[L]) -> None:
        del self._waiters[waiter]
        self.not_begun -= not waiter.running
        if not self._waiters:
            self.overload.calm()

    def _end(self, waiter: Waiter[L], outcome: Outcome) -> None:
        waiter.outcome = outcome
        self.ended[outcome] += 1

    def violations(self) -> list[str]:
        """The invariants that do not hold. Empty whenever the pool has acted on ``next_check``."""
        states = [slot.state for slot in self.slots]
        ended = self.taken + sum(self.ended.values())
        checks = {
            "size <= maxsize": self.size <= self.maxsize,
            "openings counted": 0 <= self.opening <= OPENINGS,
            "idle counted": states.count(IDLE) == len(self._idle) == len(set(self._idle)),
            "lent counted": states.count(LENT) == self.lent,
            "checking counted": states.count(CHECKING) == self.checking,
            "no slot is gone": STATES.issuperset(states),
            "nobody waits while a connection is idle": not self._idle or len(self._waiters) <= self.checking,
            "every borrow ends once": self.borrows == ended + len(self._waiters) + self.handed,
            "who waits has no outcome": all(w.outcome is None and w.slot is None for w in self._waiters),
            "an empty queue does not stand": bool(self._waiters) or not self.overload.standing,
            "a bounded queue": len(self._waiters) + self.lent <= self._max_waiting + self.maxsize,
            "work that has not begun counted": sum(not w.running for w in self._waiters) == self.not_begun,
            "nobody waits at a closed gate": not (self.closed and self._waiters),
        }
        return [name for name, holds in checks.items() if not holds]


class Room(Generic[L]):
    """Room reserved for a connection that is being opened. ``fill`` it once; ``free`` it if there is none."""

    __slots__ = ("_gate", "_reserved")

    def __init__(self, gate: Gate[L]) -> None:
        self._gate = gate
        self._reserved = True

    def fill(self, slot: Slot[L], now: float) -> None:
        """Put the opened connection in: to the next waiter, else on the idle stack."""
        if not self._reserved:
            raise AssertionError("fill() of a room that was filled or freed before")
        self.free()
        self._gate._admit(slot, now)  # noqa: SLF001 - the other half of the gate

    def free(self) -> None:
        """Give the room back. Harmless once it is filled: it is the connection's then."""
        if self._reserved:
            self._reserved = False
            self._gate.opening -= 1
