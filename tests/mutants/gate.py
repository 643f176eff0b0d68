"""Mutants of the gate, the overload policy and the breaker."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ("MUTANTS",)

GATE, OVERLOAD, BREAKER = "gate/gate.py", "gate/overload.py", "gate/breaker.py"

MUTANTS = (
    Mutant(
        "gate-withdrawn-slot-stays-lent",
        GATE,
        """
        slot.state = REPAIRING
        self.give(slot, now)
        """,
        """
        slot.state = REPAIRING
        """,
        "who is cancelled after a hand-over passes the connection on",
        "P2",
        ("tests/gate/test_gate.py::test_a_hand_over_and_a_cancellation_in_the_same_tick_pass_the_slot_on",),
    ),
    Mutant(
        "gate-withdrawn-counts-as-handed",
        GATE,
        """
        self.handed -= 1
        self._end(waiter, outcome)
        """,
        """
        self._end(waiter, outcome)
        """,
        "every borrow is counted once, also one that is cancelled after its hand-over",
        "O1",
    ),
    Mutant(
        "gate-withdraw-gives-what-is-gone",
        GATE,
        """
        if slot.state is LENT:
            # Nobody used it: as a lease of no length it would make every wait look too long.
        """,
        """
        if slot.state is not REPAIRING:
            # Nobody used it: as a lease of no length it would make every wait look too long.
        """,
        "a connection closed by force before it is taken does not come back",
        "P7",
    ),
    Mutant(
        "gate-hands-to-the-dead",
        GATE,
        """
        if not waiter.client_gone():
            self._remove(waiter)
            return waiter
        """,
        """
        if waiter.outcome is None:
            self._remove(waiter)
            return waiter
        """,
        "a waiter whose client has left gets no connection",
        "R3",
    ),
    Mutant(
        "gate-sweep-looks-at-the-oldest",
        GATE,
        """
        for waiter in [waiter for waiter in self._waiters if waiter.client_gone()]:
        """,
        """
        for waiter in [waiter for waiter in list(self._waiters)[:1] if waiter.client_gone()]:
        """,
        "a sweep sends away everyone whose client has left",
        "A2",
    ),
    Mutant(
        "gate-closed-lends",
        GATE,
        """
        self._fresh_for = float("-inf")
        """,
        """
        self._fresh_for = 0.0
        """,
        "a closed pool lends nothing, not even what came back in this instant",
        "S1",
    ),
    Mutant(
        "gate-full-before-it-is",
        GATE,
        """
        return len(self._waiters) + self.lent >= self._max_waiting + self.maxsize
        """,
        """
        return len(self._waiters) >= self._max_waiting
        """,
        "who needs no return is not refused: max_waiting counts those who wait for one",
        "B2",
    ),
    Mutant(
        "gate-newest-first-in-peace",
        GATE,
        """
        waiter = next(reversed(self._waiters)) if self.overload.standing else next(iter(self._waiters))
        """,
        """
        waiter = next(iter(self._waiters)) if self.overload.standing else next(reversed(self._waiters))
        """,
        "the longest waiter is served first, and the newest only under overload",
        "P11",
    ),
    Mutant(
        "gate-opens-one-too-many",
        GATE,
        """
        if self.closed or self.opening >= OPENINGS or self.size >= self.maxsize:
        """,
        """
        if self.closed or self.opening >= OPENINGS or self.size > self.maxsize:
        """,
        "there are never more connections than maxsize",
        "R4",
    ),
    Mutant(
        "gate-one-check-at-a-time",
        GATE,
        """
        if self._idle and len(self._waiters) > self.checking:
        """,
        """
        if self._idle and self._waiters and not self.checking:
        """,
        "as many stale connections are checked at once as there are waiters",
        "B7",
    ),
    Mutant(
        "gate-lost-check-goes-on",
        GATE,
        """
        elif state is CHECKING:
            self.checking -= 1
        elif state is IDLE:
        """,
        """
        elif state is IDLE:
        """,
        "a check that failed counts no more, so that another connection is tried for the waiter",
        "F1",
    ),
    Mutant(
        "gate-lost-stays-idle",
        GATE,
        """
        elif state is IDLE:
            self._idle.remove(slot)
        """,
        """
        elif state is IDLE:
            slot.since = now
        """,
        "a connection that is gone is lent to nobody",
        "F1",
    ),
    Mutant(
        "gate-dead-lend-counts",
        GATE,
        """
        self.borrows -= 1
        self.taken -= 1
        self.lent -= 1
        """,
        """
        self.borrows -= 1
        self.lent -= 1
        """,
        "a connection that was dead when it was lent is no borrow served",
        "O1",
    ),
    Mutant(
        "gate-drain-refuses-the-running",
        GATE,
        """
        for waiter in [waiter for waiter in self._waiters if not waiter.running]:
            self._settle(waiter, Outcome.REFUSED)
        """,
        """
        self._settle_all(Outcome.REFUSED)
        """,
        "a handler that runs may still borrow when the drain begins",
        "S1",
        ("tests/gate/test_gate.py::test_a_drain_refuses_who_has_not_started",),
    ),
    Mutant(
        "gate-drain-lets-others-join",
        GATE,
        """
        if self.closed or (self.draining and not waiter.running):
        """,
        """
        if self.closed:
        """,
        "during a drain nobody joins the queue whose handler has not begun",
        "S1",
    ),
    Mutant(
        "gate-drain-refills",
        GATE,
        """
        return len(self._waiters) > self.checking + self.opening or (not self.draining and self.size < self.minsize)
        """,
        """
        return len(self._waiters) > self.checking + self.opening or self.size < self.minsize
        """,
        "a drain opens connections for those who run only, and not to keep minsize",
        "S2",
        ("tests/gate/test_gate.py::test_minsize_is_refilled_until_the_drain",),
    ),
    Mutant(
        "gate-begun-work-counts-down",
        GATE,
        """
        del self._waiters[waiter]
        self.not_begun -= not waiter.running
        """,
        """
        del self._waiters[waiter]
        self.not_begun -= 1
        """,
        "a crowd is counted by those whose work has not begun, when they come as when they go",
        "F3",
    ),
    Mutant(
        "gate-crowded-for-ever",
        GATE,
        """
        self._idle.append(slot)
        self.crowded = False
        """,
        """
        self._idle.append(slot)
        """,
        "an overload is over when a connection finds nobody waiting",
        "F3",
        ("tests/gate/test_crowd.py::test_a_crowd_has_gone_when_a_connection_finds_nobody",),
    ),
    Mutant(
        "overload-blames-an-outage",
        OVERLOAD,
        """
        since = max(oldest.since, load.up_since)
        """,
        """
        since = oldest.since
        """,
        "what was waited during an outage is not held against those who waited",
        "F3",
        ("tests/gate/test_gate.py::test_after_an_outage_everyone_has_the_usual_time",),
    ),
    Mutant(
        "overload-sheds-for-a-check",
        OVERLOAD,
        """
        or (load.checking and not load.lent)
        """,
        """
        or (load.checking and load.lent)
        """,
        "silent connections that are being checked are no overload, and nobody is shed for them",
        "B7",
        ("tests/faults/test_ageing.py::test_a_firewall_costs_a_crowd_one_ping_limit",),
    ),
    Mutant(
        "overload-stands-at-first-sight",
        OVERLOAD,
        """
        self._late_since = now
        return False
        """,
        """
        self._late_since = now
        return True
        """,
        "a stall of the process is no overload: all are served, in order",
        "F3",
        ("tests/gate/test_gate.py::test_a_stall_is_no_standing_queue",),
    ),
    Mutant(
        "overload-stands-for-ever",
        OVERLOAD,
        """
        self.standing = False
        self._late_since = None
        self._given_up = 0
        """,
        """
        self._late_since = None
        self._given_up = 0
        """,
        "a queue that was empty is served in order again",
        "F3",
    ),
    Mutant(
        "overload-remembers-who-left",
        OVERLOAD,
        """
        if now - self._gave_up_at > self._target:
            self._given_up = 0
        """,
        """
        if now - self._gave_up_at < self._target:
            self._given_up = 0
        """,
        "clients that leave shortly after each other say that waits are too long, and two within an hour do not",
        "F3",
        ("tests/gate/test_crowd.py::test_those_who_left_long_ago_are_forgotten",),
    ),
    Mutant(
        "breaker-probe-lets-wait",
        BREAKER,
        """
        return self.state is BreakerState.CLOSED
        """,
        """
        return self.state is not BreakerState.OPEN
        """,
        "while one probe asks the database, requests are refused and do not pile up behind it",
        "B3",
        ("tests/gate/test_breaker.py::test_a_probe_lets_nobody_wait_until_it_has_succeeded",),
    ),
    Mutant(
        "breaker-longest-is-shortest",
        BREAKER,
        """
        full = min(self._longest, FIRST_PAUSE * 2.0**doublings)
        """,
        """
        full = max(self._longest, FIRST_PAUSE * 2.0**doublings)
        """,
        "no pause between two attempts is longer than breaker_reset",
        "B3",
        ("tests/gate/test_breaker.py::test_pauses_double_up_to_the_longest",),
    ),
)
