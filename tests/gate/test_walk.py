"""Every order of events for small gates: a walk through all the states there are, each checked on its own."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, TypeVar

import pytest

from aiohttp_poolscope.gate import Outcome, Overload, Room, Slot, SlotState, Waiter
from tests.kit.books import Borrower
from tests.kit.traced import STEPS, Traced

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.kit.traced import Step

T = TypeVar("T")

STEP = 1.0
"""How far time moves, in seconds: no idle connection is fresh any more, and one ``queue_target`` has passed."""

OLDEST = 3
"""Steps after which one wait is as good as any longer one: late, and for as long again."""


@dataclass(frozen=True)
class Case:
    """A small gate. ``states`` is what the walk must find at least, so that it cannot become empty unnoticed."""

    connections: int
    borrowers: int
    states: int
    max_waiting: int = 1000
    target: float | None = None
    leases: bool = False
    running: bool = False
    minsize: int = 0

    def __str__(self) -> str:
        who = "running" if self.running else "fresh"
        return f"{self.connections}x{self.borrowers} {who}, target {self.target}, max_waiting {self.max_waiting}"


CASES = (
    Case(1, 3, states=90),
    Case(2, 3, states=250),
    Case(2, 2, max_waiting=1, states=150),
    Case(2, 3, running=True, minsize=1, states=1000),
    Case(3, 4, states=1000),
    Case(1, 2, target=STEP, leases=True, states=3000),
    Case(1, 3, target=STEP, states=3000),
    Case(1, 3, target=STEP, max_waiting=1, states=600),
)

LARGE = Case(2, 3, target=STEP, states=8_000)


BORROWER = (*Waiter.__slots__, *Borrower.__slots__)


def alike(thing: T, names: Iterable[str] = ()) -> T:
    """What ``copy.copy`` does, in a third of the time: by ``__dict__``, or by these names."""
    twin = object.__new__(type(thing))
    for name in names:
        setattr(twin, name, getattr(thing, name))
    if not names:
        twin.__dict__.update(thing.__dict__)
    return twin


class State:
    """A gate, and what the pool around it knows."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.now = 0.0
        self.links = 0
        self.holding = 0
        self.handed: list[Borrower] = []
        self.room: Room[int] | None = None
        self.gate = Traced(
            maxsize=case.connections,
            minsize=case.minsize,
            max_waiting=case.max_waiting,
            check_after_idle=STEP / 2,
            # What is normal depends on leases only where it is told to: fewer states, and more of them stand.
            overload=Overload(case.target) if case.leases else Overload(case.target, normal_wait_in_leases=0.0),
        )

    def twin(self) -> State:
        """The same again, with nothing in common but what cannot change."""
        gate = self.gate
        slots = {slot: alike(slot, Slot.__slots__) for slot in gate.slots}
        slots |= {
            place.slot: alike(place.slot, Slot.__slots__)
            for place in self.handed
            if place.slot and place.slot not in slots
        }
        waiters = {place: alike(place, BORROWER) for place in [*self.places(), *self.handed]}
        for waiter in waiters.values():
            waiter.slot = waiter.slot and slots[waiter.slot]
        twin = alike(self)
        twin.handed = [waiters[place] for place in self.handed]
        twin.gate = alike(gate)
        twin.gate.slots = dict.fromkeys(slots[slot] for slot in gate.slots)
        twin.gate.ended = dict(gate.ended)
        twin.gate._idle = [slots[slot] for slot in gate._idle]
        twin.gate._waiters = OrderedDict.fromkeys(waiters[place] for place in self.places())
        twin.gate._recent = gate._recent.copy()
        twin.gate.overload = alike(gate.overload)
        if self.room is not None:
            twin.room = alike(self.room, Room.__slots__)
            twin.room._gate = twin.gate
        return twin

    def slots(self, state: SlotState) -> list[Slot[int]]:
        """Those in one state; of those that are lent only what was taken. Oldest first."""
        on_their_way = {borrower.slot for borrower in self.handed}
        slots = [slot for slot in self.gate.slots if slot.state is state and slot not in on_their_way]
        return sorted(slots, key=lambda slot: slot.link)

    def moves(self) -> Iterator[tuple[str, int]]:  # noqa: C901, PLR0912 - a list, read from top to bottom
        """Everything that can happen next: what, and to which."""
        gate = self.gate
        if gate.waiting + gate.lent < self.case.borrowers:
            yield "ask", 0
            yield "ask, find it dead", 0
            if self.case.running:
                yield "ask running", 0
        for i in range(gate.waiting):
            yield "cancel", i
        yield from (("client dies", i) for i, waiter in enumerate(self.places()) if waiter.alive)
        for i, borrower in enumerate(self.handed):
            yield "take", i
            yield "take, find it dead", i
            yield "cancel after hand-over", i
            if gate.closed and borrower.slot and borrower.slot.state is not SlotState.GONE:
                yield "force", i
        ages = [slot.since if self.case.leases else 0.0 for slot in self.slots(SlotState.LENT)]
        for i in sorted({ages.index(since) for since in ages}):  # one of those that are alike
            yield "return", i
            yield "return dirty", i
            yield "return dead", i
        for i in range(min(1, gate.repairing - gate.checking)):
            yield "mended", i
            yield "beyond mending", i
        for i in range(min(1, gate.checking)):
            yield "check ok", i
            yield "check fails", i
        for i in range(gate.idle):
            yield "idle dies", i
            yield "ping", i
        if gate.wants_opening():
            yield "open", 0
        if gate.opening:
            yield "opened", 0
            yield "opening fails", 0
        if gate.waiting:
            yield "time out", 0
            yield "sweep", 0
        if gate.waiting and not gate.slots:
            yield "fail", 0
        if not gate.closed:
            yield "close", 0
            if not gate.draining:
                yield "drain", 0
        yield "time passes", 0

    def places(self) -> list[Borrower]:
        """The queue."""
        return [waiter for waiter in self.gate._waiters if isinstance(waiter, Borrower)]

    def move(self, what: str, i: int) -> None:  # noqa: C901, PLR0912 - a list, read from top to bottom
        """Let it happen, and do what the pool does afterwards."""
        gate, now = self.gate, self.now
        before, standing = self.places(), gate.overload.standing
        self.holding -= what.startswith("return")
        match what:
            case "ask" | "ask running":
                self._ask(before, running=what == "ask running")
            case "ask, find it dead":
                self._find_dead(gate.try_acquire(now))
            case "take, find it dead":
                self._find_dead(gate.claim(self.handed.pop(i)))
            case "cancel":
                gate.withdraw(before[i], Outcome.CANCELLED, now)
            case "time out":
                gate.withdraw(before[i], Outcome.TIMED_OUT, now)
            case "client dies":
                before[i].alive = False
            case "take":
                self.holding += gate.claim(self.handed.pop(i)).state is SlotState.LENT
            case "cancel after hand-over":
                gate.withdraw(self.handed.pop(i), Outcome.CANCELLED, now)
            case "force":
                slot = self.handed[i].slot
                assert slot is not None
                gate.lost(slot, now)
            case "return":
                gate.give(self.slots(SlotState.LENT)[i], now)
            case "return dirty":
                gate.repair(self.slots(SlotState.LENT)[i], now)
            case "return dead":
                gate.lost(self.slots(SlotState.LENT)[i], now)
            case "mended":
                gate.give(self.slots(SlotState.REPAIRING)[i], now)
            case "beyond mending":
                gate.lost(self.slots(SlotState.REPAIRING)[i], now)
            case "check ok":
                gate.give(self.slots(SlotState.CHECKING)[i], now)
            case "check fails":
                gate.lost(self.slots(SlotState.CHECKING)[i], now)
            case "idle dies":
                gate.lost(gate.idle_slots()[i], now)
            case "ping":
                gate.repair(gate.idle_slots()[i], now)
            case "open":
                self.room = gate.reserve()
            case "opened":
                self.links += 1
                self._room().fill(Slot(self.links), now)
            case "opening fails":
                self._room().free()
            case "sweep":
                gate.sweep(now)
            case "fail":
                gate.fail()
            case "drain":
                gate.drain()
            case "close":
                gate.close()
            case "time passes":
                self.now += STEP
        self.handed += [borrower for borrower in before if borrower.slot is not None and borrower not in self.handed]
        while gate.waiting > gate.checking and gate.idle:
            assert not self._fresh(gate.idle_slots()[-1]), "only what is stale is checked, the rest is handed over"
            assert gate.next_check(self.now) is not None
        self._settled(before, standing=standing)

    def _find_dead(self, slot: Slot[int] | None) -> None:
        if slot is not None and slot.state is SlotState.LENT:
            self.gate.cancel_lend(slot)
            self.gate.lost(slot, self.now)

    def _ask(self, before: list[Borrower], *, running: bool) -> None:
        gate = self.gate
        if gate.draining and not running:
            slot = None  # the pool turns it away by itself
        else:
            fresh = [slot for slot in gate.idle_slots() if self._fresh(slot) and not gate.closed]
            slot = gate.try_acquire(self.now)
            assert slot is (fresh[-1] if fresh else None)
        self.holding += slot is not None
        if slot is None:
            if not running:
                self._make_room(before)
            gate.join(Borrower("somebody", running=running), self.now)

    def _make_room(self, before: list[Borrower]) -> None:
        gate = self.gate
        not_begun = [borrower for borrower in before if not borrower.running]
        leaving = not_begun[: gate.crowded and len(not_begun) >= 2 * gate.maxsize]
        gate.make_room()
        for borrower in leaving:
            assert (borrower.outcome, borrower.woken) == (Outcome.SHED, 1)
            before.remove(borrower)

    def _room(self) -> Room[int]:
        room, self.room = self.room, None
        assert room is not None
        return room

    def _fresh(self, slot: Slot[int]) -> bool:
        return self.now - slot.since < STEP

    def _settled(self, before: list[Borrower], *, standing: bool) -> None:
        """The right one was served; nobody was shed too early; who left the queue has an end and was woken, once."""
        waiting, living = self.places(), [borrower for borrower in before if not borrower.client_gone()]
        served = [borrower for borrower in before if borrower.outcome is Outcome.LENT]
        assert served in ([], [living[-1 if standing else 0]] if living else [])
        shed = [borrower for borrower in before if borrower.outcome is Outcome.SHED]
        if shed and not standing:
            assert self.gate.slots
            assert self.now - shed[0].since > 2 * STEP
        for borrower in before:
            assert (borrower.outcome is None) == (borrower in waiting)
            left_alone = borrower.outcome in (Outcome.CANCELLED, Outcome.TIMED_OUT)
            assert borrower.woken == (borrower.outcome is not None and not left_alone)

    def check(self) -> None:
        """What holds in every state."""
        gate = self.gate
        assert gate.violations() == []
        assert gate.handed == len(self.handed)
        kept = sum(borrower.slot is not None and borrower.slot.state is SlotState.LENT for borrower in self.handed)
        assert gate.lent == self.holding + kept
        assert self.holding == len(self.slots(SlotState.LENT))
        assert not any(borrower.woken for borrower in self.places())
        if gate.draining:
            assert all(borrower.running for borrower in self.places())

    def settle(self) -> None:
        """All holders return and openings succeed: everybody who waits is settled."""
        gate = self.gate
        rounds = 0
        while gate.waiting or self.handed or self.holding or gate.repairing or gate.opening:
            rounds += 1
            assert rounds < 50, "somebody waits for ever"
            ready: list[tuple[str, list[object]]] = [
                ("take", [*self.handed]),
                ("return", [*self.slots(SlotState.LENT)]),
                ("mended", [*self.slots(SlotState.REPAIRING)]),
                ("check ok", [*self.slots(SlotState.CHECKING)]),
                ("opened", [None] * gate.opening),
                ("open", [None] * gate.wants_opening()),
            ]
            what = next((what for what, things in ready if things), None)
            assert what is not None, "somebody waits, and nothing can happen"
            self.move(what, 0)
            self.check()
        assert gate.borrows == gate.taken + sum(gate.ended.values())

    def key(self) -> object:
        """What makes two states the same: names do not, nor the past, nor time that decides nothing."""
        gate = self.gate
        timed = self.case.target is not None and not gate.closed and (self.case.running or not gate.draining)
        places, handed = self.places(), [place.slot for place in self.handed]

        def age(since: float) -> float:
            return min(self.now - since, OLDEST * STEP) if timed else 0.0

        def lease(seconds: float) -> float:
            return min(seconds, STEP) if timed and self.case.leases else 0.0

        policy = gate.overload
        late = policy._late_since
        if late is not None and (not places or late <= places[0].since):
            late = None
        return (
            (gate.draining, gate.closed, gate.crowded, policy.standing, gate.opening),
            tuple((place.alive, place.running, age(max(place.since, gate.up_since))) for place in places),
            tuple(self.now > slot.since for slot in gate.idle_slots()),
            tuple(sorted(lease(self.now - slot.since) for slot in self.slots(SlotState.LENT))),
            tuple(sorted((slot.state.name, lease(self.now - slot.since)) for slot in handed if slot)),
            (gate.repairing, gate.checking),
            tuple(lease(seconds) for seconds in gate._recent if self.case.leases),
            None if late is None else age(late),
            self.case.leases and self.now < policy._target_until and min(policy._target, OLDEST * STEP),
        )


