"""Schedules of the shell: random ones, each grown from a seed, and aimed ones, step by step.

A seed is ``<seed>:<number>``, after a failure followed by the events that it takes: ``7:123@0,4,9``. An aimed one is
``<scenario>/<step>/<fault>`` or ``<scenario>/<step>/<fault>/<fault>``.
"""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import aimed
from .plan import draw
from .shrink import shrunk
from .world import Result, World

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .plan import Plan

__all__ = ("Tally", "aimed_many", "replay", "report", "run_many")


@dataclass
class Tally:
    """What was lived through, and what was found: seeds, each with what is wrong."""

    schedules: int = 0
    visits: int = 0
    steps: int = 0
    seconds: float = 0.0
    known: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)
    failures: list[tuple[str, list[str]]] = field(default_factory=list)

    def count(self, name: str, result: Result) -> None:
        """One more."""
        self.schedules += 1
        self.visits += result.visits
        self.steps += result.steps
        self.seconds += result.seconds
        self.known += result.known
        self.answers += result.answers
        self.digests.append(result.digest)
        if result.findings:
            self.failures.append((name, result.findings))

    def add(self, other: Tally) -> None:
        """Another one's numbers."""
        self.schedules += other.schedules
        self.visits += other.visits
        self.steps += other.steps
        self.seconds += other.seconds
        self.known += other.known
        self.answers += other.answers
        self.digests += other.digests
        self.failures += other.failures

    @property
    def digest(self) -> str:
        """Of all that happened, in all of them."""
        return hashlib.sha256(" ".join(self.digests).encode()).hexdigest()[:16]


def run_many(seed: int | str, numbers: range) -> Tally:
    """Random schedules, ``<seed>:<number>`` each."""
    gc.freeze()
    tally = Tally()
    for number in numbers:
        tally.count(f"{seed}:{number}", World(draw(f"{seed}:{number}")).run())
    return tally


def aimed_many(aims: Iterable[aimed.Aim]) -> Tally:
    """Aimed schedules."""
    gc.freeze()
    tally = Tally()
    for aim in aims:
        name, step, faults = aim
        tally.count("/".join([name, str(step), *faults]), aimed.live(aim))
    return tally


def replay(seed: str) -> str:
    """The trace of one schedule, what is wrong last."""
    trace: list[str] = []
    if "/" in seed:
        name, step, *faults = seed.split("/")
        findings = aimed.live((name, int(step), tuple(faults)), trace.append).findings
    else:
        plan = _named(seed)
        trace += [f"{name}={value!r}" for name, value in plan.settings.items()]
        trace += [repr(event) for event in (*plan.events, *plan.second)]
        findings = World(plan, trace=trace.append).run().findings
    return "\n".join([*trace, *(findings or ["nothing is wrong"])])


def _named(seed: str) -> Plan:
    grown, _, kept = seed.partition("@")
    plan = draw(grown)
    if not kept:
        return plan
    return plan.without(set(range(len(plan.events) + len(plan.second))) - {int(n) for n in kept.split(",")})


def report(seed: str, findings: list[str]) -> str:
    """What is wrong, and how to see it again, as short as it can be."""
    if "/" not in seed and "@" not in seed:
        plan = draw(seed)
        kept = shrunk(plan, findings)
        seed += "@" + ",".join(map(str, kept))
        findings = [*findings, f"it takes {len(kept)} of {len(plan.events) + len(plan.second)} events"]
    again = f"again, with a trace: python -m tests.simulation.shell --replay '{seed}'"
    return "\n  ".join([*findings, again])
