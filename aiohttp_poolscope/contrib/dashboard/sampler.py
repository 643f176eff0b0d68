"""Sampler: one look a second at each pool, and the last fifteen minutes of these."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from aiohttp_poolscope import HistogramSnapshot
from aiohttp_poolscope.events import BreakerClosed, BreakerOpened, DrainFinished, DrainStarted

from .journal import HEARD, Journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp import web

    from aiohttp_poolscope import PoolScope, PoolStats
    from aiohttp_poolscope.events import Event

__all__ = ("COLUMNS", "ERRORS", "INTERVAL", "KEPT", "RECENT", "Recorder", "Sampler")

logger = logging.getLogger("aiohttp_poolscope")

INTERVAL: Final = 1.0
"""Seconds between two samples."""

KEPT: Final = 900
"""Samples: fifteen minutes."""

RECENT: Final = 10
"""Samples over which rates and quantiles of the moment are taken: of one second alone they would jump."""

MINUTE: Final = 60

OUTCOMES: Final = ("timed_out", "refused", "shed", "failed", "client_gone", "cancelled")
FAULTS: Final = ("statement", "timeout", "connection")
ERRORS: Final = (*OUTCOMES, *FAULTS)
"""Borrows that were not served, by their outcome, and statements that raised, by what was wrong."""

COUNTED: Final = ("borrows", *OUTCOMES, "dead", "leaked", "connect_failed")
COLUMNS: Final = ("at", "in_use", "waiting", "wait_p50", "wait_p99", "lease_p50", "lease_p99", "borrows", *ERRORS)
"""What a sample is made of: Unix time; two counts; seconds, or None if nothing was borrowed; and events per second."""

Sample = tuple[float | None, ...]


class Recorder:
    """What is known of one scope beyond this moment."""

    def __init__(self, scope: PoolScope) -> None:
        self.scope = scope
        self.journal = Journal()
        self.samples: deque[Sample] = deque(maxlen=KEPT)
        self.away_since: float | None = None
        self.drained = False
        self._looks: deque[tuple[float, PoolStats]] = deque(maxlen=MINUTE + 1)
        # Samples lie on the line of the monotonic clock, so that none is before the last one when the clock is set.
        self._epoch = time.time() - time.monotonic()
        scope.on_event(self._note, BreakerOpened, BreakerClosed, DrainStarted, DrainFinished)
        scope.on_event(self.journal.write, *HEARD)

    def _note(self, event: Event) -> None:
        if isinstance(event, (BreakerOpened, BreakerClosed)):
            self.away_since = event.monotonic if isinstance(event, BreakerOpened) else None
        else:
            self.drained = isinstance(event, DrainFinished)

    def look(self, now: float) -> None:
        """Take a sample."""
        before, last = self._looks[-1] if self._looks else (now, self.scope.stats())
        stats = self.scope.stats()
        self._looks.append((now, stats))
        rates = _rates(_counted(stats, last), now - before)
        self.samples.append(
            (
                round(self._epoch + now, 2),
                stats.in_use,
                stats.waiting,
                *quantiles(since(stats.wait, last.wait)).values(),
                *quantiles(since(stats.lease, last.lease)).values(),
                rates["borrows"],
                *(rates[_column(name)] for name in ERRORS),
            )
        )

    def recent(self, stats: PoolStats) -> dict[str, int]:
        """What was added to the counters lately."""
        return _counted(stats, self._before(stats, RECENT)[1])

    def minute(self, stats: PoolStats) -> dict[str, int]:
        """The same, for the last minute."""
        return _counted(stats, self._before(stats, MINUTE)[1])

    def rates(self, stats: PoolStats, now: float) -> dict[str, Any]:
        """Events per second, lately."""
        begun, before = self._before(stats, RECENT)
        rates = _rates(_counted(stats, before), now - begun)
        return {"borrows": rates["borrows"], "errors": {name: rates[_column(name)] for name in ERRORS}}

    def durations(self, stats: PoolStats) -> dict[str, dict[str, float | None]]:
        """Quantiles of the waits and leases that ended lately."""
        before = self._before(stats, RECENT)[1]
        return {
            "wait": quantiles(since(stats.wait, before.wait)),
            "lease": quantiles(since(stats.lease, before.lease)),
        }

    def _before(self, stats: PoolStats, looks: int) -> tuple[float, PoolStats]:
        if not self._looks:
            return time.monotonic(), stats
        return self._looks[max(0, len(self._looks) - looks)]


class Sampler:
    """Looks at all recorders once a second, and then calls ``told`` (which must be quick)."""

    def __init__(self, recorders: tuple[Recorder, ...], told: Callable[[], None]) -> None:
        self.started = 0.0
        self._recorders = recorders
        self._told = told

    async def running(self, _app: web.Application) -> AsyncIterator[None]:
        """For ``app.cleanup_ctx``: the task ends with the application."""
        self.started = time.time()
        task = asyncio.get_running_loop().create_task(self._sample(), name="poolscope dashboard: sampler")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _sample(self) -> None:
        due = time.monotonic()
        while True:
            now = time.monotonic()
            try:
                for recorder in self._recorders:
                    recorder.look(now)
                self._told()
            except Exception:
                logger.exception("dashboard: a sample failed")
            due += INTERVAL
            if due <= now:  # after a stall of the event loop there is one late sample, not a row of them
                due = now + INTERVAL
            await asyncio.sleep(due - time.monotonic())


def since(new: HistogramSnapshot, old: HistogramSnapshot) -> HistogramSnapshot:
    """What was recorded between two snapshots; all of the newer one if that is another pool's, started again."""
    counts = tuple(a - b for a, b in zip(new.counts, old.counts, strict=True))
    if min(counts) < 0:
        return new
    return HistogramSnapshot(counts, new.sum - old.sum, new.bounds)


def quantiles(histogram: HistogramSnapshot) -> dict[str, float | None]:
    """The median and the 99th percentile in seconds; None if nothing was recorded."""
    if not histogram.count:
        return {"p50": None, "p99": None}
    return {f"p{round(q * 100)}": round(histogram.quantile(q), 6) for q in (0.5, 0.99)}


def _column(name: str) -> str:
    return f"error:{name}" if name in FAULTS else name


def _counted(new: PoolStats, old: PoolStats) -> dict[str, int]:
    if new.borrows < old.borrows:  # another pool's: the application was started again
        old = type(old)()
    counts = {name: max(0, getattr(new, name) - getattr(old, name)) for name in COUNTED}
    return counts | {f"error:{it}": max(0, new.errors.get(it, 0) - old.errors.get(it, 0)) for it in FAULTS}


def _rates(counts: dict[str, int], over: float) -> dict[str, float]:
    return {name: round(count / over, 2) if over > 0 else 0.0 for name, count in counts.items()}
