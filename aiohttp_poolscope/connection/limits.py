"""Limits: the time that a statement may take, as an argument."""

from __future__ import annotations

import math

__all__ = ("check_timeout",)


def check_timeout(timeout: float) -> None:
    """Raise TypeError or ValueError for what is no number of seconds, before anything is sent."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout={timeout!r}: must be a number of seconds, not {type(timeout).__name__}")
    if not 0 <= timeout < math.inf:
        raise ValueError(f"timeout={timeout!r}: must be a number of seconds, 0 or more")
