"""Gate: the crowd of an overload, and clients that do not wait as long as would be normal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope.gate import Gate, Outcome, Slot

from .test_gate import Timeline, gate_of, lend, queue_up, standing_gate

if TYPE_CHECKING:
    from tests.kit.books import Borrower

# The crowd


def crowd() -> tuple[Gate[int], Slot[int], list[Borrower]]:
    """Three wait in a queue that stands, for one connection that is away: one more than two leases would serve."""
    gate, slot, line = standing_gate()
    assert gate.crowded
    return gate, slot, line


def shed_for_one_more(gate: Gate[int]) -> int:
    """How many have to go for somebody who comes."""
    before = gate.ended[Outcome.SHED]
    gate.make_room()
    return gate.ended[Outcome.SHED] - before


def test_one_more_in_a_crowd_takes_the_place_of_the_oldest() -> None:
    """With two waiting for each connection, whoever comes has somebody to answer for longest, and is served first."""
    gate, slot, line = crowd()
    assert shed_for_one_more(gate) == 1
    newest = queue_up(gate, 0.36)
    assert [borrower.outcome for borrower in [*line, newest]] == [Outcome.SHED, None, None, None]
    gate.give(slot, 0.37)
    assert newest.outcome is Outcome.LENT
    assert gate.violations() == []


def test_work_that_has_begun_is_no_crowd() -> None:
    """However many borrow within running handlers: they give their places to nobody, and take nobody's."""
    gate, slot, line = crowd()
    for _ in range(20):
        queue_up(gate, 0.36, running=True)
    assert shed_for_one_more(gate) == 1
    assert shed_for_one_more(gate) == 1
    assert [borrower.outcome for borrower in line] == [Outcome.SHED, Outcome.SHED, None]
    assert (shed_for_one_more(gate), gate.waiting) == (0, 21)
    newest = queue_up(gate, 0.36)
    gate.give(slot, 0.37)
    assert newest.outcome is Outcome.LENT
    assert gate.violations() == []


def test_the_first_of_a_crowd_have_a_place() -> None:
    """With fewer waiting, whoever comes may join: no connection that comes back is left without somebody."""
    gate, _, (first, second, _) = crowd()
    for borrower in (first, second):
        gate.withdraw(borrower, Outcome.CANCELLED, 0.35)
    assert shed_for_one_more(gate) == 0


def test_a_long_queue_is_no_crowd() -> None:
    """Nobody has to make room before the queue has been found to stand."""
    gate = gate_of(1)
    lend(gate)
    for _ in range(50):
        queue_up(gate, 0.0)
    assert shed_for_one_more(gate) == 0


def test_a_crowd_outlasts_the_queue_that_was_shed() -> None:
    """After a stall everyone may be shed at once: the next of the crowd are not let in without limit again."""
    gate, _, line = crowd()
    gate.sweep(1.0)
    gate.withdraw(line[-1], Outcome.TIMED_OUT, 1.0)  # it was not shed: there is a connection for it
    assert (gate.waiting, gate.overload.standing, gate.crowded) == (0, False, True)
    for _ in line[:2]:
        assert shed_for_one_more(gate) == 0
        queue_up(gate, 1.0)
    assert shed_for_one_more(gate) == 1


def test_a_crowd_has_gone_when_a_connection_finds_nobody() -> None:
    """A connection that comes back and that nobody waits for ends it: there is room again."""
    gate, slot, line = crowd()
    gate.give(slot, 0.36)
    assert gate.crowded
    for borrower in line[:2]:
        gate.withdraw(borrower, Outcome.CANCELLED, 0.36)
    gate.give(gate.claim(line[2]), 0.37)
    assert (gate.idle, gate.crowded) == (1, False)


def test_a_crowd_has_gone_when_a_connection_is_lost_that_nobody_waits_for() -> None:
    """Where every connection is closed when it comes back, none is ever idle."""
    gate = gate_of(2)
    slot, _ = lend(gate), lend(gate)
    gate.crowded = True
    gate.lost(slot, 0.1)
    assert not gate.crowded


