"""Numbers: fixed-bucket histograms, and the frozen snapshots the package hands out. Pure.

Recording takes no lock and allocates nothing that outlives the call; all reading is done on copies.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ("Duration", "Histogram", "HistogramSnapshot", "Lease", "PoolStats")

Duration = Literal["wait", "lease", "connect", "ping", "reset"]
"""What is measured: the wait of a borrow that was served, a lease, a connect, a ping, a reset."""

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds: a local query takes about 0.1 ms, a lease beyond 30 s is a leak."""


class Histogram:
    """Durations in seconds, counted in fixed buckets.

    ``listeners`` are told each of them and must not raise. It is looked at each time, so it may grow later.
    """

    __slots__ = ("_counts", "_listeners", "sum")

    def __init__(self, listeners: Sequence[Callable[[float], None]] = ()) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._listeners = listeners
        self.sum = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds
        if self._listeners:
            self._tell(seconds)

    def record_zero(self) -> None:
        """Count a duration of nothing at all: a borrow that did not wait."""
        self._counts[0] += 1
        if self._listeners:
            self._tell(0.0)

    def _tell(self, seconds: float) -> None:
        for listener in self._listeners:
            listener(seconds)

    def snapshot(self) -> HistogramSnapshot:
        """A frozen copy."""
        return HistogramSnapshot(tuple(self._counts), self.sum)


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """A histogram at one moment. ``counts[i]`` is what fell at or below ``bounds[i]``; the last one is the rest."""

    counts: tuple[int, ...]
    sum: float
    bounds: tuple[float, ...] = BUCKETS

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """The duration in seconds below which the share ``q`` (0 to 1) lies, interpolated within its bucket.

        0.0 when nothing was recorded. Beyond the last bound the answer is that bound: it is a lower limit.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q must be between 0 and 1, not {q!r}")
        rank = q * self.count
        below = 0
        for i, (count, bound) in enumerate(zip(self.counts, self.bounds, strict=False)):
            if count and below + count >= rank:
                lower = self.bounds[i - 1] if i else 0.0
                return lower + (bound - lower) * (rank - below) / count
            below += count
        return self.bounds[-1] if below < self.count else 0.0


_NOTHING = HistogramSnapshot((0,) * (len(BUCKETS) + 1), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A pool at one moment.

    ``borrows`` counts the borrows that have ended: it is the sum of ``lent``, ``timed_out``, ``refused``, ``shed``,
    ``client_gone``, ``cancelled`` and ``failed``. ``dead`` are connections found broken, ``repaired`` those rolled
    back or reset after a return, ``abandoned`` statements whose task was cancelled, ``leaked`` leases held beyond
    ``leak_threshold``, ``connect_failed`` attempts to connect. ``errors`` counts statements that raised, by what was
    wrong: ``"statement"``, ``"timeout"`` or ``"connection"``.

    ``oldest_wait`` and ``oldest_lease`` are the seconds that the longest of those going on have lasted. Histograms are
    in seconds: ``wait`` for a connection, ``lease`` of one, ``connect``, ``ping`` of one that was idle, and ``reset``
    of one that came back dirty.
    """

    size: int = 0
    idle: int = 0
    in_use: int = 0
    opening: int = 0
    repairing: int = 0
    waiting: int = 0
    minsize: int = 0
    maxsize: int = 0
    borrows: int = 0
    lent: int = 0
    timed_out: int = 0
    refused: int = 0
    shed: int = 0
    client_gone: int = 0
    cancelled: int = 0
    failed: int = 0
    opened: int = 0
    closed: int = 0
    dead: int = 0
    repaired: int = 0
    abandoned: int = 0
    leaked: int = 0
    connect_failed: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    oldest_wait: float = 0.0
    oldest_lease: float = 0.0
    breaker: str = "closed"
    wait: HistogramSnapshot = field(default=_NOTHING)
    lease: HistogramSnapshot = field(default=_NOTHING)
    connect: HistogramSnapshot = field(default=_NOTHING)
    ping: HistogramSnapshot = field(default=_NOTHING)
    reset: HistogramSnapshot = field(default=_NOTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who holds a connection: since ``held`` seconds, borrowed at ``where`` (file, line and function).

    ``method``, ``path``, ``route`` and ``request_id`` are None when it was borrowed outside of any request. ``stack``,
    with ``stacks=True``: the lines that led to the borrow, outermost first; for a borrow by the middleware, where the
    handler stands now.
    """

    method: str | None
    path: str | None
    route: str | None
    request_id: str | None
    task: str | None
    held: float
    where: str | None
    stack: tuple[str, ...] | None = None
