"""Breaker: a database that cannot be reached is asked by one prober, not by every request. Pure."""

from __future__ import annotations

import enum

__all__ = ("Breaker", "BreakerState")

FIRST_PAUSE = 0.05
"""Seconds before the second connection attempt; every later pause doubles up to ``longest``."""

MOST_DOUBLINGS = 64
"""Without an end to the doubling, an outage of a thousand attempts (eight minutes) overflows the float."""


class BreakerState(enum.StrEnum):
    """CLOSED: requests may wait for a connection. OPEN: they are refused. HALF_OPEN: a probe is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts connection attempts that failed in a row, and says how long the opener pauses before another."""

    __slots__ = ("_limit", "_longest", "failures", "state")

    def __init__(self, failures: int, longest: float) -> None:
        self._limit = failures
        self._longest = longest
        self.failures = 0
        self.state = BreakerState.CLOSED

    @property
    def closed(self) -> bool:
        """Whether requests may wait. A probe that is under way does not let them."""
        return self.state is BreakerState.CLOSED

    def probe(self) -> None:
        """A connection attempt begins."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN

    def succeeded(self) -> bool:
        """The attempt succeeded. True if that closed the breaker."""
        self.failures = 0
        opened_before = self.state is not BreakerState.CLOSED
        self.state = BreakerState.CLOSED
        return opened_before

    def failed(self) -> bool:
        """The attempt failed. True if that opened the breaker (not when a probe failed again)."""
        self.failures += 1
        opens = self.state is BreakerState.CLOSED and self.failures >= self._limit
        if self.state is BreakerState.HALF_OPEN or opens:
            self.state = BreakerState.OPEN
        return opens

    def pause(self, jitter: float) -> float:
        """Seconds until the next attempt: 75 to 100 % of the full pause, as ``jitter`` in [0, 1) says."""
        doublings = min(max(0, self.failures - 1), MOST_DOUBLINGS)
        full = min(self._longest, FIRST_PAUSE * 2.0**doublings)
        return full * (0.75 + 0.25 * jitter)
