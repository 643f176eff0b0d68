"""The page that is read, docs/benchmarks.md: some ratios and two pictures, and the way to all figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .figures import HEAD, bound, joined, met
from .tables import number, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.study import Ratio

    from .results import Results

INTRODUCTION = """\
This package beside aiopg by hand, aiopg without a pool, asyncpg, psycopg 3, SQLAlchemy, and psycopg2 with nothing
around it: the same service with each, on 10 connections. PostgreSQL, the service and the load share
{machine}.
[How it is measured](figures/method.md) has the rest."""

RATE = "[requests per second](figures/throughput.md), 8 clients"
IN_TIME = "[answered in time](figures/overload.md), of the capacity, when"
LINES = {
    "throughput: SELECT 1, 8 clients, asyncio: rate of poolscope / by hand": f"{RATE}: times those of aiopg by hand",
    "throughput: SELECT 1, 8 clients, asyncio: rate of poolscope / asyncpg": f"{RATE}: times those of asyncpg's pool",
    "throughput: SELECT 1, 8 clients, asyncio: rate of poolscope / psycopg2 polling": (
        f"{RATE}: times those of psycopg2 with nothing around it"
    ),
    "contention: SELECT 1, 100 clients, asyncio: p99 of poolscope / by hand": (
        "[99th percentile](figures/contention.md), 100 clients: times that of aiopg by hand"
    ),
    "overload: 3 x, 100 ms: goodput of poolscope / capacity": f"{IN_TIME} 3 times that is asked: queries of 100 ms",
    "overload: 3 x, 10 ms: goodput of poolscope / capacity": f"{IN_TIME} 3 times that is asked: queries of 10 ms",
    "overload: 10 x, 10 ms: goodput of poolscope / capacity": f"{IN_TIME} 10 times that is asked: queries of 10 ms",
    "costs: borrow and return, 10 idle, asyncio: seconds of poolscope / aiopg.Pool": (
        "[borrow and return](figures/costs.md), 10 idle: times what `aiopg.Pool` takes"
    ),
    "growth: pool size: cpu of 200 connections / 10 connections": (
        "[processor time](figures/growth.md) of a request, 200 connections: times that with 10"
    ),
    "observed: SELECT 1, 8 clients, asyncio: cpu of Prometheus and page / poolscope": (
        "[processor time](figures/observed.md) of a request, with Prometheus and the page: times that without"
    ),
}
"""The goals that the page shows, by their names, and what it says of each."""

READING = """\
Each run counts with the median of its rounds. The table has the lowest and the highest run, and in how many runs the
goal was met; [what stands in the way](performance.md#what-stands-in-the-way) says why some are missed."""

PICTURES = {
    "throughput": ("", "requests per second of each library with 8 clients"),
    "standing": (
        "Three times more than can be served, 10 ms each, from clients that give up after a second:",
        "answered in time, second by second",
    ),
}
"""By the name of the file: what stands above it, and what it shows."""

AGAIN = """\
```sh
make bench         # all of it, about 20 minutes; ARGS="--only throughput --rounds 5" for a part
make bench-quick   # about 3 minutes; ends with what has got worse since the figures on record
```

It needs `wrk` (`apt-get install wrk`). Every single run is kept in `benchmarks/results/results.json`; from such files
`python -m benchmarks.report` makes this page, and `python -m benchmarks.report.compare` says what has got worse."""


def page(runs: Sequence[Results], pictures: Sequence[str] = ()) -> str:
    """The page."""
    shows = [each for name, (above, alt) in PICTURES.items() if name in pictures for each in (above, image(name, alt))]
    introduction = INTRODUCTION.format(machine=machine(runs))
    return joined(HEAD.format(title="Benchmarks"), introduction, summary(runs), READING, *shows, AGAIN)


def image(name: str, alt: str) -> str:
    return f"![{alt}](images/{name}.svg)"


def machine(runs: Sequence[Results]) -> str:
    """What the runs had in common, or each of what they had."""

    def of(found: Iterable[object]) -> str:
        return " and ".join(dict.fromkeys(map(str, found)))

    processors, model = (of(run.machine.get(name, "?") for run in runs) for name in ("processors", "model"))
    python, server = (of(run.versions.get(name, "?") for run in runs) for name in ("Python", "PostgreSQL"))
    return f"{processors} processors ({model}), with Python {python} and PostgreSQL {server}"


def summary(runs: Sequence[Results]) -> str:
    """The table: a row for each of LINES that has been measured."""
    measured = [{goal.name: (goal, ratio) for goal, ratio in run.ratios().items()} for run in runs]
    rows = []
    for name, words in LINES.items():
        found = [each[name] for each in measured if name in each]
        if found:
            goal, ratios = found[0][0], [ratio for _, ratio in found]
            rows.append((words, between(ratios), bound(goal), met(goal, ratios)))
    return table(("ratio", "measured", "goal", "met"), rows) if rows else ""


def between(ratios: Sequence[Ratio]) -> str:
    """The lowest and the highest run."""
    medians = [ratio.median for ratio in ratios]
    return " - ".join(dict.fromkeys((number(min(medians)), number(max(medians)))))
