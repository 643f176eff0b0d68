"""Gate: who gets the next connection, and who does not."""

from __future__ import annotations

import heapq
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.gate import Gate, Outcome, Overload, Slot, SlotState
from tests.kit.books import Borrower

if TYPE_CHECKING:
    from collections.abc import Callable

names = count(1)


def gate_of(connections: int, *, now: float = 0.0, queue_target: float | None = 0.1, **settings: Any) -> Gate[int]:
    """A gate with this many idle connections, and room for no more."""
    gate: Gate[int] = Gate(**{"maxsize": connections, "overload": Overload(queue_target), **settings})
    for link in range(1, connections + 1):
        gate.reserve().fill(Slot(link), now)
    return gate


def lend(gate: Gate[int], now: float = 0.0) -> Slot[int]:
    """Borrow an idle connection that must be there."""
    slot = gate.try_acquire(now)
    assert slot is not None
    return slot


def queue_up(gate: Gate[int], now: float = 0.0, *, running: bool = False) -> Borrower:
    """Ask, find nothing, and join."""
    assert gate.try_acquire(now) is None
    borrower = Borrower(f"borrower {next(names)}", running=running)
    gate.join(borrower, now)
    return borrower


def standing_gate() -> tuple[Gate[int], Slot[int], list[Borrower]]:
    """At 0.35 a queue of three that has just begun to stand: the fourth and oldest was shed.

    Its only connection is being repaired: neither lent nor lost, so that what wait is normal does not grow.
    """
    gate = gate_of(1, queue_target=0.1)
    slot = lend(gate)
    oldest = queue_up(gate, 0.0)
    line = [queue_up(gate, since) for since in (0.26, 0.27, 0.28)]
    gate.repair(slot, 0.0)
    gate.sweep(0.2)
    assert oldest.outcome is None
    gate.sweep(0.35)
    assert [borrower.outcome for borrower in (oldest, *line)] == [Outcome.SHED, None, None, None]
    return gate, slot, line


# The idle stack


def test_the_connection_returned_last_is_lent_first() -> None:
    """Few connections stay busy and fresh, so that the others may be closed."""
    gate = gate_of(3)
    first, second = lend(gate), lend(gate)
    gate.give(first, 0.1)
    gate.give(second, 0.2)
    assert lend(gate, 0.3) is second
    assert lend(gate, 0.3) is first
    assert gate.violations() == []


def test_a_connection_idle_for_too_long_is_not_lent_at_once() -> None:
    """It is checked for the one who then waits, and handed to it when it answers."""
    gate = gate_of(1, check_after_idle=1.0)
    gate.give(lend(gate, 1.0), 1.0)
    borrower = queue_up(gate, 2.1)
    checked = gate.next_check(2.1)
    assert checked is not None
    assert checked.state is SlotState.CHECKING
    assert gate.next_check(2.1) is None
    gate.give(checked, 2.2)
    assert borrower.slot is checked
    assert borrower.woken == 1


def test_a_check_that_fails_makes_room_for_the_next() -> None:
    """After a restart of the database every idle connection is dead: each is tried, then one is opened."""
    gate = gate_of(2, check_after_idle=1.0)
    borrower = queue_up(gate, 5.0)
    for _ in range(2):
        slot = gate.next_check(5.0)
        assert slot is not None
        assert not gate.wants_opening()
        gate.lost(slot, 5.0)
    assert gate.next_check(5.0) is None
    assert gate.wants_opening()
    gate.reserve().fill(Slot(3), 5.0)
    assert borrower.outcome is Outcome.LENT


def test_as_many_stale_connections_are_checked_as_there_are_waiters() -> None:
    """A burst after a quiet hour is not served one check after the other."""
    gate = gate_of(3, check_after_idle=1.0)
    queue_up(gate, 5.0)
    queue_up(gate, 5.0)
    assert gate.next_check(5.0) is not None
    assert gate.next_check(5.0) is not None
    assert gate.next_check(5.0) is None
    assert gate.idle == 1


def test_a_ping_does_not_count_as_use_but_a_dirty_return_does() -> None:
    """The limit on idle time closes what nobody needs, and only that."""
    gate = gate_of(1, now=0.5)
    slot = lend(gate, 1.0)
    assert slot.used == 0.5
    gate.repair(slot, 7.0)
    gate.give(slot, 7.1)
    assert slot.used == 7.0
    gate.repair(slot, 50.0)
    gate.give(slot, 50.1)
    assert slot.used == 7.0
    assert slot.since == 50.1


