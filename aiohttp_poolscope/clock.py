"""Clock: where the package reads the time. Whoever needs it is given it, so that a simulation can give another."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ("SYSTEM", "Clock")


class Clock(Protocol):
    """A source of time, in seconds. The timers of the event loop are not its business, and must agree with it."""

    def monotonic(self) -> float:
        """Time that never goes back, for durations and deadlines."""

    def time(self) -> float:
        """Unix time, for people."""


SYSTEM: Clock = time
"""The system's. Not the event loop's: uvloop rounds it to milliseconds."""
