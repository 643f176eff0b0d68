"""The gate under thousands of random schedules; and gates broken on purpose, which the schedules must notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aiohttp_poolscope.gate import Gate, Outcome, Overload, Room, Slot, SlotState, Waiter
from tests.kit.traced import STEPS

from . import schedules

if TYPE_CHECKING:
    from aiohttp_poolscope.gate.overload import Load

SCHEDULES = 3000


def test_random_schedules_keep_every_promise() -> None:
    """Whatever order things happen in, nothing is lost, counted twice or served out of turn."""
    total = schedules.run_many("pytest", range(SCHEDULES))
    assert not total.failures, schedules.report(total.failures)
    assert total.schedules == SCHEDULES
    assert set(total.outcomes) == {outcome.value for outcome in Outcome}
    assert total.events > 50 * SCHEDULES
    assert total.stood > 50
    assert total.steps == STEPS


def test_a_seed_always_grows_the_same_schedule() -> None:
    """A failure can be replayed: the same seed gives the same events, whatever the process."""
    trace = schedules.replay("pytest:7")
    assert trace == schedules.replay("pytest:7") != schedules.replay("pytest:8")
    assert "joins" in trace


class LosesAWakeUp(Gate[int]):
    """A slot whose waiter left in the same tick goes to sleep instead of to the next."""

    def withdraw(self, waiter: Waiter[int], outcome: Outcome, now: float) -> None:
        waiting, self._waiters = self._waiters, type(self._waiters)()
        if waiter.slot is None:
            self._waiters = waiting
        super().withdraw(waiter, outcome, now)
        self._waiters = waiting


class LosesASlot(Gate[int]):
    """A slot whose waiter left in the same tick stays lent for ever."""

    def withdraw(self, waiter: Waiter[int], outcome: Outcome, now: float) -> None:
        if waiter.slot is None:
            super().withdraw(waiter, outcome, now)
        else:
            waiter.slot = None
            self.handed -= 1
            self._end(waiter, outcome)


class LendsTwice(Gate[int]):
    """A slot that is handed over is put on the idle stack too."""

    def give(self, slot: Slot[int], now: float) -> None:
        super().give(slot, now)
        if slot.state is SlotState.LENT:
            self._idle.append(slot)


class ForgetsToCount(Gate[int]):
    """A dead connection still counts as lent."""

    def lost(self, slot: Slot[int], now: float) -> None:
        lent = self.lent
        super().lost(slot, now)
        self.lent = lent


class CountsAnEndTwice(Gate[int]):
    """Who is cancelled after the hand-over counts as lent as well."""

    def withdraw(self, waiter: Waiter[int], outcome: Outcome, now: float) -> None:
        self.taken += waiter.slot is not None
        super().withdraw(waiter, outcome, now)


class NewestFirst(Gate[int]):
    """LIFO without need."""

    def _next(self, now: float) -> Waiter[int] | None:
        standing, self.overload.standing = self.overload.standing, True
        waiter = super()._next(now)
        self.overload.standing = standing and self.overload.standing
        return waiter


class OldestFirst(Gate[int]):
    """FIFO although the queue stands."""

    def _next(self, now: float) -> Waiter[int] | None:
        if self.overload.standing and self._waiters:
            self._waiters.move_to_end(next(iter(self._waiters)))
        return super()._next(now)


class ServesTheDead(Gate[int]):
    """Nobody is asked whether the client is still there."""

    def _next(self, now: float) -> Waiter[int] | None:
        if not self._waiters:
            return None
        waiter = next(reversed(self._waiters)) if self.overload.standing else next(iter(self._waiters))
        self._remove(waiter)
        return waiter


class OpensTooMany(Gate[int]):
    """One beyond maxsize."""

    def wants_opening(self) -> bool:
        self.maxsize += 1
        wants = super().wants_opening()
        self.maxsize -= 1
        return wants

    def reserve(self) -> Room[int]:
        self.maxsize += 1
        room = super().reserve()
        self.maxsize -= 1
        return room


class OpensTwice(Gate[int]):
    """A second opening beside the first."""

    def wants_opening(self) -> bool:
        opening, self.opening = self.opening, 0
        wants = super().wants_opening()
        self.opening = opening
        return wants

    def reserve(self) -> Room[int]:
        opening, self.opening = self.opening, 0
        room = super().reserve()
        self.opening += opening
        return room


class NeverOpens(Gate[int]):
    """Nothing is opened for those who wait."""

    def wants_opening(self) -> bool:
        return super().wants_opening() and len(self.slots) < self.minsize


class LendsTheStale(Gate[int]):
    """Whatever is idle is lent unchecked."""

    def try_acquire(self, now: float) -> Slot[int] | None:
        self._fresh_for = float("inf")
        return super().try_acquire(now)


class LendsTheOldest(Gate[int]):
    """The idle stack upside down."""

    def try_acquire(self, now: float) -> Slot[int] | None:
        self._idle.reverse()
        return super().try_acquire(now)


class LendsWhenClosed(Gate[int]):
    """The idle stack stays open after the end."""

    def close(self) -> None:
        fresh_for = self._fresh_for
        super().close()
        self._fresh_for = fresh_for


class ChecksTooFew(Gate[int]):
    """One check at a time, however many wait."""

    def next_check(self, now: float) -> Slot[int] | None:
        return None if self.checking else super().next_check(now)


class StandsAtOnce(Overload):
    """One late look is enough, as after a stall."""

    def __init__(self, queue_target: float | None) -> None:
        super().__init__(queue_target, stands_after=0.0)

    def _late_again(self, since: float, target: float, now: float) -> bool:
        self._late_since = now
        return super()._late_again(since, target, now)


class BlamesAStall(Overload):
    """The oldest need not have been late a target ago, if only another one was."""

    def _late_again(self, since: float, target: float, now: float) -> bool:
        earlier = self._late_since
        return super()._late_again(since, target, now) or (earlier is not None and now - earlier >= target)


class ShedsInAnOutage(Gate[int]):
    """No connection at all, and yet whoever is late is shed."""

    def sweep(self, now: float) -> None:
        super().sweep(now)
        target = self.overload.queue_target
        if target is not None and not self.slots:
            for waiter in [waiter for waiter in self._waiters if now - waiter.since > target]:
                self._settle(waiter, Outcome.SHED)


class ShedsWithRoomLeft(Gate[int]):
    """Slow to open or to check counts as overload."""

    def _observe(self, now: float) -> None:
        self.maxsize -= 1
        super()._observe(now)
        self.maxsize += 1


class StandsForEver(Overload):
    """An empty queue does not calm it."""

    def calm(self) -> None:
        self._late_since = None


class CrowdedForEver(Gate[int]):
    """An idle connection does not end a crowd."""

    def give(self, slot: Slot[int], now: float) -> None:
        crowded = self.crowded
        super().give(slot, now)
        self.crowded = crowded


class NeverCrowded(Overload):
    """Who has been shed was shed for nothing: as many wait as before."""

    def has_no_room(self, load: Load) -> bool:
        return False


class CountsTheDead(Gate[int]):
    """What turned out to be dead was a lease all the same."""

    def cancel_lend(self, slot: Slot[int]) -> None:
        super().cancel_lend(slot)
        self.taken += 1


class IgnoresTheDead(Gate[int]):
    """A sweep that leaves them where they are."""

    def sweep(self, now: float) -> None:
        self._observe(now)


class Unbounded(Gate[int]):
    """Everyone may wait."""

    def _full(self) -> bool:
        return False


class RefusesTooEarly(Gate[int]):
    """Full although a connection is idle or room is left."""

    def _full(self) -> bool:
        return len(self._waiters) >= self._max_waiting


class DrainsNobody(Gate[int]):
    """Those who have not started keep waiting."""

    def drain(self) -> None:
        self.draining = True


class ForgetsToWake(Gate[int]):
    """Whoever is refused by the end is never told."""

    def _settle_all(self, outcome: Outcome) -> None:
        while self._waiters:
            waiter = next(iter(self._waiters))
            self._remove(waiter)
            self._end(waiter, outcome)


class RevivesTheLost(Gate[int]):
    """A connection that was closed before it was taken comes back to life when its waiter leaves."""

    def withdraw(self, waiter: Waiter[int], outcome: Outcome, now: float) -> None:
        if waiter.slot is not None and waiter.slot.state is SlotState.GONE:
            waiter.slot.state = SlotState.LENT
            self.lent += 1
        super().withdraw(waiter, outcome, now)


@pytest.mark.parametrize(
    "broken",
    [
        LosesAWakeUp,
        LosesASlot,
        LendsTwice,
        ForgetsToCount,
        CountsAnEndTwice,
        NewestFirst,
        OldestFirst,
        ServesTheDead,
        OpensTooMany,
        OpensTwice,
        NeverOpens,
        LendsTheStale,
        LendsTheOldest,
        LendsWhenClosed,
        ChecksTooFew,
        StandsAtOnce,
        BlamesAStall,
        ShedsInAnOutage,
        ShedsWithRoomLeft,
        StandsForEver,
        CrowdedForEver,
        NeverCrowded,
        CountsTheDead,
        IgnoresTheDead,
        Unbounded,
        RefusesTooEarly,
        DrainsNobody,
        ForgetsToWake,
        RevivesTheLost,
    ],
)
def test_a_broken_gate_is_found(broken: schedules.Kind) -> None:
    """The schedules would notice each of these mistakes, and tell how to see it again."""
    found = schedules.run_many("broken", range(SCHEDULES), broken).failures
    assert found, f"{broken.__name__} goes unnoticed in {SCHEDULES} schedules"
    [(seed, problem)] = found
    assert f"--replay {seed}" in schedules.report(found)
    assert schedules.replay(seed, broken).endswith(problem)