def test_an_outage_turns_nobody_away() -> None:
    """Without a connection the crowd is not the trouble: who comes waits for the database."""
    gate, slot, _ = crowd()
    gate.lost(slot, 0.36)
    assert shed_for_one_more(gate) == 0


class Refusals(Timeline):
    """How long those have waited who came after 0.5 s and were not served."""

    def look(self, now: float) -> None:
        known = len(self.lost)
        super().look(now)
        self.refused = getattr(self, "refused", [])
        self.refused += [now - borrower.since for borrower in self.lost[known:] if borrower.since > 0.5]


def test_a_crowd_is_answered_in_time() -> None:
    """At three times the capacity the connections stay busy, and whoever is refused hears so long before the target."""
    timeline = Refusals(gate_of(10))

    def come(now: float) -> None:
        timeline.gate.make_room()
        timeline.borrow(now, 0.01)

    for i in range(6000):  # 2 s at 3,000 a second, 10 ms each
        timeline.at(i / 3000, come)
    for i in range(100):
        timeline.at(2.5 + i / 500, come)
    timeline.run()
    served = sorted(timeline.waits)
    assert len(served) + len(timeline.lost) == 6100
    assert len(served) > 1950
    assert served[len(served) // 2] < 0.05
    assert len(timeline.refused) > 2000
    assert max(timeline.refused) < 0.05


# Clients that give up


def long_leases() -> tuple[Gate[int], list[Borrower]]:
    """Leases of 1 s: a wait of 4 s is normal. Six wait."""
    gate = gate_of(1, queue_target=0.1)
    gate.give(lend(gate, -1.0), 0.0)
    lend(gate, 0.0)
    return gate, [queue_up(gate, 0.0) for _ in range(6)]


def looked_at(gate: Gate[int], *times: float) -> bool:
    for now in times:
        gate.sweep(now)
    return gate.overload.standing


def test_clients_that_leave_from_the_head_make_the_queue_stand() -> None:
    """Served in order, each would be served just before it gives up: a wait of four leases is not normal for these."""
    gate, line = long_leases()
    assert not looked_at(gate, 0.5, 1.0)
    for borrower in line[:2]:
        gate.withdraw(borrower, Outcome.CLIENT_GONE, 1.0)
    assert looked_at(gate, 1.1, 1.3)
    assert [borrower.outcome for borrower in line[2:]] == [None] * 4, "nobody is shed sooner for it"


def test_clients_that_leave_from_within_do_not() -> None:
    """They have reasons of their own; so has a single one at the head."""
    gate, line = long_leases()
    for borrower in (line[0], line[2], line[3], line[4]):
        gate.withdraw(borrower, Outcome.CLIENT_GONE, 1.0)
    assert not looked_at(gate, 1.1, 1.3)


def test_a_queue_that_stands_because_of_them_is_no_crowd() -> None:
    """Only the order changes: nobody has to make room, and nobody is refused who could be served."""
    gate, line = long_leases()
    for borrower in line[:2]:
        gate.withdraw(borrower, Outcome.CLIENT_GONE, 1.0)
    assert looked_at(gate, 1.1, 1.3)
    assert not gate.crowded
    assert gate.ended[Outcome.SHED] == 0


def test_those_who_left_long_ago_are_forgotten() -> None:
    """Two who leave an hour apart say nothing about the others."""
    gate, line = long_leases()
    gate.withdraw(line[0], Outcome.CANCELLED, 1.0)
    for borrower in line[1:]:
        borrower.since = 3600.0
    gate.withdraw(line[1], Outcome.CANCELLED, 3601.0)
    assert not looked_at(gate, 3601.1, 3601.3)


def test_what_two_did_is_forgotten_too() -> None:
    """Who comes much later, in a queue that was never empty, may be patient."""
    gate, line = long_leases()
    for borrower in line[:2]:
        gate.withdraw(borrower, Outcome.CANCELLED, 0.05)
    for borrower in line[2:]:
        borrower.since = 10.0
    (slot,) = gate.slots
    slot.since = 10.0  # a lease of 1 s is still what is usual
    assert not looked_at(gate, 10.2, 10.4)