def test_a_connection_is_returned_once() -> None:
    """Two returns would lend it to two at a time."""
    gate = gate_of(1)
    slot = lend(gate)
    gate.give(slot, 0.1)
    with pytest.raises(AssertionError, match="idle"):
        gate.give(slot, 0.2)
    gate.lost(slot, 0.3)
    with pytest.raises(AssertionError, match="gone"):
        gate.give(slot, 0.4)


# The queue


def test_the_longest_waiter_is_served_first() -> None:
    """FIFO: nobody starves, and the slowest answers are as fast as they can be."""
    gate = gate_of(1)
    slot = lend(gate)
    first, second = queue_up(gate), queue_up(gate)
    gate.give(slot, 0.01)
    assert (first.outcome, second.outcome) == (Outcome.LENT, None)
    assert first.woken == 1
    assert gate.claim(first) is slot
    gate.give(slot, 0.02)
    assert gate.claim(second) is slot


def test_who_has_not_been_served_has_nothing_to_take() -> None:
    """A mistake in the pool is told at once."""
    gate = gate_of(1)
    lend(gate)
    with pytest.raises(AssertionError, match="without a slot"):
        gate.claim(queue_up(gate))


def test_a_waiter_that_was_cancelled_is_passed_over() -> None:
    """Its place is simply gone."""
    gate = gate_of(1)
    slot = lend(gate)
    first, second = queue_up(gate), queue_up(gate)
    gate.withdraw(first, Outcome.CANCELLED, 0.01)
    gate.give(slot, 0.02)
    assert second.slot is slot
    assert first.woken == 0
    assert gate.ended[Outcome.CANCELLED] == 1


def test_a_waiter_whose_client_has_left_never_gets_a_connection() -> None:
    """At hand-over it is passed over, without waiting for a sweep."""
    gate = gate_of(1)
    slot = lend(gate)
    first, second = queue_up(gate), queue_up(gate)
    first.alive = False
    gate.give(slot, 0.01)
    assert second.slot is slot
    assert (first.outcome, first.woken) == (Outcome.CLIENT_GONE, 1)


def test_a_sweep_sends_the_dead_away() -> None:
    """Those whose client has left do not wait for a connection to come back."""
    gate = gate_of(1)
    lend(gate)
    first, second = queue_up(gate), queue_up(gate)
    second.alive = False
    gate.sweep(0.01)
    assert (first.outcome, second.outcome) == (None, Outcome.CLIENT_GONE)
    assert gate.waiting == 1


def test_a_hand_over_and_a_cancellation_in_the_same_tick_pass_the_slot_on() -> None:
    """No wake-up is lost, and the borrow counts as cancelled, not as lent."""
    gate = gate_of(1)
    slot = lend(gate)
    first, second = queue_up(gate), queue_up(gate)
    gate.give(slot, 0.01)
    assert (gate.lent, gate.handed) == (1, 1)
    gate.withdraw(first, Outcome.CANCELLED, 0.01)
    assert first.outcome is Outcome.CANCELLED
    assert gate.claim(second) is slot
    assert gate.ended[Outcome.CANCELLED] == 1
    assert (gate.borrows, gate.taken) == (3, 2)
    assert gate.violations() == []


def test_a_hand_over_that_nobody_takes_is_no_lease() -> None:
    """As a lease of no length it would make every wait look too long."""
    gate = gate_of(1)
    slot = lend(gate)
    borrower = queue_up(gate)
    gate.give(slot, 1.0)
    gate.withdraw(borrower, Outcome.CANCELLED, 1.0)
    assert gate.overload.normal_wait(gate, 1.0) == 4.0


def test_an_outcome_that_stands_is_not_overwritten() -> None:
    """Somebody shed and cancelled in the same tick ends once."""
    gate = gate_of(1)
    lend(gate)
    borrower = queue_up(gate)
    gate.close()
    gate.withdraw(borrower, Outcome.CANCELLED, 0.01)
    assert borrower.outcome is Outcome.REFUSED
    assert sum(gate.ended.values()) + gate.taken == gate.borrows == 2


