"""What a soak shows: a line now and then while it runs, and the table at its end."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Self

from .soak_watch import NAMES, Findings, Served, Tally, Watch, descriptors, rss

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = 5.0
"""Seconds between two lines where they stay; on a terminal one line is written again and again."""


class Display:
    """The line that tells how it goes: on a terminal with rich, if it is there, else as plain text."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._live: Any = None

    @property
    def every(self) -> float:
        """Seconds between two lines."""
        return 1.0 if self._terminal else EVERY

    def __enter__(self) -> Self:
        if self._terminal:
            try:
                from rich.live import Live
            except ImportError:
                return self
            self._live = Live(auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
        elif self._terminal:
            print()

    def show(self, tally: Tally, watch: Watch, served: Served, during: str) -> None:
        """One line; the times of reads are those since the last one."""
        reads, tally.reads = sorted(tally.reads), []
        stats, elapsed = watch.lifecycle.stats(), time.monotonic() - self._begun
        parts = (
            clock(elapsed),
            f"{served.ends.total():,} requests: {outcomes(tally)}",
            f"{during:22}",
            f"read p50 {quantile(reads, 0.5):.1f} p99 {quantile(reads, 0.99):.1f} ms",
            f"{stats.in_use}/{stats.idle}/{stats.waiting} used/idle/waiting",
            f"{rss() / 1024:.1f} MiB, {len(descriptors())} fds",
        )
        if self._live is not None:
            self._live.update(self._panel(elapsed, parts), refresh=True)
        elif self._terminal:
            print(f"\r\x1b[K{'  '.join(parts)}", end="", flush=True)
        else:
            print("  ".join(parts), flush=True)

    def _panel(self, elapsed: float, parts: tuple[str, ...]) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        bar = ProgressBar(total=self._seconds, completed=min(elapsed, self._seconds), width=60)
        return Group(bar, *(Text(part) for part in parts))


class Report:
    """The table: rows of a name, a value, and whether that is as it must be."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, bool | None]] = []
        self.recoveries: defaultdict[str, list[float]] = defaultdict(list)

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return all(ok is not False for _, _, ok in self.rows)

    def tell(self, name: str, value: object, *, ok: bool | None = None) -> None:
        """A row. ``ok``: None where there is nothing to judge."""
        self.rows.append((name, str(value), ok))

    def lines(self) -> Iterator[str]:
        """The table, and the faults below it."""
        width = max(len(name) for name, _, _ in self.rows)
        for name, value, ok in self.rows:
            yield f"  {name:{width}}  {'    ' if ok is None else 'ok  ' if ok else 'BAD '}{value}"
        yield ""
        yield f"  {'fault':24}{'times':>6}  {'worst recovery':>14}"
        for name, times in sorted(self.recoveries.items()):
            yield f"  {name:24}{len(times):>6}  {max(times):>12.3f} s"

    def data(self, findings: Findings) -> dict[str, Any]:
        """For programs."""
        return {
            "passed": self.passed,
            "rows": [{"name": name, "value": value, "ok": ok} for name, value, ok in self.rows],
            "recoveries": {name: [round(each, 4) for each in times] for name, times in self.recoveries.items()},
            "findings": [
                {"what": what, "times": times, "first": first, "detail": detail}
                for what, (times, first, detail) in findings.all.items()
            ],
        }


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def outcomes(tally: Tally) -> str:
    """How requests ended, the good ones first."""
    order = sorted(tally.statuses.items(), key=lambda each: (each[0] <= 0, abs(each[0])))
    return ", ".join(f"{NAMES.get(status, status)} {count:,}" for status, count in order) or "none yet"


def quantile(ordered: list[float], q: float) -> float:
    """In milliseconds."""
    return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
