"""The pictures of docs/benchmarks.md and docs/figures."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.studies.contention import CROWDS
from benchmarks.studies.throughput import FEW, LOOPS, ROUTES

from .tables import cases, number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.study import Ratio, Sample

    from .results import Results

COLOURS = {
    "poolscope": "#0072B2",
    "by hand": "#D55E00",
    "no pool": "#8C8C8C",
    "asyncpg": "#009E73",
    "asyncpg, no reset": "#8FD3BF",
    "psycopg_pool": "#CC79A7",
    "aiohttp-sqlalchemy": "#E69F00",
    "psycopg2 polling": "#56B4E9",
    "poolscope, fifo": "#6BAED6",
    "poolscope, no gate": "#9ECAE1",
}
"""Okabe and Ito's, which can be told apart with any kind of sight; a candidate has the same in every picture."""

GREY = "#444444"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "poolscope",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#BBBBBB",
    "axes.labelcolor": GREY,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.bottom": False,
    "ytick.left": False,
    "figure.facecolor": "white",  # also on a dark page
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
}


def draw(runs: Sequence[Results], folder: Path) -> list[str]:
    """Draw a picture of each study that has one and samples; their names."""
    import matplotlib as mpl

    mpl.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    samples = [sample for run in runs for sample in run.samples]
    drawn = []
    for name, (study, draw_it) in PICTURES.items():
        if not cases(samples, study):
            continue
        with mpl.rc_context(STYLE):
            figure = draw_it(samples, runs)
            if figure is None:
                continue
            # Without a date the same results give the same file.
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        drawn.append(name)
    return drawn


def bars(axes: Any, values: Mapping[str, Ratio], *, scale: float = 1.0, best: str = "") -> None:
    """A bar for each candidate, the first on top, with its median at its end and its range as a line."""
    names = list(values)
    for place, (name, ratio) in enumerate(values.items()):
        axes.barh(place, ratio.median * scale, color=COLOURS.get(name, GREY), height=0.72)
        axes.plot([ratio.low * scale, ratio.high * scale], [place, place], color=GREY, linewidth=1)
        label = number(ratio.median * scale)
        weight = "bold" if name == best else "normal"
        axes.annotate(
            label,
            (max(ratio.median, ratio.high) * scale, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            weight=weight,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, max(ratio.high for ratio in values.values()) * scale * 1.22)


def panels(rows: int, columns: int, title: str, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10 if columns > 2 else 8, height))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False)


def throughput(samples: Sequence[Sample], runs: Sequence[Results]) -> Any:
    """The rates with few clients: a panel for each route and loop."""
    found = cases(samples, "throughput")
    routes = [route for route in ROUTES if any(case.startswith(f"{route}, {FEW} ") for case in found)]
    title = f"Requests per second, {FEW} clients, 10 connections (more is better)"
    figure, axes = panels(len(LOOPS), len(routes), title, 5.6)
    for row, loop in enumerate(LOOPS):
        for column, route in enumerate(routes):
            place = axes[row][column]
            place.set_title(f"{route}, {loop}", loc="left")
            rates = figure_of(found.get(f"{route}, {FEW} clients, {loop}", {}), "rate")
            if rates:
                bars(place, dict(sorted(rates.items(), key=lambda each: -each[1].median)), best="poolscope")
    return figure


def contention(samples: Sequence[Sample], runs: Sequence[Results]) -> Any:
    """How long the slowest of a hundred wait."""
    found = cases(samples, "contention")
    crowds = [clients for clients in CROWDS if any(f" {clients} clients" in case for case in found)]
    loops = [loop for loop in LOOPS if any(case.endswith(loop) for case in found)]
    title = "99th percentile of the response time in ms, SELECT 1, 10 connections (less is better)"
    figure, axes = panels(len(crowds), len(loops), title, 1.4 + 1.1 * len(crowds))
    for row, clients in enumerate(crowds):
        for column, loop in enumerate(loops):
            place = axes[row][column]
            place.set_title(f"{clients} clients, {loop}", loc="left")
            times = figure_of(found.get(f"SELECT 1, {clients} clients, {loop}", {}), "p99")
            if times:
                bars(place, in_order(times), scale=1e3, best="poolscope")
    return figure


def overload(samples: Sequence[Sample], runs: Sequence[Results], *, first: bool = False) -> Any:
    """What is served in time of what is offered, second by second; ``first``: in the first case only."""
    series: dict[str, Any] = next((run.notes["overload series"] for run in runs if "overload series" in run.notes), {})
    names = [name for name, each in series.items() if len(each) > 1] or list(series)
    if not names:
        return None
    names = names[:1] if first else names
    found = cases(samples, "overload")
    title = "Requests per second, by the moment they came: offered, and answered in time"
    figure, axes = panels(len(names), 1, title, 0.6 + 2.1 * len(names))
    for place, name in zip(axes[:, 0], names, strict=True):
        place.set_title(name, loc="left")
        for candidate, each in in_order(series[name]).items():
            if not any(each["served"]):  # who only refuses has no line to show
                continue
            step = each["step"]
            moments = [index * step for index in range(len(each["served"]))]
            if candidate == "poolscope":
                offered = [count / step for count in each["arrivals"]]
                place.fill_between(moments, offered, color="#EEEEEE", step="post", label="offered")
            served = [count / step for count in each["served"]]
            place.plot(moments, served, color=COLOURS.get(candidate, GREY), label=candidate, linewidth=1.6)
        capacity = found.get(name, {}).get("poolscope", {}).get("capacity")
        if capacity is not None:
            place.axhline(capacity.median, color=GREY, linewidth=1, linestyle=":", label="capacity")
        place.set_ylim(0)
        place.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1, 0].set_xlabel("seconds")
    return figure


def figure_of(candidates: Mapping[str, Mapping[str, Ratio]], figure: str) -> dict[str, Ratio]:
    """One figure of all candidates that have it."""
    return {name: each[figure] for name, each in candidates.items() if figure in each}


def in_order(candidates: Mapping[str, Any]) -> dict[str, Any]:
    """Poolscope first, and the others as in the legend."""
    order = [*COLOURS]
    return dict(sorted(candidates.items(), key=lambda each: order.index(each[0]) if each[0] in order else len(order)))


PICTURES: dict[str, tuple[str, Callable[[Sequence[Sample], Sequence[Results]], Any]]] = {
    "throughput": ("throughput", throughput),
    "contention": ("contention", contention),
    "overload": ("overload", overload),
    "standing": ("overload", partial(overload, first=True)),
}
"""By the name of its file, the study that each is of. ``standing`` is for the page, and for the README."""