def test_a_connection_closed_by_force_before_it_is_taken_does_not_come_back() -> None:
    """The waiter it was handed to may leave afterwards: there is nothing left to pass on."""
    gate = gate_of(1)
    slot = lend(gate)
    borrower = queue_up(gate)
    gate.give(slot, 0.01)
    gate.lost(slot, 0.01)
    gate.withdraw(borrower, Outcome.CANCELLED, 0.01)
    assert gate.idle == gate.lent == gate.size == 0
    assert gate.violations() == []


# The bound


def test_a_full_queue_refuses_at_once() -> None:
    """``max_waiting`` is how many wait; the next is told immediately, without being woken."""
    gate = gate_of(1, max_waiting=2)
    lend(gate)
    queue_up(gate)
    queue_up(gate)
    refused = queue_up(gate)
    assert (refused.outcome, refused.woken) == (Outcome.REFUSED, 0)
    assert gate.waiting == 2


def test_who_needs_no_return_is_not_refused() -> None:
    """Where a connection only has to be checked or opened, nobody counts as waiting in line."""
    gate = gate_of(1, maxsize=2, max_waiting=0, check_after_idle=1.0)
    assert queue_up(gate, 5.0).outcome is None
    assert queue_up(gate, 5.0).outcome is None
    assert queue_up(gate, 5.0).outcome is Outcome.REFUSED
    assert gate.next_check(5.0) is not None
    assert gate.wants_opening()


def test_a_full_queue_that_stands_sheds_its_oldest() -> None:
    """The newest has the best chance to be answered in time."""
    gate, slot, line = standing_gate()
    gate._max_waiting = 2
    newest = queue_up(gate, 0.36)
    assert [borrower.outcome for borrower in [*line, newest]] == [Outcome.SHED, None, None, None]
    gate.give(slot, 0.36)
    assert newest.slot is slot


# The standing queue


def test_a_standing_queue_serves_the_newest_and_sheds_the_late() -> None:
    """Under overload most answers are quick, and the rest are refused, instead of all being too late."""
    gate, slot, (first, second, third) = standing_gate()
    gate.give(slot, 0.365)
    assert third.slot is slot
    assert (first.outcome, second.outcome) == (Outcome.SHED, None)
    assert gate.overload.standing


def test_an_empty_queue_is_fifo_again() -> None:
    """The queue stands until everyone in it is gone, and no longer."""
    gate, slot, line = standing_gate()
    for borrower in reversed(line):
        gate.give(slot, 0.35)
        assert gate.claim(borrower) is slot
    assert not gate.overload.standing
    first, second = queue_up(gate, 0.4), queue_up(gate, 0.41)
    gate.give(slot, 0.42)
    assert (first.slot, second.slot) == (slot, None)


def test_a_queue_that_looks_young_still_stands() -> None:
    """Until it is empty: ending it when its head looks young made the median wait ten times as long."""
    gate, slot, (_, second, third) = standing_gate()
    gate.sweep(0.36)
    gate.sweep(0.361)
    assert gate.overload.standing
    gate.give(slot, 0.362)
    assert (third.slot, second.slot) == (slot, None)


def test_the_last_of_a_standing_queue_is_served_however_late() -> None:
    """With a connection in hand nobody is shed in favour of nobody."""
    gate, slot, line = standing_gate()
    gate.give(slot, 9.0)
    assert line[-1].slot is slot
    assert [borrower.outcome for borrower in line[:-1]] == [Outcome.SHED, Outcome.SHED]


def test_a_stall_is_no_standing_queue() -> None:
    """A collection or a slow moment ages everyone at once: all are served, in order."""
    gate = gate_of(1, queue_target=0.1)
    gate.give(lend(gate), 0.0)
    slot = lend(gate)
    gate.repair(slot, 0.0)
    line = [queue_up(gate, 0.001 * i) for i in range(5)]
    gate.sweep(3.0)
    for borrower in line:
        gate.give(slot, 3.01)
        assert gate.claim(borrower) is slot
    assert not gate.overload.standing


def test_a_stall_after_a_late_waiter_is_no_standing_queue() -> None:
    """That the one before was late says nothing of those who came with the stall."""
    gate = gate_of(1, queue_target=0.1)
    gate.repair(lend(gate), 0.0)
    late = queue_up(gate, 0.0)
    young = [queue_up(gate, 0.149) for _ in range(3)]
    gate.sweep(0.15)
    gate.withdraw(late, Outcome.CANCELLED, 0.15)
    gate.sweep(3.0)
    assert [borrower.outcome for borrower in young] == [None] * 3
    assert not gate.overload.standing


