"""Overload policies: the gate's own, what others do, and variants of the gate's that were tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.gate import Gate, Outcome, Overload

from .world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp_poolscope.gate import Waiter
    from aiohttp_poolscope.gate.overload import Load as Facts

    from .world import Load, Result

FOR_EVER = float("inf")


class Newest(Overload):
    """Newest first, always; nobody is shed."""

    def __init__(self) -> None:
        super().__init__(None)
        self.standing = True

    def calm(self) -> None:
        """It stays as it is."""


class CoDel(Overload):
    """FIFO. Once the oldest has been above the target for an interval, it is dropped, and then ever more often."""

    target = interval = 0.1

    def __init__(self) -> None:
        super().__init__(None, crowd_in_leases=FOR_EVER)
        self._above_since: float | None = None
        self._drop_next = 0.0
        self._dropped = 0

    def judge(self, oldest: Waiter[Any], load: Facts, now: float) -> Outcome | None:
        if oldest.client_gone():
            return Outcome.CLIENT_GONE
        if now - oldest.since <= self.target:
            self._above_since, self._dropped = None, 0
            return None
        if self._above_since is None:
            self._above_since = now
            self._drop_next = now + self.interval
        if now < self._drop_next:
            return None
        self._dropped += 1
        self._drop_next += self.interval / math.sqrt(self._dropped)
        return Outcome.SHED


class UntilYoung(Overload):
    """The gate's, but a queue stands only until its oldest has waited no longer than is normal."""

    def judge(self, oldest: Waiter[Any], load: Facts, now: float) -> Outcome | None:
        if self.standing:
            self.standing = now - oldest.since > self.normal_wait(load, now)
        return super().judge(oldest, load, now)


POLICIES: dict[str, Callable[[], Overload]] = {
    "by hand": lambda: Overload(None),
    "FIFO": lambda: Overload(None),
    "CoDel": CoDel,
    "newest first": Newest,
    "the gate": Overload,
}
"""What is compared. "By hand" is FIFO without any limit that serves the dead as well: ``async with pool.acquire()``."""


def play(policy: str | Callable[[], Overload], load: Load, seed: int = 1) -> Result:
    """One load against one of POLICIES, or against another."""
    by_hand = policy == "by hand"
    gate: Gate[int] = Gate(
        maxsize=load.maxsize,
        max_waiting=10**9 if by_hand else 1000,
        check_after_idle=FOR_EVER,
        overload=(POLICIES[policy] if isinstance(policy, str) else policy)(),
    )
    world = World(gate, load, acquire_timeout=FOR_EVER if by_hand else 5.0, looks_for_clients=not by_hand)
    return world.run(seed)
