"""The pages of docs/figures: how it is measured, and all figures of each study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.study import Ratio

from .tables import cases, shown, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.study import Goal, Sample

    from .results import Results

HEAD = """\
# {title}

<!-- Made by `python -m benchmarks.report`: what is changed here is lost with the next run. -->"""

METHOD = """\
Each question is a *study*, each load in it a *case*, each service that takes part a *candidate*. The goals are ratios:
all candidates of a case run in turns, in changing order, and only runs of the same round are compared, so that what
else the machine does hits all of them. The figures beside them are this machine's and no promise for another.

- PostgreSQL is real and the benchmark's own, reached over a Unix socket. Each service is a process of its own, and so
  is the load, over TCP; they share the processors.
- Each candidate is written as the documentation of its library does it
  ([candidates.py](../../benchmarks/services/candidates.py), [drivers.py](../../benchmarks/services/drivers.py)), with
  10 connections and autocommit. This package runs with all that is on by default, unless a case says otherwise.
- `rate`, `goodput` and the like are per second. Beside a median stand the lowest and the highest of the rounds.
- A run in which any request fails is no figure, and is listed at the end. In the study of overload, where requests are
  refused on purpose, they are counted."""

ABOUT = {
    "throughput": """\
Requests per second as `wrk` counts them, with keep-alive. "no pool" is aiopg with a connection for each client;
"psycopg2 polling" has that too, and nothing but a loop around psycopg2: the limit of what can be had with it. Both
have as many connections as clients, so they take part with 8 clients only. "asyncpg, no reset" leaves out what asyncpg
does to a session that comes back, and is for information.""",
    "contention": """\
Ten connections for 100 and 1000 clients that ask again as soon as they are answered. With 1000, each waits longer than
the default `queue_target`: by default most of them would be refused at once, so that the others need not wait. Here
`queue_target=None`, so that all are served.""",
    "overload": """\
Clients come whether others have been answered or not, and give up after a second. The capacity is measured first; the
load is a multiple of it. `busy` is the part of the time that the service's process had a processor, `starved` the part
that it waited for one, and `stolen` what the host of a virtual machine took from all of its processors, as a part of
one: while that lasts, connections are lent and nothing moves.""",
    "costs": "What the package itself takes, in one process, beside what aiopg takes for the same.",
    "growth": "The processor time of a request while something else grows.",
}

UNSAID = {"errors"}

MANY = 6
"""More figures than fit beside each other."""


def where(runs: Sequence[Results]) -> str:
    """Machine and versions: once where all runs agree."""
    columns = [{**run.machine, **run.versions, **settings(run)} for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = []
    for name in names:
        values = [str(column.get(name, "")) for column in columns]
        rows.append((name, *(values if len(set(values)) > 1 else [values[0], *[""] * (len(values) - 1)])))
    return table(("", *titles(runs)), rows)


def settings(run: Results) -> dict[str, Any]:
    studies = run.settings.get("studies", [])
    return {**run.settings, "studies": ", ".join(studies), "date": run.date}


def titles(runs: Sequence[Results]) -> list[str]:
    return [f"run {place}" for place in range(1, len(runs) + 1)] if len(runs) > 1 else ["measured"]


def goals(runs: Sequence[Results], study: str) -> str:
    """The table of a study's goals, or nothing."""
    measured = [run.ratios() for run in runs]
    wanted = dict.fromkeys(goal for each in measured for goal in each if goal.study == study)
    rows = []
    for goal in wanted:
        ratios = [each.get(goal) for each in measured]
        cells = [shown(ratio, unit_of(goal)) if ratio else "" for ratio in ratios]
        rows.append((goal.name.partition(": ")[2], bound(goal), *cells, met(goal, ratios)))
    return table(("goal", "bound", *titles(runs), "met"), rows) if rows else ""


def met(goal: Goal, ratios: Iterable[Ratio | None]) -> str:
    """In how many of the runs that measured it a goal was met."""
    found = [goal.met(ratio) for ratio in ratios if ratio is not None]
    return "yes" if all(found) else f"{sum(found)} of {len(found)}" if any(found) else "**no**"


def unit_of(goal: Goal) -> str:
    """The figure whose unit a goal has: none if it is a ratio."""
    return "" if goal.against or goal.by else goal.figure


def bound(goal: Goal) -> str:
    return f"{goal.kind} {shown(Ratio(goal.bound, goal.bound, goal.bound), unit_of(goal))}"


def figures(samples: Iterable[Sample], study: str) -> Iterator[str]:
    """A table for each case: a row for each candidate, or for each figure where these are many."""
    for case, candidates in cases(samples, study).items():
        names = list(dict.fromkeys(name for each in candidates.values() for name in each if name not in UNSAID))
        cells = {
            (candidate, name): shown(each[name], name) if name in each else ""
            for candidate, each in candidates.items()
            for name in names
        }
        if len(names) > MANY:
            rows = [(name, *(cells[candidate, name] for candidate in candidates)) for name in names]
            head = ("", *candidates)
        else:
            rows = [(candidate, *(cells[candidate, name] for name in names)) for candidate in candidates]
            head = ("", *names)
        yield f"**{case}**\n\n{table(head, rows)}"


def notes(runs: Sequence[Results]) -> Iterator[str]:
    """Who could not play and what was not measured, and why."""
    reasons = {
        what: why for run in runs for kind in ("left out", "failed") for what, why in run.notes.get(kind, {}).items()
    }
    if reasons:
        yield "## Not measured\n\n" + "\n".join(f"- {what}: {why}" for what, why in sorted(reasons.items()))


def pages(runs: Sequence[Results], pictures: Sequence[str] = ()) -> dict[str, str]:
    """The pages of docs/figures by their names: the method, and one for each study."""
    samples = [sample for run in runs for sample in run.samples]
    several = f"All rounds of {len(runs)} runs." if len(runs) > 1 else ""
    found = {"method": joined(HEAD.format(title="How it is measured"), METHOD, "## Where", where(runs), *notes(runs))}
    for study in dict.fromkeys(sample.study for sample in samples):
        title, picture = study.capitalize(), f"![{study}](../images/{study}.svg)" if study in pictures else ""
        parts = [HEAD.format(title=title), ABOUT.get(study, ""), goals(runs, study), picture]
        found[study] = joined(*parts, "## All figures", several, *figures(samples, study))
    return found


def joined(*parts: str) -> str:
    """The parts of a page, but for the empty ones."""
    return "\n\n".join(part for part in parts if part) + "\n"