def test_the_dead_do_not_make_a_queue_late() -> None:
    """It is the oldest living waiter that counts."""
    gate = gate_of(1, queue_target=0.1)
    slot = lend(gate)
    gate.repair(slot, 0.0)
    first, dead, young, younger = (queue_up(gate, since) for since in (0.0, 0.0, 0.39, 0.39))
    dead.alive = False
    gate.give(slot, 0.2)
    assert (first.outcome, dead.outcome) == (Outcome.LENT, Outcome.CLIENT_GONE)
    gate.sweep(0.4)
    assert (young.outcome, younger.outcome) == (None, None)
    assert not gate.overload.standing


def test_four_median_leases_are_a_normal_wait() -> None:
    """The recent ones and those that still run, with their age: one that is slow or quick does not change it."""
    gate = gate_of(3, queue_target=0.1)
    slots = [lend(gate) for _ in range(3)]
    for slot, end in zip(slots, (0.01, 0.2, 0.9), strict=True):
        gate.give(slot, end)
    assert gate.overload.normal_wait(gate, 1.0) == pytest.approx(0.8)
    lend(gate, 1.0)
    lend(gate, 1.0)
    assert gate.overload.normal_wait(gate, 1.3) == pytest.approx(1.2)


def test_slow_to_open_is_no_overload() -> None:
    """As long as there is room for everyone who waits, nobody is shed however long it takes."""
    gate = gate_of(1, maxsize=3, queue_target=0.1)
    gate.repair(lend(gate), 0.0)
    line = [queue_up(gate) for _ in range(3)]
    for tick in range(20):
        gate.sweep(tick / 10)
    assert [borrower.outcome for borrower in line] == [None] * 3


def test_without_a_queue_target_it_is_fifo_for_ever() -> None:
    """None switches shedding off, however late everyone is."""
    gate = gate_of(1, queue_target=None)
    slot = lend(gate)
    line = [queue_up(gate, i) for i in range(5)]
    for tick in range(5, 50):
        gate.sweep(tick)
    for borrower in line:
        gate.give(slot, 50.0)
        assert gate.claim(borrower) is slot


def test_an_outage_sheds_nobody() -> None:
    """Without any connection those who wait are waiting out a restart, not an overload."""
    gate = gate_of(1, queue_target=0.1)
    slot = lend(gate)
    line = [queue_up(gate) for _ in range(3)]
    gate.lost(slot, 0.01)
    for tick in range(20):
        gate.sweep(tick / 10)
    assert [borrower.outcome for borrower in line] == [None] * 3


def test_after_an_outage_everyone_has_the_usual_time() -> None:
    """What was waited out is not held against those who waited: the backlog of a restart is worked off in order."""
    gate = gate_of(1, queue_target=0.1)
    slot = lend(gate)
    line = [queue_up(gate) for _ in range(20)]
    gate.lost(slot, 0.01)
    gate.sweep(0.5)
    gate.reserve().fill(Slot(2), 0.5)
    for i, borrower in enumerate(line):
        slot = gate.claim(borrower)
        gate.give(slot, 0.51 + i / 100)
    assert not gate.overload.standing


def test_when_nobody_can_be_served_everyone_fails() -> None:
    """The breaker has opened: waiting is pointless."""
    gate = gate_of(0, maxsize=1)
    line = [queue_up(gate) for _ in range(3)]
    gate.fail()
    assert [borrower.outcome for borrower in line] == [Outcome.FAILED] * 3
    assert gate.waiting == 0


