"""What the host of a virtual machine leaves to it (Linux): nobody inside can run while it runs others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Host(NamedTuple):
    """Processor seconds of all processors since the start: those that somebody wanted, and those of them not had."""

    wanted: float
    stolen: float

    @classmethod
    def now(cls) -> Host:
        with Path("/proc/stat").open() as lines:
            user, nice, system, _idle, _io, irq, softirq, stolen = map(int, lines.readline().split()[1:9])
        ticks = os.sysconf("SC_CLK_TCK")
        return cls((user + nice + system + irq + softirq + stolen) / ticks, stolen / ticks)

    def share_since(self, before: Host) -> float:
        """The part of what was wanted meanwhile that was stolen."""
        return (self.stolen - before.stolen) / max(self.wanted - before.wanted, 1e-9)
