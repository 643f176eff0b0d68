"""The gate against a model: plain lists of who waits and who holds what, and a guess at who is served next."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiohttp_poolscope.gate import Gate, Outcome, Overload, Slot
from tests.kit.books import Borrower

FRESH_FOR = 1.0

picks = st.integers(0, 1000)


class GateMachine(RuleBasedStateMachine):
    """Every rule does the same to the gate and to the model."""

    @initialize(
        maxsize=st.integers(1, 4),
        max_waiting=st.integers(0, 6),
        queue_target=st.sampled_from([None, 0.5, 1.0]),
    )
    def begin(self, maxsize: int, max_waiting: int, queue_target: float | None) -> None:
        # Leases do not change what wait is normal: the model knows nothing of them.
        steady = Overload(queue_target, normal_wait_in_leases=0.0)
        self.gate: Gate[int] = Gate(
            maxsize=maxsize, max_waiting=max_waiting, check_after_idle=FRESH_FOR, overload=steady
        )
        self.room = max_waiting + maxsize
        self.target = queue_target
        self.now = 100.0
        self.links = 0
        self.asked = 0
        self.line: list[Borrower] = []
        self.handed: list[tuple[Borrower, Slot[int]]] = []
        self.held: list[Slot[int]] = []
        self.aside: list[Slot[int]] = []
        self.checked: list[Slot[int]] = []
        self.idle: list[tuple[Slot[int], float]] = []
        self.up_since = 0.0
        self.seen_late: tuple[Borrower, float] | None = None
        self.ends: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        for _ in range(maxsize):
            self.open(works=True)

    # Borrowers.

    @rule(people=st.integers(1, 8), running=st.booleans())
    def crowd(self, people: int, running: bool) -> None:
        for _ in range(people):
            self.ask(running)
            self.model_and_gate_agree()

    def ask(self, running: bool) -> None:
        self.asked += 1
        slot = self.gate.try_acquire(self.now)
        if self.idle and self.now - self.idle[-1][1] <= FRESH_FOR:
            assert slot is self.idle.pop()[0]
            self.held.append(slot)
            self.ends[Outcome.LENT] += 1
            return
        assert slot is None
        borrower = Borrower(f"b{self.asked}", running=running)
        full = len(self.line) + len(self.held) + len(self.handed) >= self.room
        standing = self.gate.overload.standing
        self.gate.join(borrower, self.now)
        if self.unsure():
            self.seen_late = None
        self.settle(standing, full=full)
        if borrower.outcome is None:
            self.line.append(borrower)
        else:
            assert borrower.outcome is Outcome.REFUSED
            assert full
            assert not self.gate.overload.standing
            self.ends[Outcome.REFUSED] += 1

    @precondition(lambda self: self.handed)
    @rule(pick=picks)
    def take(self, pick: int) -> None:
        borrower, slot = self.handed.pop(pick % len(self.handed))
        assert self.gate.claim(borrower) is slot
        self.held.append(slot)
        self.ends[Outcome.LENT] += 1

    @precondition(lambda self: self.line)
    @rule(pick=picks, outcome=st.sampled_from([Outcome.CANCELLED, Outcome.TIMED_OUT, Outcome.CLIENT_GONE]))
    def leave(self, pick: int, outcome: Outcome) -> None:
        borrower = self.line.pop(pick % len(self.line))
        self.gate.withdraw(borrower, outcome, self.now)
        assert borrower.outcome is outcome
        self.ends[outcome] += 1

    @precondition(lambda self: self.handed)
    @rule(pick=picks)
    def leave_after_hand_over(self, pick: int) -> None:
        borrower, slot = self.handed.pop(pick % len(self.handed))
        standing, heir = self.gate.overload.standing, self.heir()
        self.gate.withdraw(borrower, Outcome.CANCELLED, self.now)
        assert borrower.outcome is Outcome.CANCELLED
        self.ends[Outcome.CANCELLED] += 1
        self.freed(slot, heir, standing)

    @precondition(lambda self: self.line)
    @rule(pick=picks)
    def client_dies(self, pick: int) -> None:
        self.line[pick % len(self.line)].alive = False

    # Connections.

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def come_back(self, pick: int) -> None:
        self.free(self.held.pop(pick % len(self.held)))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def come_back_dirty(self, pick: int) -> None:
        slot = self.held.pop(pick % len(self.held))
        self.gate.repair(slot, self.now)
        self.aside.append(slot)

    @precondition(lambda self: self.aside or self.checked)
    @rule(pick=picks, sound=st.booleans())
    def end_repair_or_check(self, pick: int, sound: bool) -> None:
        slots = self.checked or self.aside
        slot = slots.pop(pick % len(slots))
        if sound:
            self.free(slot)
        else:
            self.lose(slot)

    @precondition(lambda self: self.idle or self.held)
    @rule(pick=picks)
    def die(self, pick: int) -> None:
        self.lose(self.idle.pop(pick % len(self.idle))[0] if self.idle else self.held.pop(pick % len(self.held)))

    @precondition(lambda self: self.gate.wants_opening())
    @rule(works=st.sampled_from([True, True, True, False]))
    def open(self, works: bool) -> None:
        room = self.gate.reserve()
        if not works:
            room.free()
            return
        if not self.gate.slots:
            self.up_since = self.now
        self.links += 1
        slot = Slot(self.links)
        standing, heir = self.gate.overload.standing, self.heir()
        room.fill(slot, self.now)
        room.free()
        self.freed(slot, heir, standing)

    # Time.

    @rule(seconds=st.sampled_from([0.1, 0.3, 0.6, 2.0]), sweeps=st.integers(0, 3))
    def time_passes(self, seconds: float, sweeps: int) -> None:
        self.now += seconds
        for _ in range(sweeps):
            self.sweep()
            self.model_and_gate_agree()
            self.now += seconds

    def sweep(self) -> None:
        standing = self.gate.overload.standing
        self.gate.sweep(self.now)
        self.settle(standing, swept=True)
        oldest = self.line[0] if self.line else None
        overload = len(self.line) + len(self.held) + len(self.handed) > self.gate.maxsize
        if oldest is None or not self.late(oldest) or not self.gate.slots or not overload or self.unsure():
            self.seen_late = None
        elif self.seen_late is None or self.seen_late[0] is not oldest:
            self.seen_late = (oldest, self.now)
        else:
            assert self.gate.overload.standing or self.target is None or self.now - self.seen_late[1] < self.target

    # The model.

    def heir(self) -> Borrower | None:
        """Who is next: the oldest living, or the newest where the queue stands."""
        living = [borrower for borrower in self.line if not borrower.client_gone()]
        if not living:
            return None
        return living[-1] if self.gate.overload.standing else living[0]

    def late(self, borrower: Borrower) -> bool:
        """Whether it waits longer than is normal, the time without any connection not counted."""
        return self.target is not None and self.now - max(borrower.since, self.up_since) > self.target

    def unsure(self) -> bool:
        """Whether connections are being checked, and none is known to live: that is no overload."""
        return bool(self.checked) and not (self.held or self.handed)

    def free(self, slot: Slot[int]) -> None:
        standing, heir = self.gate.overload.standing, self.heir()
        self.gate.give(slot, self.now)
        self.freed(slot, heir, standing)

    def freed(self, slot: Slot[int], heir: Borrower | None, standing: bool) -> None:
        """The slot must be with whoever was next, or idle if nobody was."""
        if heir is None:
            assert self.gate.idle_slots()[-1] is slot
            self.idle.append((slot, self.now))
        else:
            assert heir.slot is slot
            assert heir.outcome is Outcome.LENT
            assert heir.woken == 1
            self.line.remove(heir)
            self.handed.append((heir, slot))
        self.settle(standing)

    def lose(self, slot: Slot[int]) -> None:
        self.gate.lost(slot, self.now)
        if not self.gate.slots:
            self.seen_late = None

    def settle(self, standing: bool, *, full: bool = False, swept: bool = False) -> None:
        """Cross off whom the gate has sent away, if it may."""
        ended = [borrower for borrower in self.line if borrower.outcome is not None]
        shed = [borrower for borrower in ended if borrower.outcome is Outcome.SHED]
        self.line = [borrower for borrower in self.line if borrower.outcome is None]
        for borrower in ended:
            assert borrower.woken == 1
            assert borrower.client_gone() if borrower.outcome is Outcome.CLIENT_GONE else borrower in shed
            assert borrower not in shed or self.late(borrower) or full
            assert borrower.outcome is not None
            self.ends[borrower.outcome] += 1
        assert all(borrower.since >= gone.since for borrower in self.line for gone in shed), "the oldest are shed"
        assert not (swept and any(borrower.client_gone() for borrower in self.line))
        if shed and not standing:
            assert self.target is not None
            assert self.now - shed[0].since >= 2 * self.target

    @invariant()
    def model_and_gate_agree(self) -> None:
        """Who waits, who holds, what is idle: the same on both sides, once the pool has seen to the stale ones."""
        gate = self.gate
        while gate.waiting > gate.checking and gate.idle:
            slot, since = self.idle.pop()
            assert self.now - since > FRESH_FOR
            assert gate.next_check(self.now) is slot
            self.checked.append(slot)
        assert gate.next_check(self.now) is None
        assert gate.violations() == []
        assert gate.waiting == len(self.line)
        assert gate.lent == len(self.held) + len(self.handed)
        assert gate.idle_slots() == tuple(slot for slot, _ in self.idle)
        assert gate.repairing == len(self.aside) + len(self.checked)
        ends = {**gate.ended, Outcome.LENT: gate.taken}
        assert self.ends == ends
        assert gate.borrows == self.asked == sum(ends.values()) + len(self.line) + len(self.handed)
        assert self.target is not None or not gate.overload.standing


TestGateMachine = GateMachine.TestCase
"""What the model says is what the gate does, in every order of events that hypothesis finds."""
TestGateMachine.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
