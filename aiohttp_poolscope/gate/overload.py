"""Overload: when a queue can no longer be served in time, and who is refused then. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .slots import Outcome

if TYPE_CHECKING:
    from collections.abc import Sized

    from .slots import Waiter

__all__ = ("Load", "Overload")

NORMAL_WAIT_IN_LEASES = 4.0
"""A wait of four median leases is normal: slow queries make long waits normal."""

STANDS_AFTER = 1.0
"""The oldest must have been late for so many times the normal wait: a stall ages everyone at once."""

CROWD_IN_LEASES = 2.0
"""In a crowd, so many times ``maxsize`` may wait whose work has not begun: two for every connection."""

GIVEN_UP = 2
"""So many have left from the head of the queue, unserved, shortly after each other: clients do not wait as long as
would be normal. One may leave for reasons of its own."""

TARGET_CACHED = 0.025
"""Seconds for which the median lease is not computed again: it costs a sort of up to 2 * maxsize numbers."""


class Load(Protocol):
    """Facts about a gate, for the policy to decide by."""

    @property
    def maxsize(self) -> int:
        """The most connections there may be."""

    @property
    def slots(self) -> Sized:
        """Connections that are open."""

    @property
    def lent(self) -> int:
        """Connections on lease."""

    @property
    def checking(self) -> int:
        """Connections that are pinged for a waiter."""

    @property
    def waiting(self) -> int:
        """Places in the queue."""

    @property
    def not_begun(self) -> int:
        """Places in the queue of work that has not begun."""

    @property
    def crowded(self) -> bool:
        """Whether somebody was shed, and no connection has been idle since."""

    @property
    def up_since(self) -> float:
        """When the first connection came after there had been none."""

    def leases(self, now: float) -> list[float]:
        """Seconds of the recent leases and of those that still run."""


class Overload:
    """The policy of one gate: when the queue *stands*, who is shed then, and how many may wait in a crowd.

    ``queue_target`` is the wait in seconds that is normal. Once the oldest waiter has been above it for as
    long again, the queue *stands*: what is in it can no longer be served in time. Then the newest is served first
    and a waiter that has waited longer than the target is shed, until the queue is empty. None: plain FIFO for ever.

    Once it has shed, the gate is *crowded* until a connection is idle again: few may wait whose work has not begun.
    """

    def __init__(
        self,
        queue_target: float | None = 0.1,
        *,
        normal_wait_in_leases: float = NORMAL_WAIT_IN_LEASES,
        stands_after: float = STANDS_AFTER,
        crowd_in_leases: float = CROWD_IN_LEASES,
        given_up: float = GIVEN_UP,
        target_cached: float = TARGET_CACHED,
    ) -> None:
        self.queue_target = queue_target
        self.standing = False
        self._normal_wait_in_leases = normal_wait_in_leases
        self._stands_after = stands_after
        self._crowd_in_leases = crowd_in_leases
        self._enough = given_up
        self._target_cached = target_cached
        self._late_since: float | None = None
        self._given_up = 0
        self._gave_up_at = float("-inf")
        self._target = queue_target or 0.0
        self._target_until = float("-inf")

    def judge(self, oldest: Waiter[Any], load: Load, now: float) -> Outcome | None:
        """How the oldest waiter's borrow ends now, CLIENT_GONE or SHED; None: it keeps its place."""
        floor = self.queue_target
        if floor is None or now - oldest.since <= floor:
            self._late_since = None
            return None
        # Without a connection that is known to live this is an outage, not an overload: it is waited out.
        since = max(oldest.since, load.up_since)
        waited = now - since
        if waited > floor and oldest.client_gone():
            self.gave_up(now)
            return Outcome.CLIENT_GONE
        if (
            waited <= floor
            or not load.slots
            or (load.checking and not load.lent)
            # For each of them there is a connection that nobody has: slow to open or to check, but no overload.
            or load.waiting + load.lent <= load.maxsize
            or waited <= (target := self._late_after(load, now, floor))
        ):
            self._late_since = None
            return None
        if not (self.standing or self._late_again(since, target, now)):
            return None
        self.standing = True
        # Where it stands because clients gave up, that changes the order: nobody is shed sooner for it.
        if waited <= self.normal_wait(load, now):
            self._late_since = None
            return None
        return Outcome.SHED

    def has_no_room(self, load: Load) -> bool:
        """Whether the oldest of those whose work has not begun must go before another one may come.

        An overload is survived by refusing soon: a waiter keeps a socket, so that others come by new ones, and a new
        one costs the process more than a request.
        """
        return load.crowded and load.not_begun >= self._crowd_in_leases * load.maxsize

    def gave_up(self, now: float) -> None:
        """A waiter has left from the head of the queue, unserved: that may be because it is too slow."""
        if now - self._gave_up_at > self._target:
            self._given_up = 0
        self._given_up += 1
        self._gave_up_at = now

    def calm(self) -> None:
        """The queue is empty: it is in order again."""
        self.standing = False
        self._late_since = None
        self._given_up = 0

    def normal_wait(self, load: Load, now: float) -> float:
        """Seconds that a wait may last: the target, or some median leases if that is more."""
        if now >= self._target_until:
            floor, leases = self.queue_target or 0.0, sorted(load.leases(now))
            median = leases[len(leases) // 2] if leases else 0.0
            self._target = max(floor, self._normal_wait_in_leases * median)
            self._target_until = now + self._target_cached
        return self._target

    def _late_again(self, since: float, target: float, now: float) -> bool:
        # A stall ages everyone at once: only a queue whose oldest is seen late, and again a target later, stands.
        if self._late_since is None or self._late_since - since <= target:
            self._late_since = now
            return False
        return now - self._late_since >= self._stands_after * target

    def _late_after(self, load: Load, now: float, floor: float) -> float:
        # Served in order, a queue of clients that give up serves each just before it does: too late for the answer.
        normal = self.normal_wait(load, now)
        heeded = self._given_up >= self._enough and now - self._gave_up_at <= normal and not self.standing
        return floor if heeded else normal
