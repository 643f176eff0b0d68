"""Figures as the page and its pictures show them: of all rounds together, in a unit that fits, in a table."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from benchmarks.study import Ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.study import Sample

SECONDS = {
    *("mean", "p50", "p99", "longest", "refused_p50", "refused_p99", "late_p99", "recovery_time", "away"),
    *("seconds", "block", "cpu", "each_second"),
}
"""Figures that are times; the others are shown as they are."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left and the others to the right."""
    rule = [" --- ", *[" ---: "] * (len(head) - 1)]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(ratio: Ratio, figure: str = "") -> str:
    """A median with its range; times in a unit that fits."""
    scale, unit = 1.0, ""
    if figure in SECONDS:
        scales = ((1.0, " s"), (1e3, " ms"), (1e6, " µs"))
        scale, unit = next((each for each in scales if ratio.median * each[0] >= 1), scales[-1 if ratio.median else 0])
    values = [number(value * scale) for value in (ratio.median, ratio.low, ratio.high)]
    return f"{values[0]}{unit}" if len(set(values)) == 1 else f"{values[0]}{unit} ({values[1]} - {values[2]})"


def cases(samples: Iterable[Sample], study: str) -> dict[str, dict[str, dict[str, Ratio]]]:
    """Of each case and candidate the figures over all rounds of all runs."""
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for sample in samples:
        if sample.study == study:
            for figure, value in sample.figures.items():
                found[sample.case][sample.candidate][figure].append(value)
    return {
        case: {name: {figure: Ratio.of(values) for figure, values in each.items()} for name, each in candidates.items()}
        for case, candidates in found.items()
    }
