"""The guard: whether a run is worse than the one on record.

    python -m benchmarks.report.compare benchmarks/results/results.json      what has got worse, for information
    python -m benchmarks.report.compare --record first.json second.json      these are the record from now on

A ratio is worse when even its best round is worse than the worst round on record: the present range lies beyond the
recorded one, on the side that its goal does not want. Two ranges that overlap are the same as far as can be told. A run
of a single round has no range, and is more often called worse by chance.
The exit code is 0 in any case. Ratios of another machine or another Python may differ; then that is said first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.study import Goal, Ratio

from .results import Results

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORDED = Path(__file__).with_name("recorded.json")


def record(runs: Sequence[Results]) -> dict[str, Any]:
    """Of each goal the median of the medians, the lowest and the highest ratio of all runs."""
    found: dict[str, list[Ratio]] = defaultdict(list)
    for run in runs:
        for goal, ratio in run.ratios().items():
            found[goal.name].append(ratio)
    return {
        "where": where(runs[-1]),
        "date": runs[-1].date,
        "ratios": {name: asdict(together(ratios)) for name, ratios in found.items()},
    }


def together(ratios: Sequence[Ratio]) -> Ratio:
    """One for several runs."""
    middle = Ratio.of(ratio.median for ratio in ratios)
    return Ratio(middle.median, min(ratio.low for ratio in ratios), max(ratio.high for ratio in ratios))


def where(run: Results) -> dict[str, Any]:
    """What ratios depend on besides the package."""
    return {"model": run.machine.get("model"), "processors": run.machine.get("processors"), **run.versions}


def worse(goal: Goal, now: Ratio, recorded: Ratio) -> bool:
    """Whether the present range lies beyond the recorded one, on the wrong side."""
    return now.high < recorded.low if goal.kind == "at least" else now.low > recorded.high


def lines(run: Results, recorded: dict[str, Any]) -> list[str]:
    """The comparison, a line for each ratio that both have."""
    then, here = recorded["where"], where(run)
    differing = [f"{name} {then.get(name)}, now {here.get(name)}" for name in here if then.get(name) != here[name]]
    differing = [each for each in differing if not each.startswith("aiohttp-poolscope ")]
    said = [f"Recorded elsewhere: {'; '.join(differing)}"] if differing else []
    both = {goal: ratio for goal, ratio in run.ratios().items() if goal.name in recorded["ratios"]}
    if not both:
        return [*said, "Nothing that is on record has been measured."]
    width = max(len(goal.name) for goal in both)
    said.append(f"{'ratio':{width}}  {'now':>24}  {'recorded':>24}")
    count = 0
    for goal, now in both.items():
        before = Ratio(**recorded["ratios"][goal.name])
        is_worse = worse(goal, now, before)
        count += is_worse
        said.append(f"{goal.name:{width}}  {shown(now):>24}  {shown(before):>24}{'  worse' if is_worse else ''}")
    return [*said, f"{count} of {len(both)} are worse than on record"]


def shown(ratio: Ratio) -> str:
    """A ratio with its range."""
    return f"{ratio.median:.3g} ({ratio.low:.3g} - {ratio.high:.3g})"


def compare_with_recorded(run: Results, path: Path = RECORDED) -> None:
    """Print the comparison, if there is a record."""
    if not path.exists():
        print("There is no record to compare with: python -m benchmarks.report.compare --record RESULTS makes one.")
        return
    print("\n".join(lines(run, json.loads(path.read_text()))))


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.report.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--record", action="store_true", help="keep the ratios of these results as the record")
    parser.add_argument("--recorded", type=Path, default=RECORDED)
    arguments = parser.parse_args()
    runs = [Results.read(path) for path in arguments.results]
    if arguments.record:
        arguments.recorded.write_text(json.dumps(record(runs), indent=1) + "\n")
        return
    for run in runs:
        compare_with_recorded(run, arguments.recorded)


if __name__ == "__main__":
    sys.exit(main())
