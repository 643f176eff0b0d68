"""What a benchmark is made of: samples, taken in turns, and goals that are ratios of them.

A *study* asks one question (throughput, contention, overload, costs, growth). It has *cases* ("SELECT 1, 8 clients,
asyncio"), and in each case *candidates* that do the same work. All candidates of a case run once in every round, in
changing order, so that whatever else the machine does hits all of them; only ratios within a round are compared.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

Figures = dict[str, float]
"""What one run of one candidate gave, by name: ``rate`` (1/s), ``p99`` (s), ``goodput`` (1/s), ..."""


@dataclass(frozen=True)
class Sample:
    """One run of one candidate in one case."""

    study: str
    case: str
    candidate: str
    round: int
    figures: Figures


@dataclass(frozen=True)
class Ratio:
    """A median over the rounds, with the smallest and the largest: of a ratio, or of a figure by itself."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Ratio:
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1])


@dataclass(frozen=True)
class Goal:
    """``figure`` of ``of``, divided by that of ``against`` in the same round: at least, or at most, ``bound``.

    ``against`` is another candidate of the case, or ``("p99", "mean")``-like: another figure of the same candidate
    (then ``figure`` is divided by ``by``). Without either, the figure itself is compared.
    """

    study: str
    case: str
    of: str
    figure: str
    kind: Literal["at least", "at most"]
    bound: float
    against: str | None = None
    by: str | None = None

    @property
    def name(self) -> str:
        """What it compares; the key under which ratios are recorded."""
        beside = f" / {self.against}" if self.against else f" / {self.by}" if self.by else ""
        return f"{self.study}: {self.case}: {self.figure} of {self.of}{beside}"

    def ratio(self, samples: Sequence[Sample]) -> Ratio | None:
        """The ratio over all rounds that have both sides; None if there is no such round."""
        rounds: dict[int, dict[str, Figures]] = defaultdict(dict)
        for sample in samples:
            if (sample.study, sample.case) == (self.study, self.case):
                rounds[sample.round][sample.candidate] = sample.figures
        found = []
        for candidates in rounds.values():
            own = candidates.get(self.of, {})
            below = candidates.get(self.against, {}).get(self.figure) if self.against else own.get(self.by or "", 1.0)
            if self.figure in own and below:
                found.append(own[self.figure] / below)
        return Ratio.of(found) if found else None

    def met(self, ratio: Ratio) -> bool:
        """Whether the median is on the right side of the bound."""
        return ratio.median >= self.bound if self.kind == "at least" else ratio.median <= self.bound


@dataclass
class Bench:
    """One run of the benchmark: where to measure, how often, and what has been found so far."""

    dsn: str
    rounds: int = 3
    seed: int = 1
    quick: bool = False
    tell: Callable[[str], None] = lambda _: None
    samples: list[Sample] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    """What is no figure of a candidate (a profile, a reason why a candidate could not play), for the report."""

    def rng(self, *what: object) -> random.Random:
        """Random numbers for one run, the same for every candidate of a round."""
        return random.Random(" ".join(map(str, (self.seed, *what))))

    def in_turns(self, candidates: Sequence[str], number: int) -> list[str]:
        """The order of a round: each candidate is first, second, ... about equally often."""
        turn = number % len(candidates)
        order = [*candidates[turn:], *candidates[:turn]]
        return order[::-1] if number // len(candidates) % 2 else order

    def add(self, study: str, case: str, candidate: str, number: int, figures: Figures) -> None:
        """Keep what one run gave."""
        self.samples.append(Sample(study, case, candidate, number, figures))

    async def turns(
        self,
        study: str,
        case: str,
        candidates: Sequence[str],
        run: Callable[[str, random.Random], Awaitable[Figures]],
    ) -> None:
        """Run each candidate once in every round."""
        for number in range(self.rounds):
            for candidate in self.in_turns(candidates, number):
                self.tell(f"{study}: {case}: {candidate}, round {number + 1} of {self.rounds}")
                self.add(study, case, candidate, number, await run(candidate, self.rng(study, case, number)))
