"""The families of metrics: a table of what each is called, what it means, and how it is read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from aiohttp_poolscope.contrib.extras import extra
from aiohttp_poolscope.events import Fault
from aiohttp_poolscope.gate import BreakerState, Outcome
from aiohttp_poolscope.web.outside import State

with extra("prometheus"):
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric as Family

    from aiohttp_poolscope import HistogramSnapshot

    from .workers import Reading

__all__ = ("METRICS", "OUTCOMES", "STATES", "families")

POOL: Final = "db_client_connection_pool_name"
"""OpenTelemetry's attribute db.client.connection.pool.name: the scope's key."""

STATE: Final = "db_client_connection_state"
"""OpenTelemetry's attribute db.client.connection.state."""

Pairs = list[tuple[str, float]]

OUTCOMES: Final = tuple(outcome.value for outcome in Outcome)
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
STATES: Final[tuple[State, ...]] = get_args(State)


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: what it is called, what it means, and what it says of a reading.

    ``values`` gives a number; with a ``label``, a pair of the label's value and a number for each; for a histogram,
    its snapshot.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    values: Callable[[Reading], Any]
    label: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels, without that of the process."""
        return (POOL,) if self.label is None else (POOL, self.label)

    def family(self, readings: Iterable[Reading], *, several: bool) -> Family:
        """As prometheus_client wants it; with ``several`` processes, their ids are a label."""
        family = self._empty(["pid", *self.labels] if several else list(self.labels))
        for reading in readings:
            whose = [str(reading.pid), reading.pool] if several else [reading.pool]
            values = self.values(reading)
            if isinstance(family, HistogramMetricFamily):
                family.add_metric(whose, _buckets(values), values.sum)
            elif self.label is None:
                family.add_metric(whose, values)
            else:
                for value, number in values:
                    family.add_metric([*whose, value], number)
        return family

    def _empty(self, labels: list[str]) -> GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily:
        unit = "seconds" if self.name.endswith("_seconds") else ""
        match self.kind:
            case "gauge":
                return GaugeMetricFamily(self.name, self.meaning, labels=labels, unit=unit)
            case "counter":
                return CounterMetricFamily(self.name, self.meaning, labels=labels, unit=unit)
        return HistogramMetricFamily(self.name, self.meaning, labels=labels, unit=unit)


def _buckets(snapshot: HistogramSnapshot) -> Pairs:
    bounds = [*(repr(bound) for bound in snapshot.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(snapshot.counts), strict=True))


def _one_of(names: Iterable[str], name: str) -> Pairs:
    return [(each, float(each == name)) for each in names]


def _used(reading: Reading) -> Pairs:
    return [("idle", reading.stats.idle), ("used", reading.stats.in_use)]


def _outcomes(reading: Reading) -> Pairs:
    return [(outcome, getattr(reading.stats, outcome)) for outcome in OUTCOMES]


def _faults(reading: Reading) -> Pairs:
    return [(fault, reading.stats.errors.get(fault, 0)) for fault in FAULTS]


METRICS: Final = (
    Metric("db_client_connection_count", "gauge", "Connections, idle or lent.", _used, STATE),
    Metric("db_client_connection_max", "gauge", "Connections that may be open: maxsize.", lambda r: r.stats.maxsize),
    Metric("db_client_connection_idle_max", "gauge", "Connections that may be idle.", lambda r: r.stats.maxsize),
    Metric("db_client_connection_idle_min", "gauge", "Connections kept open: minsize.", lambda r: r.stats.minsize),
    Metric("db_client_connection_pending_requests", "gauge", "Borrows that wait now.", lambda r: r.stats.waiting),
    Metric("db_client_connection_timeouts_total", "counter", "Borrows that timed out.", lambda r: r.stats.timed_out),
    Metric(
        "db_client_connection_create_time_seconds", "histogram", "Time to open a connection.", lambda r: r.stats.connect
    ),
    Metric("db_client_connection_wait_time_seconds", "histogram", "Time until it was lent.", lambda r: r.stats.wait),
    Metric("db_client_connection_use_time_seconds", "histogram", "Time it was lent for.", lambda r: r.stats.lease),
    Metric("poolscope_state", "gauge", "1 for the state of the scope.", lambda r: _one_of(STATES, r.state), "state"),
    Metric(
        "poolscope_breaker",
        "gauge",
        "1 for the state of the breaker.",
        lambda r: _one_of(BreakerState, r.stats.breaker),
        "state",
    ),
    Metric("poolscope_borrows_total", "counter", "Borrows that have ended.", _outcomes, "outcome"),
    Metric("poolscope_opening", "gauge", "Connections that are being opened.", lambda r: r.stats.opening),
    Metric("poolscope_repairing", "gauge", "Connections being reset or pinged.", lambda r: r.stats.repairing),
    Metric("poolscope_opened_total", "counter", "Connections opened.", lambda r: r.stats.opened),
    Metric("poolscope_closed_total", "counter", "Connections closed.", lambda r: r.stats.closed),
    Metric("poolscope_connect_failures_total", "counter", "Connects that failed.", lambda r: r.stats.connect_failed),
    Metric("poolscope_dead_total", "counter", "Connections found dead.", lambda r: r.stats.dead),
    Metric("poolscope_repaired_total", "counter", "Connections reset after a return.", lambda r: r.stats.repaired),
    Metric("poolscope_abandoned_total", "counter", "Statements abandoned.", lambda r: r.stats.abandoned),
    Metric("poolscope_leaked_total", "counter", "Leases beyond leak_threshold.", lambda r: r.stats.leaked),
    Metric("poolscope_statement_errors_total", "counter", "Statements that raised.", _faults, "fault"),
    Metric("poolscope_oldest_wait_seconds", "gauge", "The longest wait now.", lambda r: r.stats.oldest_wait),
    Metric("poolscope_oldest_lease_seconds", "gauge", "The longest lease now.", lambda r: r.stats.oldest_lease),
    Metric("poolscope_ping_time_seconds", "histogram", "Time of a ping.", lambda r: r.stats.ping),
    Metric("poolscope_reset_time_seconds", "histogram", "Time of a reset.", lambda r: r.stats.reset),
    Metric("poolscope_reading_age_seconds", "gauge", "How old these numbers are.", lambda r: r.age),
)
"""Everything there is. The table of docs/prometheus.md is compared with it."""


def families(readings: list[Reading], *, several: bool) -> Iterator[Family]:
    """All families, with a sample for each reading."""
    return (metric.family(readings, several=several) for metric in METRICS)
