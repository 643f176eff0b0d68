"""A crowd: clients that come at random moments, whether or not those before them have been answered.

An open loop, in a process of its own. A client that has no answer after ``patience`` seconds resets its connection
and is gone. Times count from the moment at which a client was due, not from when it could be sent: a generator that
is late must not make the service look fast. What sends and reads is ``generator.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .host import Host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

STEP = 0.05
"""Seconds of a step of the time series."""

LATE = 0.05
"""Seconds: a crowd of which one in a hundred came later than this has measured itself."""


class CrowdLateError(RuntimeError):
    """The generator could not keep up: what it has measured is itself."""


class Phase(NamedTuple):
    """``rate`` clients per second ask for ``path``, for ``seconds``."""

    name: str
    path: str
    rate: float
    seconds: float


@dataclass
class PhaseResult:
    """What became of the clients that came in one phase. Seconds are 0 where there was none."""

    name: str
    rate: float
    seconds: float
    arrivals: int
    served: int
    refused: int
    failed: int
    gave_up: int
    dropped: int
    goodput: float
    """Answers in time, of 200, per second, while the phase lasted: whenever those had come who got them."""
    p50: float
    p99: float
    """Seconds until the answer, of those served."""
    refused_p50: float
    refused_p99: float
    late_p99: float
    """Seconds by which clients came later than they were due."""
    cpu: float = 0.0
    cpu_waited: float = 0.0
    """Processor seconds that the service had during the phase, and waited for, if the crowd knows its process."""
    cpu_stolen: float = 0.0
    """Processor seconds that the machine could have run meanwhile, but its host ran others."""
    series_arrivals: list[int] = field(default_factory=list)
    series_served: list[int] = field(default_factory=list)
    series_answers: list[int] = field(default_factory=list)
    """Per STEP: how many came, how many of these were served, and how many answers of 200 were given meanwhile."""

    @property
    def answered(self) -> float:
        """The part of those who came that was told something, be it a refusal, before it gave up."""
        return (self.served + self.refused + self.failed) / max(1, self.arrivals)

    def recovered(self, after: float = 1.0) -> float:
        """The part of those who came ``after`` seconds into the phase, or later, that was served."""
        first = round(after / STEP)
        return sum(self.series_served[first:]) / max(1, sum(self.series_arrivals[first:]))

    def recovery_time(self, share: float = 0.99) -> float:
        """The first moment from which on ``share`` of those who came were served; the whole phase if there is none."""
        for step in range(len(self.series_arrivals)):
            if sum(self.series_served[step:]) >= share * max(1, sum(self.series_arrivals[step:])):
                return step * STEP
        return self.seconds


async def crowd(
    url: str,
    phases: Sequence[tuple[str, str, float, float]],
    *,
    patience: float,
    seed: int | str,
    pid: int | None = None,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
    may_be_late: bool = False,
) -> list[PhaseResult]:
    """Send ``phases``, without a pause between them, from another process; the result of each.

    ``pid``: the process whose processor time is read. ``meanwhile`` is awaited from the moment of the first phase on.
    Raises CrowdLateError if the crowd could not keep up, unless it ``may_be_late``.
    """
    order = {"url": url, "phases": phases, "patience": patience, "seed": seed, "pid": pid}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.load.generator"),
        stdin=pipe,
        stdout=pipe,
        cwd=Path(__file__).parents[2],
        limit=2**24,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(order).encode())
        process.stdin.close()
        began = await process.stdout.readline()
        if meanwhile is not None and began:
            await meanwhile()
        said = await process.stdout.read()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    finally:
        await process.wait()
    if not said:
        raise RuntimeError("the crowd did not come: its process ended without a result")
    results = [PhaseResult(**each) for each in json.loads(said)]
    worst = max(result.late_p99 for result in results)
    if worst > LATE and not may_be_late:
        raise CrowdLateError(f"one in a hundred clients came more than {worst * 1000:.0f} ms late")
    return results


class Processor(NamedTuple):
    """Processor seconds so far (Linux): what a process has had, and could have run but had none; both know nothing of
    what a host takes from a virtual machine, which is ``stolen``, from all of its processors.
    """

    used: float
    waited: float
    stolen: float

    @classmethod
    def of(cls, pid: int) -> Processor:
        """``used`` is that of all threads, and of the kernel for them; ``waited`` of the first one: the event loop."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
        ticks = os.sysconf("SC_CLK_TCK")
        return cls((int(fields[11]) + int(fields[12])) / ticks, waited / 1e9, Host.now().stolen)

    def since(self, before: Processor) -> Processor:
        return Processor(self.used - before.used, self.waited - before.waited, self.stolen - before.stolen)
