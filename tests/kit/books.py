"""Books: what the gate has promised to whom, kept without knowing how it decides, and compared after every event."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING

from aiohttp_poolscope.gate import Gate, Outcome, Room, Slot, SlotState, Waiter

if TYPE_CHECKING:
    from collections.abc import Collection

ROUNDING = 1e-9
"""Seconds by which sums of floats may differ."""


class Broken(AssertionError):
    """A promise of the gate does not hold."""


class Borrower(Waiter[int]):
    """Somebody who wants a connection, with a client that may leave."""

    __slots__ = ("alive", "name", "woken")

    def __init__(self, name: str, *, running: bool = False) -> None:
        super().__init__(running=running)
        self.name = name
        self.alive = True
        self.woken = 0

    def __repr__(self) -> str:
        return self.name

    def client_gone(self) -> bool:
        """A borrow inside a running handler ignores the client."""
        return not (self.alive or self.running)

    def wake(self) -> None:
        """Count it: nobody is woken twice."""
        self.woken += 1


class Listed(Borrower):
    """One that also tells the world, so that nobody has to be searched for."""

    __slots__ = ("woken_now",)

    def __init__(self, name: str, woken_now: list[Listed], *, running: bool) -> None:
        super().__init__(name, running=running)
        self.woken_now = woken_now

    def wake(self) -> None:
        self.woken_now.append(self)


class Books:
    """Who waits, in which order, who holds what; and where every connection is."""

    def __init__(self, gate: Gate[int], queue_target: float | None, now: float, trace: list[str] | None) -> None:
        self.gate = gate
        self.target = queue_target
        self.now = now
        self.trace = trace
        self.looks = [now]
        self.events = 0
        self.stood = 0
        self.woken: list[Listed] = []
        self.queue: dict[Listed, None] = {}
        self.handed: list[Listed] = []
        self.holding: list[Slot[int]] = []
        self.mending: list[Slot[int]] = []
        self.checking: list[Slot[int]] = []
        self.resting: list[tuple[Slot[int], float]] = []
        self.room: Room[int] | None = None
        self.outcomes: Counter[Outcome] = Counter()

    def look(self) -> None:
        """The gate is about to see the time."""
        if self.looks[-1] != self.now:
            self.looks.append(self.now)

    def see(
        self,
        standing: bool,
        *,
        free: Slot[int] | None = None,
        full: bool = False,
        ending: Collection[Outcome] = (),
    ) -> None:
        """Whom the gate has just woken, and whether it should have. ``free`` is the slot it had to give away."""
        woken, self.woken[:] = list(self.woken), []
        queue = self.queue
        served = [borrower for borrower in woken if borrower.outcome is Outcome.LENT]
        living = next((b for b in (reversed(queue) if standing else queue) if not b.client_gone()), None)
        if free is not None and free.state is not SlotState.GONE:
            self.expect(len(served) == (living is not None), "a free connection serves who waits", free.link)
            if not served:
                self.resting.append((free, self.now))
        else:
            self.expect(not served, "nothing is handed over that was not free", served)
        for borrower in served:
            self.say("  %r is served", borrower)
            self.expect(borrower is living, f"{'newest' if standing else 'oldest'} first", borrower, living)
            self.expect(borrower.slot is free, "what is free is handed over", borrower)
            del queue[borrower]
            self.handed.append(borrower)
        shed = [borrower for borrower in woken if borrower.outcome is Outcome.SHED]
        if not standing and (shed or self.gate.overload.standing):
            self._may_stand()
        for borrower in woken:
            if borrower.outcome is not Outcome.LENT:
                self._ends(borrower, ending, full=full)

    def _ends(self, borrower: Listed, ending: Collection[Outcome], *, full: bool) -> None:
        outcome = borrower.outcome
        self.say("  %r ends: %s", borrower, outcome)
        self.expect(borrower in self.queue, "who is woken was waiting", borrower)
        overload = len(self.queue) + len(self.holding) + len(self.handed) > self.gate.maxsize
        del self.queue[borrower]
        if outcome is Outcome.SHED:
            late = self.target is not None and self.now - borrower.since > self.target and bool(self.gate.slots)
            self.expect(late or full, "only who is late is shed, and nobody in an outage", borrower)
            self.expect(overload, "nobody is shed for whom there is room", borrower)
        elif outcome is Outcome.CLIENT_GONE:
            self.expect(borrower.client_gone(), "only the dead are passed over", borrower)
        else:
            self.expect(outcome in ending, "nobody ends without a reason", borrower, outcome)
        if outcome is not None:
            self.outcomes[outcome] += 1

    def _may_stand(self) -> None:
        """The oldest is late, was so one target ago, and was looked at between: a stall alone is not enough."""
        self.stood += 1
        target = self.target
        oldest = next((borrower for borrower in self.queue if not borrower.client_gone()), None)
        if target is None or oldest is None:
            raise self._broken("a queue stands only where somebody is late", oldest)
        latest = bisect_right(self.looks, self.now - target + ROUNDING) - 1
        seen_late = latest >= 0 and self.looks[latest] > oldest.since + target - ROUNDING
        self.expect(seen_late, "a stall alone is no standing queue", oldest)

    def make_room(self) -> None:
        """Somebody comes whose work has not begun: in a crowd of two for each connection, the oldest of these goes."""
        gate = self.gate
        not_begun = [borrower for borrower in self.queue if not borrower.running]
        crowd = gate.crowded and len(not_begun) >= 2 * gate.maxsize
        gate.make_room()
        woken, self.woken[:] = list(self.woken), []
        self.expect(woken == not_begun[:crowd], "in a crowd the oldest makes room", woken)
        for borrower in woken:
            self._ends(borrower, {Outcome.SHED}, full=True)

    def check(self) -> None:
        """After each event: the gate's own invariants, and ours."""
        gate = self.gate
        self.events += 1
        self.expect(not self.woken, "nobody is woken without a reason", self.woken)
        violations = gate.violations()
        self.expect(not violations, "the invariants hold", violations)
        self.expect(gate.waiting == len(self.queue), "who waits is who was told to", gate.waiting)
        lent = self.holding + [b.slot for b in self.handed if b.slot and b.slot.state is not SlotState.GONE]
        out = lent + self.mending + self.checking
        idle = [slot for slot, _ in self.resting]
        self.expect(gate.idle_slots() == tuple(idle), "what is idle was returned, in that order")
        self.expect(gate.lent == len(lent), "what is lent is counted", gate.lent)
        everything = set(idle + out)
        self.expect(len(everything) == len(idle) + len(out), "each connection is in one place")
        self.expect(everything == gate.slots.keys(), "each connection is known")
        self.expect(not (idle and gate.crowded), "there is no crowd where a connection is idle")
        self.expect(len(everything) + (self.room is not None) <= gate.maxsize, "never more than maxsize")

    def expect(self, holds: bool, promise: str, *about: object) -> None:
        """Raise Broken unless ``holds``."""
        if not holds:
            raise self._broken(promise, *about)

    def _broken(self, promise: str, *about: object) -> Broken:
        return Broken(f"not kept: {promise} {about or ''} after {self.events} events, at {self.now:.4f}")

    def say(self, text: str, *about: object) -> None:
        """One line of the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.now:10.4f}  {text % about if about else text}")
