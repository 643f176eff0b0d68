"""The benchmark: against a PostgreSQL of its own, with services and load in processes of their own.

    python -m benchmarks              all studies, about 20 minutes; a table of the goals, and a file with every sample
    python -m benchmarks --quick      fewer cases, shorter runs, about three minutes
    python -m benchmarks --only throughput,contention --rounds 5

The goals inform: the exit code is 0 when all could be measured, 2 when not. What was measured is kept either way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres, EmbeddedPostgresError
from benchmarks.load import wrk
from benchmarks.load.host import Host
from benchmarks.report import results
from benchmarks.report.compare import compare_with_recorded
from benchmarks.services.work import SCHEMA

from .study import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.report.results import Results

    from .study import Goal

STUDIES = {
    "throughput": (70, 330),
    "contention": (35, 220),
    "overload": (20, 235),
    "costs": (20, 75),
    "growth": (5, 140),
    "observed": (18, 85),
}
"""Seconds that each is expected to take, quick and in full, with three rounds: for the time left, and nothing else."""

ROUNDS = 3
MAX_CONNECTIONS = 400


def main() -> int:
    """Run what the arguments say; the exit code."""
    arguments = parse()
    try:
        found = run(arguments)
    except (RuntimeError, OSError, ImportError, EmbeddedPostgresError) as error:
        print(f"could not measure: {error}", file=sys.stderr)
        return 2
    path = arguments.out / "results.json"
    found.write(path)
    print_goals(found)
    print(f"\nEvery sample: {path}")
    if arguments.quick:
        print()
        compare_with_recorded(found)
    failed = found.notes.get("failed", {})
    for what, why in failed.items():
        print(f"could not measure {what}: {why}", file=sys.stderr)
    return 2 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases, shorter runs")
    parser.add_argument("--only", type=studies, default=list(STUDIES), help=f"some of {','.join(STUDIES)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    return parser.parse_args()


def studies(names: str) -> list[str]:
    wanted = names.split(",")
    if unknown := set(wanted) - set(STUDIES):
        raise argparse.ArgumentTypeError(f"no study {', '.join(sorted(unknown))}; there are {', '.join(STUDIES)}")
    return [name for name in STUDIES if name in wanted]


def run(arguments: argparse.Namespace) -> Results:
    """All studies, one after the other; one that fails stops no other."""
    machine, wrk_version, before = results.machine(), wrk.version(), Host.now()
    modules = {name: importlib.import_module(f"benchmarks.studies.{name}") for name in arguments.only}
    goals: list[Goal] = [goal for module in modules.values() for goal in module.GOALS]
    plan = {name: STUDIES[name][not arguments.quick] * arguments.rounds / ROUNDS for name in modules}
    with EmbeddedPostgres(settings={"max_connections": MAX_CONNECTIONS}) as server:
        server.sql(SCHEMA)
        bench = Bench(server.dsn, rounds=arguments.rounds, seed=arguments.seed, quick=arguments.quick)
        with progress(plan) as (begin, bench.tell):
            for name, module in modules.items():
                begin(name)
                try:
                    asyncio.run(module.measure(bench))
                except Exception as error:  # noqa: BLE001  whatever it is, the others are still worth their time
                    traceback.print_exc()
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                    bench.notes.setdefault("failed", {})[name] = why
        machine["processor time stolen"] = f"{Host.now().share_since(before):.1%}"
        return results.Results(
            bench.samples,
            goals,
            machine=machine,
            versions=results.versions(PostgreSQL=server.version, wrk=wrk_version),
            settings={"rounds": bench.rounds, "seed": bench.seed, "quick": bench.quick, "studies": list(modules)},
            notes=bench.notes,
        )


@contextlib.contextmanager
def progress(plan: dict[str, float]) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Show what runs, how far it is, and the time left: two functions, to call with a study and with what it does."""
    done, begun, running = 0.0, time.monotonic(), ""

    def begin(study: str) -> None:
        nonlocal done, begun, running
        done, begun, running = done + plan.get(running, 0.0), time.monotonic(), study

    def so_far() -> float:
        # A study that takes longer than expected stands still at its end.
        return done + min(time.monotonic() - begun, plan.get(running, 0.0))

    total = sum(plan.values())
    if not sys.stderr.isatty():
        yield begin, lambda text: print(f"{so_far() / total:4.0%}  {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    what = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    fixed = Column(min_width=10, no_wrap=True)
    columns = (
        TextColumn("{task.percentage:3.0f} %", table_column=Column(min_width=5, no_wrap=True)),
        BarColumn(12),
        TextColumn("{task.fields[left]}", table_column=fixed),
        TextColumn("{task.description}", table_column=what),
    )
    # Drawn when something begins, and not by a thread of its own: it would take time from what is measured.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True, expand=True) as bar:
        task = bar.add_task("starting", total=total, left="")

        def tell(text: str) -> None:
            left = max(total - so_far(), 0)
            bar.update(task, completed=so_far(), description=text, left=f"{left // 60:.0f}:{left % 60:02.0f} left")
            bar.refresh()

        yield begin, tell


def print_goals(found: Results) -> None:
    """The table of the goals: what was measured, and whether it is enough."""
    ratios = found.ratios()
    if not ratios:
        print("No goal has been measured.")
        return
    width = max(len(goal.name) for goal in ratios)
    print(f"{'goal':{width}}  {'median':>8}  {'low - high':>17}  {'bound':>14}")
    for goal, ratio in ratios.items():
        spread = f"{ratio.low:.3g} - {ratio.high:.3g}"
        said = "met" if goal.met(ratio) else "MISSED"
        print(f"{goal.name:{width}}  {ratio.median:8.3g}  {spread:>17}  {goal.kind} {goal.bound:<6g}  {said}")
    missed = sum(not goal.met(ratio) for goal, ratio in ratios.items())
    print(f"{len(ratios) - missed} met, {missed} missed, {len(found.goals) - len(ratios)} not measured")


if __name__ == "__main__":
    sys.exit(main())
