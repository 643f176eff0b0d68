"""Shrink: the shortest plan that still fails."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .world import World

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ("shrunk",)

VARIES = re.compile(r"v?\d+(\.\d+)?|'[^']*'|\[.*?\]")
"""What differs between two findings of one kind: numbers, names, statements."""


def shrunk(plan: Plan, findings: list[str]) -> list[int]:
    """The numbers of the events that it takes for the first of ``findings`` to be found."""
    wanted = _kind(findings[0])
    count = len(plan.events) + len(plan.second)
    kept = list(range(count))
    size = max(1, count // 2)
    while True:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            if _fails(plan.without(set(range(count)) - set(fewer)), wanted):
                kept = fewer
            else:
                at += size
        if size == 1:
            return kept
        size = max(1, size // 2)


def _fails(plan: Plan, wanted: str) -> bool:
    return any(_kind(found) == wanted for found in World(plan).run().findings)


def _kind(finding: str) -> str:
    return VARIES.sub("", finding)
