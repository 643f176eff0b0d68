"""The plots of docs/overload.md, as SVG that is the same on every machine and at every run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from aiohttp_poolscope.gate import Overload

from .loads import AFTER, BEFORE, FIRST, overload
from .policies import play
from .tables import VARIANTS
from .world import Load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

BIN = 0.25
"""Seconds that one point of a curve over time stands for."""

COLOURS = {"the gate": "#2f6db5", "FIFO": "#c9772f", "by hand": "#8c8c8c", "newest first": "#5a9e6f"}

STYLE = {
    "svg.hashsalt": "aiohttp_poolscope",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def over_time(goodput: Axes, waits: Axes) -> None:
    """Three times the capacity for ten seconds: what is answered in time, and how late."""
    load = overload(3.0)
    end = BEFORE + 10.0
    for policy in ("the gate", "FIFO", "by hand"):
        run = play(policy, load)
        bins = [number * BIN for number in range(int(load.length / BIN))]
        middle = [begin + BIN / 2 - BEFORE for begin in bins]
        answered = [run.goodput(begin, begin + BIN) for begin in bins]
        half = [run.quantile(0.5, begin, begin + BIN) for begin in bins]
        # By hand and FIFO are the same until the overload is over: both must be seen.
        dashes = "--" if policy == "by hand" else "-"
        for axes, values in ((goodput, answered), (waits, half)):
            axes.plot(middle, values, dashes, color=COLOURS[policy], label=policy)
    for axes in (goodput, waits):
        axes.axvspan(0.0, end - BEFORE, color="#f3f3f3", zorder=0)
        axes.set_xlim(-BEFORE, load.length - BEFORE)
        axes.set_ylim(0.0)
        axes.set_xlabel("seconds (shaded: 3 times the capacity)")
    goodput.set_title("answered in time, of the capacity")
    waits.legend(loc="upper center")
    waits.set_title("median time to these answers, s")


def over_patience(axes: Axes, size: int = 10) -> None:
    """Impatient clients: goodput against their patience, counted in leases."""
    lease = 0.1
    patience = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0]
    lines: dict[str, tuple[str | Callable[[], Overload], str]] = {
        "newest first": ("newest first", "-"),
        "the gate": ("the gate", "-"),
        "the gate, unheeding": (VARIANTS["who gives up is not heeded"], "--"),
        "FIFO": ("FIFO", "-"),
    }
    for name, (policy, dashes) in lines.items():
        loads = [overload(3.0, seconds=FIRST, lease=lease, patience=each, maxsize=size) for each in patience]
        found = [goodput_of(policy, load) for load in loads]
        colour = COLOURS.get(name, COLOURS["the gate"])
        axes.plot([each / lease for each in patience], found, dashes, color=colour, label=name)
    axes.set_ylim(0.0)
    axes.set_xlabel("patience of the clients, in leases")
    axes.set_title("3 times the capacity: answered in time, of the capacity")
    axes.legend(loc="lower right")


def over_target(overloaded: Axes, spiky: Axes) -> None:
    """What ``queue_target`` decides between."""
    targets = [0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0]
    for patience, colour in ((0.5, "#9bbfe6"), (1.0, "#5f95d0"), (2.0, "#24548c")):
        load = overload(3.0, seconds=FIRST, patience=patience)
        found = [goodput_of(partial(Overload, target), load) for target in targets]
        overloaded.plot(targets, found, color=colour, label=f"patience {patience:g} s")
        spikes = Load("spikes", ((1.8, 0.4), (0.2, 5.0)) * 10, patience=patience)
        refused = [play(partial(Overload, target), spikes).in_time() for target in targets]
        spiky.plot(targets, refused, color=colour, label=f"patience {patience:g} s")
    for axes in (overloaded, spiky):
        axes.set_ylim(0.0, 1.05)
        axes.axvline(0.1, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlabel("queue_target, s (dotted: the default)")
    overloaded.set_title("3 times the capacity: answered in time, of the capacity")
    overloaded.legend(loc="lower left")
    spiky.set_title("spikes of 0.2 s in a load that fits: answered in time")


def goodput_of(policy: str | Callable[[], Overload], load: Load) -> float:
    """Of the first seconds of the overload."""
    shortened = replace(load, phases=load.phases[:2])  # what comes after the overload does not count
    return play(policy, shortened).goodput(BEFORE, load.length - AFTER)


def draw(folder: Path) -> None:
    """Write every plot into ``folder``."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, panels, fill in (
            ("overload-simulated", 2, over_time),
            ("overload-patience", 1, over_patience),
            ("overload-target", 2, over_target),
        ):
            figure, axes = plt.subplots(1, panels, figsize=(4.8 * panels + 0.4, 3.2), squeeze=False)
            fill(*axes[0])
            figure.tight_layout()
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
