"""Ways to decide who is served next: the gate as it is, what others do, and variants of the gate that were tried."""

from __future__ import annotations

import math
from typing import Any

from aiohttp_poolscope.gate import Gate, Outcome, Slot, Waiter
from aiohttp_poolscope.gate.gate import CROWD_IN_LEASES, GIVEN_UP, NORMAL_WAIT_IN_LEASES

from .world import Load, Result, World

FOR_EVER = float("inf")


class ByHand(Gate[int]):
    """Plain FIFO without any limit that serves the dead as well: what ``async with pool.acquire()`` does."""

    def _next(self, now: float) -> Waiter[int] | None:
        oldest = next(iter(self._waiters), None)
        if oldest is not None:
            self._remove(oldest)
        return oldest

    def sweep(self, now: float) -> None:
        """Nobody looks."""


class Newest(Gate[int]):
    """Newest first, always; nobody is shed."""

    def _next(self, now: float) -> Waiter[int] | None:
        self.standing = bool(self._waiters)
        return super()._next(now)

    def _observe(self, now: float) -> None:
        """Nothing is ever too late."""

    def make_room(self) -> None:
        """There is always room."""


class CoDel(Gate[int]):
    """FIFO. Once the oldest has been above the target for an interval, it is dropped, and then ever more often."""

    interval = 0.1

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._above_since: float | None = None
        self._drop_next = 0.0
        self._dropped = 0

    def give(self, slot: Slot[int], now: float) -> None:
        self._drop(now)
        super().give(slot, now)

    def _drop(self, now: float) -> None:
        while len(self._waiters) > 1:
            oldest = next(iter(self._waiters))
            if oldest.gone():
                self._settle(oldest, Outcome.CLIENT_GONE)
                continue
            if self._queue_target is None or now - oldest.since <= self._queue_target:
                self._above_since, self._dropped = None, 0
                return
            if self._above_since is None:
                self._above_since = now
                self._drop_next = now + self.interval
            if now < self._drop_next:
                return
            self._settle(oldest, Outcome.SHED)
            self._dropped += 1
            self._drop_next += self.interval / math.sqrt(self._dropped)

    def _observe(self, now: float) -> None:
        """All is done when a connection is free."""


class Tuned(Gate[int]):
    """The gate with its constants as arguments.

    ``leases``: so many median leases are a normal wait. ``again``: the queue stands when the oldest has been late
    for so many times the normal wait. ``given_up``: so many must have left from the head of the queue before the
    leases no longer count. ``room``: in a crowd so many may wait for each connection. ``calm``: it stands until the
    oldest has waited no more than this share of the normal wait; 0: until it is empty.
    """

    def __init__(
        self,
        *,
        leases: float = NORMAL_WAIT_IN_LEASES,
        again: float = 1.0,
        given_up: float = GIVEN_UP,
        room: float = CROWD_IN_LEASES,
        calm: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._leases = leases / NORMAL_WAIT_IN_LEASES
        self._again = again
        self._enough = given_up
        self._room = room * self.maxsize
        self._ends = calm

    def _normal_wait(self, now: float, floor: float) -> float:
        return max(floor, super()._normal_wait(now, 0.0) * self._leases)

    def _late_after(self, now: float, floor: float) -> float:
        normal = self._normal_wait(now, floor)
        heeded = self._given_up >= self._enough and now - self._gave_up_at <= normal and not self.standing
        return floor if heeded else normal

    def make_room(self) -> None:
        if self.crowded and self._not_begun >= self._room:
            self._settle(next(iter(self._waiters)), Outcome.SHED)

    def _observe(self, now: float) -> None:
        floor = self._queue_target
        if self.standing and self._waiters and self._ends:
            self.standing = now - next(iter(self._waiters)).since > self._ends * self._normal_wait(now, floor or 0.0)
        while floor is not None and self._waiters:
            oldest = next(iter(self._waiters))
            since = max(oldest.since, self._up_since)
            waited = now - since
            if waited > floor and oldest.gone():
                self._notice(oldest, now)
                self._settle(oldest, Outcome.CLIENT_GONE)
            elif (
                waited <= floor
                or not self.slots
                or len(self._waiters) + self.lent <= self.maxsize
                or waited <= (late := self._late_after(now, floor))
            ):
                self._late_since = None
                return
            elif self.standing:
                self.crowded = True
                self._settle(oldest, Outcome.SHED)
            elif self._late_since is None or self._late_since - since <= late:
                self._late_since = now
                return
            elif now - self._late_since < self._again * late:
                return
            else:
                self.standing = True


POLICIES: dict[str, tuple[type[Gate[int]], dict[str, Any]]] = {
    "by hand": (ByHand, {"queue_target": None, "max_waiting": 10**9, "acquire_timeout": FOR_EVER}),
    "FIFO": (Gate, {"queue_target": None}),
    "CoDel": (CoDel, {}),
    "newest first": (Newest, {}),
    "the gate": (Gate, {}),
}
"""What is compared: a kind of gate, and its settings. ``FIFO`` is ``queue_target=None``."""


def play(policy: str | dict[str, Any], load: Load, seed: int = 1) -> Result:
    """One load against one of POLICIES, or against a ``Tuned`` gate with these settings."""
    kind, given = POLICIES[policy] if isinstance(policy, str) else (Tuned, policy)
    settings = dict(given)
    acquire_timeout = settings.pop("acquire_timeout", 5.0)
    gate = kind(maxsize=load.maxsize, check_after_idle=FOR_EVER, **settings)
    return World(gate, load, acquire_timeout=acquire_timeout).run(seed)
