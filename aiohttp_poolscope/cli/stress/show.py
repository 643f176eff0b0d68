"""How `stress` shows its progress and its findings."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.capacity.sizing import seconds
from aiohttp_poolscope.cli.terminal import columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import Progress as Bars

    from .phases import Phase
    from .verdict import Seen, Verdict

__all__ = ("Progress", "as_dict", "as_lines")


class Progress:
    """What is going on: bars on a terminal, a line for each phase elsewhere, nothing where programs read."""

    def __init__(self, on: Console | None, *, quiet: bool) -> None:
        self._on = on
        self._quiet = quiet
        self._bars: Bars | None = None
        self._task: Any = None
        self._text = ""

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While it runs."""
        if self._quiet or self._on is None:
            yield
            return
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - an extra
        from rich.progress import Progress as Bars  # noqa: PLC0415

        pieces = (TextColumn("{task.description:<46}"), BarColumn(24), TimeElapsedColumn())
        with Bars(*pieces, TextColumn("{task.fields[said]}"), console=self._on) as self._bars:
            yield

    @contextlib.contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """A part of it, with what it is in words."""
        if self._bars is not None:
            self._task = self._bars.add_task(text, total=None, said="")
        elif not self._quiet:
            print(text, flush=True)
        yield
        if self._bars is not None:
            self._bars.update(self._task, total=1, completed=1)

    def tell(self, phase: Phase) -> None:
        """One more request has ended."""
        if self._bars is not None:
            said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(phase.outcomes.items()))
            self._bars.update(self._task, said=said)


def as_lines(seen: Seen, verdict: Verdict) -> Iterator[str]:
    """To be read: a table, and the verdict in words."""
    rows: list[tuple[str, ...]] = [
        ("", "sent", "answered", "left", "silent", "cut", "refused", "p50", "p99", "statuses")
    ]
    for phase in seen.phases:
        numbers = (f"{phase.outcomes[name]:,}" for name in ("answered", "left", "silent", "cut", "refused"))
        took = ["-" if (value := phase.quantile(q)) is None else seconds(value) for q in (0.5, 0.99)]
        statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(phase.statuses.items()))
        rows.append((phase.name, f"{phase.sent:,}", *numbers, *took, statuses))
    yield ""
    yield from columns(rows, "<>>>>>>>><")
    if seen.watch is not None:
        watch = seen.watch
        yield ""
        yield (
            f"  On the server: {watch.before} sessions before, {watch.most} at most, {watch.after} after; at most "
            f"{watch.most_active} active and {watch.most_idle_in_transaction} idle in transaction at once"
        )
        if watch.left is not None:
            yield (
                f"  Left when all had gone: {watch.left.active} active, "
                f"{watch.left.idle_in_transaction} idle in transaction"
            )
    yield ""
    for note in verdict.notes:
        yield f"Note: {note}."
    for reason in verdict.reasons:
        yield f"Sick: {reason}."
    if not verdict.sick:
        left = seen.leaving.outcomes["left"] + seen.slow.outcomes["left"]
        yield f"Healthy: {left:,} clients left, and it answers as before."


def as_dict(seen: Seen, verdict: Verdict, seed: int) -> dict[str, Any]:
    """For programs."""
    names = ("before", "leaving", "staying", "slow", "staying_beside_slow", "after")
    watch = seen.watch
    server = None if watch is None else {
        "before": watch.before, "most": watch.most, "after": watch.after, "hidden": watch.hidden,
        "most_active": watch.most_active, "most_idle_in_transaction": watch.most_idle_in_transaction,
        "left": None if watch.left is None else dataclasses.asdict(watch.left),
    }  # fmt: skip
    return {
        "verdict": "sick" if verdict.sick else "healthy",
        "reasons": verdict.reasons,
        "notes": verdict.notes,
        "seed": seed,
        "phases": {name: _phase(phase) for name, phase in zip(names, seen.phases, strict=True)},
        "server": server,
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "sent": phase.sent,
        "outcomes": dict(phase.outcomes),
        "statuses": {str(status): count for status, count in sorted(phase.statuses.items())},
        "p50": phase.quantile(0.5),
        "p99": phase.quantile(0.99),
    }
