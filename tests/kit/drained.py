"""The drain's log line."""

from __future__ import annotations

import re
from typing import NamedTuple

FORM = re.compile(r"drained in ([\d.]+) s, (\d+) served meanwhile, (\d+) cancelled, (\d+) forced(?:: (.*))?")


class Drained(NamedTuple):
    """What it says: for how long, and what became of how many."""

    duration: float
    served: int
    cancelled: int
    forced: int
    who: str


def drains(log: str) -> list[Drained]:
    """Those that a log tells of."""
    return [
        Drained(float(duration), int(served), int(cancelled), int(forced), who or "")
        for duration, served, cancelled, forced, who in FORM.findall(log)
    ]