class Timeline:
    """A tiny event loop: borrowers who come, hold for a while and return, and a sweep every 50 ms."""

    def __init__(self, gate: Gate[int]) -> None:
        self.gate = gate
        self.agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self.order = count()
        self.waiting: dict[Borrower, float] = {}
        self.waits: list[float] = []
        self.lost: list[Borrower] = []

    def at(self, when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self.agenda, (when, next(self.order), what))

    def borrow(self, now: float, hold: float) -> None:
        slot = self.gate.try_acquire(now)
        if slot is None:
            borrower = Borrower("somebody")
            self.gate.join(borrower, now)
            self.waiting[borrower] = hold
            self.look(now)
        else:
            self.waits.append(0.0)
            self.at(now + hold, lambda then: self.back(slot, then))

    def back(self, slot: Slot[int], now: float) -> None:
        self.gate.give(slot, now)
        self.look(now)

    def look(self, now: float) -> None:
        """Take what was handed over; note who was turned away."""
        for borrower in [borrower for borrower in self.waiting if borrower.outcome is not None]:
            hold = self.waiting.pop(borrower)
            if borrower.outcome is Outcome.LENT:
                slot = self.gate.claim(borrower)
                self.waits.append(now - borrower.since)
                self.at(now + hold, lambda then, slot=slot: self.back(slot, then))  # type: ignore[misc]
            else:
                self.lost.append(borrower)

    def sweep(self, now: float) -> None:
        self.gate.sweep(now)
        self.look(now)
        if self.agenda:
            self.at(now + 0.05, self.sweep)

    def run(self) -> None:
        self.at(0.0, self.sweep)
        while self.agenda:
            now, _, what = heapq.heappop(self.agenda)
            what(now)
            assert self.gate.violations() == []


def test_a_burst_that_fits_is_never_shed() -> None:
    """30 requests of 1 s each on 10 connections are all served with the default settings: slow queries make long
    waits normal.
    """
    timeline = Timeline(gate_of(10))
    for _ in range(30):
        timeline.at(0.0, lambda now: timeline.borrow(now, 1.0))
    timeline.run()
    assert timeline.lost == []
    assert sorted(timeline.waits) == pytest.approx([0.0] * 10 + [1.0] * 10 + [2.0] * 10)