def walk(case: Case) -> tuple[int, int, set[Step]]:
    """Breadth first, so that what fails is told by the shortest way to it. How many states and moves there are, and
    what the moves did to connections.
    """
    start = State(case)
    plain = (int, float, NoneType)
    changeable = {name for name, value in vars(start.gate).items() if not isinstance(value, plain)}
    copied = {"slots", "ended", "overload", "_idle", "_waiters", "_recent"}
    assert changeable == copied | {"seen"}, "twin() must copy all that changes; what was seen is seen by all"
    assert all(isinstance(value, plain) for value in vars(start.gate.overload).values())
    ways: dict[object, tuple[object, str]] = {start.key(): (None, "start")}
    frontier = deque([start])
    moves = 0
    while frontier:
        state = frontier.popleft()
        key: object = state.key()
        for what, i in state.moves():
            moves += 1
            after = state.twin()
            try:
                after.move(what, i)
                after.check()
                reached = after.key()
                if reached not in ways:
                    ways[reached] = (key, what)
                    frontier.append(after)
                    after.twin().settle()
            except Exception as error:
                way = [what]
                while key is not None:
                    key, earlier = ways[key]
                    way.append(earlier)
                raise AssertionError(" -> ".join(reversed(way))) from error
    return len(ways), moves, start.gate.seen


@pytest.mark.parametrize("case", [*CASES, pytest.param(LARGE, marks=pytest.mark.slow)], ids=str)
def test_every_order_of_events_keeps_every_promise(case: Case) -> None:
    """In every state the invariants hold, and from every state everyone who waits can still be settled."""
    states, moves, seen = walk(case)
    print(f"{case}: {states:,} states, {moves:,} moves")
    assert states >= case.states
    assert seen == STEPS, "all that the table says can happen, does"
