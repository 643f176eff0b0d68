"""World: one random schedule, the pool's side of the gate played from a seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

from aiohttp_poolscope.gate import Gate, Outcome, Overload, Slot, SlotState
from tests.kit.books import Books, Listed
from tests.kit.traced import Traced

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class World(Books):
    """What borrowers, connections and the pool do, at random. The books check each step."""

    def __init__(
        self,
        seed: str,
        gate_class: type[Gate[int]] = Traced,
        policy: type[Overload] = Overload,
        trace: list[str] | None = None,
    ) -> None:
        self.rng = rng = random.Random(seed)
        target: float | None = rng.choice([None, 0.02, 0.1, 0.1, 0.5])
        self.max_waiting = rng.choice([0, 1, 2, 5, 20, 1000, 1000, 1000, 1000])
        self.fresh_for = rng.choice([0.0, 0.05, 1.0, 1.0])
        self.people = rng.choice([3, 5, 8, 12, 20, 20, 40, 40, 80, 300])
        maxsize = rng.choice([1, 1, 2, 2, 3, 5, 10, 20, 50])
        minsize = rng.randint(0, maxsize)
        gate = gate_class(
            maxsize=maxsize,
            minsize=minsize,
            max_waiting=self.max_waiting,
            check_after_idle=self.fresh_for,
            overload=policy(target),
        )
        super().__init__(gate, target, 1000.0, trace)
        self.pace = rng.choice([0.001, 0.01, 0.03, 0.03, 0.1])
        self.eager_opener = rng.random() < 0.7
        self.frailty = rng.choice([0.0, 0.0, 0.02, 0.1])
        self.up = True
        self.links = 0
        self.asked = 0
        if trace is not None:
            trace.append(
                f"maxsize={maxsize} minsize={minsize} max_waiting={self.max_waiting} queue_target={target} "
                f"check_after_idle={self.fresh_for} borrowers={self.people}"
            )

    # The schedule.

    def run(self) -> None:
        """Everything: the schedule, then quiet; raises Broken where the gate is wrong."""
        rng = self.rng
        usual: list[tuple[Callable[[], None], float]] = [
            (self.ask, 6.0),
            (self.take, 5.0),
            (self.give, 5.0),
            (self.pass_time, 6.0),
            (self.start_opening, 2.0),
            (self.finish_opening, 3.0),
            (self.finish_mending, 2.0),
            (self.finish_check, 2.0),
            (self.sweep, 1.0),
        ]
        unusual: list[tuple[Callable[[], None], float]] = [
            (self.crowd, 1.0),
            (self.give_dirty, 2.0),
            (self.give_dead, 1.0),
            (self.cancel_waiting, 2.0),
            (self.cancel_handed, 2.0),
            (self.leave, 2.0),
            (self.lose_idle, 0.5),
            (self.ping_idle, 0.5),
            (self.stall, 0.3),
            (self.turn_database, 0.2),
            (self.fail, 0.1),
        ]
        # Each schedule has a temperament: some things happen often in it, others hardly ever.
        events = usual + unusual
        weights = [weight * rng.choice([0.3, 1.0, 1.0, 3.0]) for _, weight in usual]
        weights += [weight * rng.choice([0.0, 0.3, 1.0, 3.0]) for _, weight in unusual]
        length = self.people * rng.randint(2, 8)
        endings = {int(length * 0.7): self.drain, int(length * 0.9): self.close} if rng.random() < 0.25 else {}
        for step, (event, _) in enumerate(rng.choices(events, weights, k=length)):
            if step in endings:
                endings[step]()
            event()
        self.calm_down()

    def calm_down(self) -> None:
        """Holders return, openings succeed: everyone who waits must be settled, and all must add up."""
        self.say("calm down")
        self.up = True
        for _ in range(20 * self.people + 100):
            self.take()
            self.give()
            while self.mending:
                self.finish_mending()
            while self.checking:
                self.finish_check()
            if self.room is not None:
                self.finish_opening()
            else:
                self.start_opening()
            if not (self.queue or self.handed or self.holding or self.room):
                break
        gate = self.gate
        self.expect(not self.queue and gate.waiting == 0, "nobody is left waiting when all is quiet", list(self.queue))
        self.expect(gate.lent == gate.handed == gate.checking == 0, "nothing is left lent when all is quiet")
        self.expect(gate.repairing == gate.opening == 0, "nothing is left in repair when all is quiet")
        self.expect(sum(self.outcomes.values()) == self.asked == gate.borrows, "every borrow ends in one way")
        ends = {**gate.ended, Outcome.LENT: gate.taken}
        self.expect(all(self.outcomes[key] == ends[key] for key in Outcome), "every end is counted", ends)

    # What borrowers do.

    def ask(self) -> None:
        """Somebody wants a connection."""
        if self.asked >= self.people:
            return
        borrower = Listed(f"b{self.asked}", self.woken, running=self.rng.random() < 0.2)
        self.asked += 1
        self.borrow(borrower)

    def borrow(self, borrower: Listed) -> None:
        """At once, or through the queue."""
        gate, running = self.gate, borrower.running
        # The pool turns away who has not started before it asks the gate for them.
        allowed = running or not gate.draining or gate.closed
        while allowed and (slot := gate.try_acquire(self.now)) is not None:
            self.say("%r borrows %d at once", borrower, slot.link)
            top, since = self.resting.pop() if self.resting else (None, 0.0)
            self.expect(not gate.closed, "a closed gate lends nothing")
            self.expect(slot is top, "the one returned last is lent first", slot.link)
            self.expect(self.now - since <= self.fresh_for, "only a fresh one is lent at once", slot.link)
            self.expect(not self.queue, "nobody overtakes the queue", borrower)
            if self._found_dead(slot):
                continue
            self.holding.append(slot)
            self.outcomes[Outcome.LENT] += 1
            self.check()
            return
        if self.resting and not gate.draining:
            self.expect(self.now - self.resting[-1][1] > self.fresh_for, "an idle and fresh connection is lent")
        if not running:
            self.make_room()
        self.join(borrower)

    def join(self, borrower: Listed) -> None:
        """Queue up."""
        gate = self.gate
        full = len(self.queue) + len(self.holding) + len(self.handed) >= self.max_waiting + gate.maxsize
        turned_away = gate.closed or (gate.draining and not borrower.running)
        standing = gate.overload.standing
        self.look()
        gate.join(borrower, self.now)
        self.say("%r%s joins: %s", borrower, " (running)" if borrower.running else "", borrower.outcome)
        self.see(standing, full=full)
        if borrower.outcome is None:
            self.expect(not turned_away, "a draining gate refuses who has not started", borrower)
            self.queue[borrower] = None
        else:
            self.expect(borrower.outcome is Outcome.REFUSED, "a place or a refusal", borrower)
            self.expect(full or turned_away, "nobody is refused while there is room", borrower)
            self.outcomes[Outcome.REFUSED] += 1
        self.attend()

    def crowd(self) -> None:
        """Many at once."""
        for _ in range(self.rng.randint(2, 30)):
            self.ask()

    def take(self) -> None:
        """Somebody who was served wakes up."""
        if not self.handed:
            return
        borrower = self._draw(self.handed)
        slot = self.gate.claim(borrower)
        self.say("%r takes %d", borrower, slot.link)
        if slot.state is not SlotState.GONE and self._found_dead(slot):
            self.borrow(Listed(borrower.name, self.woken, running=borrower.running))
            return
        self.outcomes[Outcome.LENT] += 1
        if slot.state is not SlotState.GONE:
            self.holding.append(slot)
        self.attend()

    def _found_dead(self, slot: Slot[int]) -> bool:
        """Sometimes what was lent turns out to be dead before anything is done with it; then it was no lease."""
        dead = self.rng.random() < self.frailty
        if dead:
            self.say("%d turns out to be dead", slot.link)
            self.gate.cancel_lend(slot)
            self.gate.lost(slot, self.now)
        return dead

    def give(self) -> None:
        """A clean return."""
        if self.holding:
            slot = self._draw(self.holding)
            self.say("%d comes back", slot.link)
            self._free(slot)

    def give_dirty(self) -> None:
        """A return that needs a rollback."""
        if self.holding:
            slot = self._draw(self.holding)
            self.say("%d comes back dirty", slot.link)
            self.gate.repair(slot, self.now)
            self.mending.append(slot)
            self.attend()

    def give_dead(self) -> None:
        """A return of a connection that died."""
        if self.holding:
            self._lose(self._draw(self.holding), "comes back dead")

    def cancel_waiting(self) -> None:
        """Somebody in the queue is cancelled, timed out or sees that its client has left."""
        if not self.queue:
            return
        borrower = self.rng.choice(list(self.queue))
        outcome = self.rng.choice([Outcome.CANCELLED, Outcome.TIMED_OUT, Outcome.CLIENT_GONE, Outcome.FAILED])
        self.say("%r leaves the queue: %s", borrower, outcome)
        del self.queue[borrower]
        self._withdraw(borrower, outcome)

    def cancel_handed(self) -> None:
        """Somebody who was served leaves before it has woken up: the slot goes on."""
        if not self.handed:
            return
        borrower = self._draw(self.handed)
        slot = borrower.slot
        outcome = self.rng.choice([Outcome.CANCELLED, Outcome.CLIENT_GONE])
        self.say("%r leaves what it was handed: %s", borrower, outcome)
        self._withdraw(borrower, outcome, slot)

    def _withdraw(self, borrower: Listed, outcome: Outcome, slot: Slot[int] | None = None) -> None:
        gate, standing = self.gate, self.gate.overload.standing
        self.look()
        gate.withdraw(borrower, outcome, self.now)
        self.expect(borrower.outcome is outcome, "who leaves by itself ends so", borrower)
        self.outcomes[outcome] += 1
        self.see(standing, free=slot)
        gate.withdraw(borrower, Outcome.CANCELLED, self.now)  # harmless when repeated
        self.attend()

    def leave(self) -> None:
        """A client goes away; nobody is told."""
        somebody = [*self.queue, *self.handed]
        if somebody:
            borrower = self.rng.choice(somebody)
            borrower.alive = False
            self.say("the client of %r leaves", borrower)

    # What connections do.

    def start_opening(self) -> None:
        """The opener begins, if the gate wants it to."""
        gate = self.gate
        if gate.wants_opening():
            room = gate.reserve()
            self.say("an opening begins")
            self.expect(self.room is None, "one opening at a time")
            self.room = room
            self.check()

    def finish_opening(self) -> None:
        """It succeeds or fails."""
        room, self.room = self.room, None
        if room is None:
            return
        if self.up and self.rng.random() < 0.9:
            slot = Slot(self.links)
            self.links += 1
            self.say("%d is open", slot.link)
            standing = self.gate.overload.standing
            self.look()
            room.fill(slot, self.now)
            room.free()  # harmless once it is filled
            self.see(standing, free=slot)
        else:
            self.say("the opening fails")
            room.free()
        self.attend()

    def finish_mending(self) -> None:
        """A rollback or a ping ends."""
        if self.mending:
            slot = self._draw(self.mending)
            if self.up and self.rng.random() < 0.8:
                self.say("%d is mended", slot.link)
                self._free(slot)
            else:
                self._lose(slot, "is beyond mending")

    def finish_check(self) -> None:
        """A connection that was idle for long answers, or does not."""
        if self.checking:
            slot = self._draw(self.checking)
            if self.up and self.rng.random() < 0.8:
                self.say("%d answers the check", slot.link)
                self._free(slot)
            else:
                self._lose(slot, "does not answer the check")

    def lose_idle(self) -> None:
        """An idle connection dies."""
        if self.resting:
            slot, _ = self._draw(self.resting)
            self._lose(slot, "dies idle")

    def ping_idle(self) -> None:
        """An idle connection is kept alive."""
        if self.resting:
            slot, _ = self._draw(self.resting)
            self.say("%d is pinged", slot.link)
            self.gate.repair(slot, self.now)
            self.mending.append(slot)
            self.attend()

    def turn_database(self) -> None:
        """The database goes away, with every connection nobody holds; or it comes back."""
        self.up = not self.up
        self.say("the database is %s", "up" if self.up else "down")
        while not self.up and (self.resting or self.holding):
            self._lose(self.resting.pop()[0] if self.resting else self.holding.pop(), "dies with the database")

    # What the pool does.

    def pass_time(self) -> None:
        """A while."""
        self.now += self.rng.expovariate(1 / self.pace)

    def stall(self) -> None:
        """Nobody looks for long."""
        self.now += self.rng.uniform(0.1, 3.0)
        self.say("a stall")

    def sweep(self) -> None:
        """The housekeeper."""
        standing = self.gate.overload.standing
        self.say("a sweep")
        self.look()
        self.gate.sweep(self.now)
        self.see(standing)
        self.expect(not any(borrower.client_gone() for borrower in self.queue), "a sweep leaves nobody who is gone")
        self.attend()

    def fail(self) -> None:
        """The breaker opens."""
        if not self.gate.slots:
            self.say("everyone fails")
            standing = self.gate.overload.standing
            self.gate.fail()
            self.see(standing, ending={Outcome.FAILED})
            self.expect(not self.queue, "nobody waits for what cannot come")
            self.check()

    def drain(self) -> None:
        """A deployment."""
        self.say("drain")
        standing = self.gate.overload.standing
        self.gate.drain()
        self.see(standing, ending={Outcome.REFUSED})
        self.expect(all(borrower.running for borrower in self.queue), "who has not started is refused")
        self.attend()

    def close(self) -> None:
        """The end, by force: every connection is closed, also those handed to somebody who has not woken up."""
        self.say("close")
        standing = self.gate.overload.standing
        self.gate.close()
        self.see(standing, ending={Outcome.REFUSED})
        while self.resting:
            self._lose(self.resting.pop()[0], "is closed")
        while self.holding:
            self._lose(self.holding.pop(), "is closed by force")
        for borrower in self.handed:
            if borrower.slot is not None:
                self._lose(borrower.slot, "is closed before it is taken")

    def attend(self) -> None:
        """What the pool does after whatever may call for it."""
        gate = self.gate
        while (slot := gate.next_check(self.now)) is not None:
            self.say("%d is checked", slot.link)
            self.expect(bool(self.resting) and slot is self.resting.pop()[0], "the top of the stack is checked")
            self.checking.append(slot)
        if self.eager_opener:
            self.start_opening()
        self.check()

    def _free(self, slot: Slot[int]) -> None:
        standing = self.gate.overload.standing
        self.look()
        self.gate.give(slot, self.now)
        self.see(standing, free=slot)
        self.attend()

    def _lose(self, slot: Slot[int], how: str) -> None:
        self.say("%d %s", slot.link, how)
        self.gate.lost(slot, self.now)
        self.attend()

    def _draw(self, things: list[T]) -> T:
        return things.pop(self.rng.randrange(len(things)))