def test_overload_is_answered_in_time() -> None:
    """At 2.5 times the capacity the connections stay busy and half of those served wait less than the target."""
    timeline = Timeline(gate_of(10))
    for i in range(5000):  # 2 s at 2,500 a second, 10 ms each
        timeline.at(i / 2500, lambda now: timeline.borrow(now, 0.01))
    timeline.run()
    served = sorted(timeline.waits)
    assert len(served) + len(timeline.lost) == 5000
    assert len(served) > 1950
    assert served[len(served) // 2] < 0.1
    assert timeline.gate.ended[Outcome.SHED] == len(timeline.lost) > 2000
    assert timeline.gate.idle == 10


# Opening


def test_one_opening_at_a_time() -> None:
    """However many wait, connects do not pile up on a database that may be struggling."""
    gate = gate_of(0, maxsize=3)
    queue_up(gate)
    queue_up(gate)
    assert gate.wants_opening()
    room = gate.reserve()
    assert not gate.wants_opening()
    with pytest.raises(AssertionError, match="without room"):
        gate.reserve()
    room.free()
    assert gate.wants_opening()


def test_never_more_connections_than_maxsize() -> None:
    """The room of an opening is reserved before it begins."""
    gate = gate_of(1, maxsize=2)
    lend(gate)
    queue_up(gate)
    room = gate.reserve()
    assert gate.size == 2
    room.fill(Slot(2), 0.1)
    queue_up(gate)
    assert gate.size == 2
    assert not gate.wants_opening()
    with pytest.raises(AssertionError, match="without room"):
        gate.reserve()


def test_room_is_given_back_once() -> None:
    """Whatever becomes of an opening, ``free`` at its end is right; a room that has ended takes no connection."""
    gate = gate_of(0, maxsize=1)
    failed = gate.reserve()
    for _ in range(2):
        failed.free()
        assert gate.opening == 0
    filled = gate.reserve()
    filled.fill(Slot(1), 0.0)
    filled.free()
    assert (gate.opening, gate.size, gate.idle) == (0, 1, 1)
    for room in (failed, filled):
        with pytest.raises(AssertionError, match="filled or freed"):
            room.fill(Slot(2), 0.0)
    assert gate.violations() == []


def test_minsize_is_refilled_until_the_drain() -> None:
    """Connections are kept for those who will come, and no longer once nobody may."""
    gate: Gate[int] = Gate(maxsize=3, minsize=1)
    assert gate.wants_opening()
    gate.reserve().fill(Slot(1), 0.0)
    assert not gate.wants_opening()
    gate.lost(gate.idle_slots()[0], 0.1)
    assert gate.wants_opening()
    gate.drain()
    assert not gate.wants_opening()


def test_an_opening_serves_whoever_is_first() -> None:
    """It is for the pool, not for a waiter: a return in the meantime serves the first, the opening the second."""
    gate = gate_of(1, maxsize=2)
    slot = lend(gate)
    first, second = queue_up(gate), queue_up(gate)
    room = gate.reserve()
    gate.give(slot, 0.1)
    room.fill(Slot(2), 0.2)
    assert first.slot is slot
    assert second.slot is not None
    assert second.slot.link == 2


# The end


def test_a_drain_refuses_who_has_not_started() -> None:
    """Those whose handler runs may still borrow, so that they can finish."""
    gate = gate_of(1)
    slot = lend(gate)
    fresh, running = queue_up(gate), queue_up(gate, running=True)
    gate.drain()
    assert (fresh.outcome, running.outcome) == (Outcome.REFUSED, None)
    assert queue_up(gate).outcome is Outcome.REFUSED
    assert queue_up(gate, running=True).outcome is None
    gate.give(slot, 0.1)
    assert running.slot is slot


def test_a_drain_still_opens_for_who_runs() -> None:
    """A running handler is not left alone because the last connection died."""
    gate = gate_of(0, maxsize=1)
    gate.drain()
    queue_up(gate, running=True)
    assert gate.wants_opening()


def test_a_closed_gate_refuses_everyone() -> None:
    """Nobody waits any more, nothing idle is lent, nothing is opened."""
    gate = gate_of(2)
    lend(gate)
    lend(gate)
    borrower = queue_up(gate, running=True)
    gate.close()
    assert borrower.outcome is Outcome.REFUSED
    assert queue_up(gate, running=True).outcome is Outcome.REFUSED
    assert not gate.wants_opening()
    gate = gate_of(1)
    gate.close()
    assert queue_up(gate, running=True).outcome is Outcome.REFUSED


# What it costs


def steps(work: Callable[[], object]) -> int:
    """How many lines, calls and returns of Python and C run in ``work``: a cost that no busy machine changes."""
    seen = 0

    def note(frame: object, event: str, argument: object) -> Callable[..., Any]:
        nonlocal seen
        seen += 1
        return note

    sys.setprofile(note)
    sys.settrace(note)
    try:
        work()
    finally:
        sys.settrace(None)
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("standing", [False, True])
def test_a_hand_over_costs_the_same_however_many_wait(standing: bool) -> None:
    """The queue is never searched or copied: 10,000 waiters cost a return no more than 10."""

    def cost(waiters: int) -> int:
        gate = gate_of(1, max_waiting=20_000)
        slot = lend(gate)
        for _ in range(waiters):
            queue_up(gate)
        gate.overload.standing = standing
        gate.give(slot, 0.001)
        return steps(lambda: gate.give(slot, 0.002))

    assert cost(10) == cost(10_000) > 5


def test_a_hand_over_to_the_late_costs_the_same_however_many_connections_there_are() -> None:
    """What wait is normal takes a look at every lease: now and then, not each time."""

    def cost(connections: int) -> int:
        gate = gate_of(connections, queue_target=0.1)
        slots = [lend(gate) for _ in range(connections)]
        for _ in range(connections + 10):
            queue_up(gate)
        gate.give(slots[0], 0.2)
        return steps(lambda: gate.give(slots[1], 0.201))

    assert cost(2) == cost(500) > 5


def test_joining_and_leaving_cost_the_same_however_many_wait() -> None:
    """Cancellation storms are no worse than their number."""

    def cost(waiters: int) -> int:
        gate = gate_of(1, max_waiting=20_000)
        lend(gate)
        line = [queue_up(gate) for _ in range(waiters)]
        newcomer = Borrower("newcomer")
        joining = steps(lambda: gate.join(newcomer, 0.001))
        return joining + steps(lambda: gate.withdraw(line[waiters // 2], Outcome.CANCELLED, 0.001))

    assert cost(10) == cost(10_000) > 5


def test_a_borrow_costs_the_same_however_many_are_idle() -> None:
    """The hot path takes the top of a stack."""

    def cost(connections: int) -> int:
        gate = gate_of(connections)
        return steps(lambda: gate.give(lend(gate), 0.001))

    assert cost(1) == cost(1000) > 5
