"""The families of metrics, the collector of a registry, and the route that serves both."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from aiohttp import hdrs, web

from aiohttp_poolscope import ConfigError, PoolScope, no_connection
from aiohttp_poolscope.contrib.extras import extra
from aiohttp_poolscope.events import Fault
from aiohttp_poolscope.gate import BreakerState, Outcome
from aiohttp_poolscope.web.outside import State

from .workers import Reading, Workers, read

with extra("prometheus"):
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric as Family

    from aiohttp_poolscope import HistogramSnapshot

__all__ = ("PoolScopeCollector", "setup_metrics")

POOL: Final = "db_client_connection_pool_name"
"""OpenTelemetry's attribute db.client.connection.pool.name: the scope's key."""

STATE: Final = "db_client_connection_state"
"""OpenTelemetry's attribute db.client.connection.state."""

ENVIRONMENT: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable for services of several processes."""

TRIES: Final = 10
"""How often a registry is asked, with 10 ms between, before its error is the answer: see _Route._encoded."""

SHORTEST: Final = 0.1
"""Seconds between two writes that are worth the work."""

logger = logging.getLogger("aiohttp_poolscope")

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


def _families(readings: list[Reading], *, several: bool) -> Iterator[Family]:
    return (metric.family(readings, several=several) for metric in METRICS)


class PoolScopeCollector(Collector):
    """The pools of this process, for a registry of prometheus_client.

    ``registry.register(PoolScopeCollector(scope, reports))``. ``setup_metrics`` needs none of it; this is for those
    who have a route for their metrics. It works before a scope starts and after it has closed, and from any thread.
    One collector has all scopes: a second one in the same registry is refused there.

    Raises ConfigError when there is no scope, or two with one key: their series would be the same.
    """

    def __init__(self, *scopes: PoolScope) -> None:
        _must_differ("PoolScopeCollector(*scopes)", scopes)
        self._scopes = scopes

    def describe(self) -> Iterator[Family]:
        """The names alone: a registry asks for them to find what is there twice."""
        return _families([], several=False)

    def collect(self) -> Iterator[Family]:
        """What the pools say now."""
        return _families([read(scope) for scope in self._scopes], several=False)


def setup_metrics(
    app: web.Application,
    *scopes: PoolScope,
    path: str = "/metrics",
    registry: CollectorRegistry | None = None,
    directory: str | os.PathLike[str] | None = None,
    interval: float = 1.0,
) -> None:
    """Add a route to ``app`` that tells Prometheus the numbers of ``scopes``, and what else is in ``registry``.

    It takes no connection and is answered while a pool drains. Nothing is registered anywhere: ``registry`` is read
    beside the scopes. By default it is prometheus_client's own, with the metrics of the process, of Python and those
    that the application has made.

    ``directory`` is for services of several processes, gunicorn's workers say: each leaves its numbers there every
    ``interval`` seconds, and whichever is asked tells those of all, with their ``pid`` as a label. Default: the
    variable PROMETHEUS_MULTIPROC_DIR; then the default of ``registry`` is what prometheus_client has there. With a
    ``directory`` but without that variable only the scopes are told: other numbers would be those of one process.

    Raises ConfigError, at once, for what cannot be right; and at the start, if the directory cannot be written to.
    """
    _must_differ("setup_metrics(app, *scopes)", scopes)
    if path in {resource.canonical for resource in app.router.resources()}:
        raise ConfigError(f"setup_metrics(path={path!r}): this path is taken; give another")
    if not isinstance(interval, (int, float)) or not SHORTEST <= interval < math.inf:
        raise ConfigError(f"setup_metrics(interval={interval!r}): must be a number of seconds from {SHORTEST:g}")
    shared = directory or os.environ.get(ENVIRONMENT)
    if registry is None:
        registry = _usual(directory)
    _must_not_clash(registry, scopes)
    workers = None
    if shared:
        workers = Workers(Path(shared), interval, lambda pid: [read(scope, pid) for scope in scopes])
        # The first to start is the last to end: the others learn how the pools are drained.
        app.cleanup_ctx.insert(0, workers.running)
    elif os.environ.get("WEB_CONCURRENCY", "1") not in ("", "0", "1"):
        logger.warning(
            "%s: WEB_CONCURRENCY is %s, and each answer has one process alone; set %s to a directory",
            path,
            os.environ["WEB_CONCURRENCY"],
            ENVIRONMENT,
        )
    app.router.add_get(path, _Route(scopes, registry, workers).answer)


def _must_differ(call: str, scopes: tuple[PoolScope, ...]) -> None:
    if not scopes:
        raise ConfigError(f"{call}: give at least one scope")
    for scope in scopes:
        if not isinstance(scope, PoolScope):
            raise ConfigError(f"{call}: {scope!r} is no PoolScope")
    keys = [scope.config.key for scope in scopes]
    if len(set(keys)) < len(keys):
        names = ", ".join(map(repr, keys))
        raise ConfigError(f"{call}: each scope needs a key of its own, not {names}: it is the label of its series")


def _usual(directory: object) -> CollectorRegistry:
    if not directory and not os.environ.get(ENVIRONMENT):
        return REGISTRY
    registry = CollectorRegistry()
    if os.environ.get(ENVIRONMENT):
        try:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigError(f"setup_metrics: {ENVIRONMENT} is {os.environ[ENVIRONMENT]!r}: {error}") from error
    return registry


def _must_not_clash(registry: CollectorRegistry, scopes: tuple[PoolScope, ...]) -> None:
    """Ask the registry in the way it has: by an attempt to be in it."""
    if not isinstance(registry, CollectorRegistry):
        raise ConfigError(f"setup_metrics(registry={registry!r}): must be a CollectorRegistry of prometheus_client")
    collector = PoolScopeCollector(*scopes)
    try:
        registry.register(collector)
    except ValueError as error:
        raise ConfigError(
            "setup_metrics(registry=...): a PoolScopeCollector is in it already, and its series would be told twice; "
            "leave it out, or give another registry"
        ) from error
    registry.unregister(collector)


class _Together(Collector):
    """A registry, and what it does not know of."""

    def __init__(self, registry: CollectorRegistry, families: Iterable[Family]) -> None:
        self._registry = registry
        self._families = families

    def collect(self) -> Iterator[Family]:
        return itertools.chain(self._registry.collect(), self._families)


class _Route:
    """The handler, and what it tells."""

    def __init__(self, scopes: tuple[PoolScope, ...], registry: CollectorRegistry, workers: Workers | None) -> None:
        self._scopes = scopes
        self._registry = registry
        self._workers = workers

    @no_connection
    async def answer(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(",".join(request.headers.getall(hdrs.ACCEPT, ())))
        response = web.Response(
            body=await self._encoded(encode),
            headers={hdrs.CONTENT_TYPE: content_type, hdrs.VARY: hdrs.ACCEPT},
        )
        response.enable_compression()
        # The scope's middleware does so too, but it may not be in this application.
        if any(scope.state in ("draining", "closed") for scope in self._scopes):
            response.force_close()
        return response

    async def _encoded(self, encode: Callable[[Collector], bytes]) -> bytes:
        """All of it. For a moment the file of a process that has just begun is empty, and prometheus_client trips."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(struct.error):
                return await self._encoded_once(encode)
            await asyncio.sleep(0.01)
        return await self._encoded_once(encode)

    async def _encoded_once(self, encode: Callable[[Collector], bytes]) -> bytes:
        if self._workers is None:
            return encode(self._all([read(scope) for scope in self._scopes], several=False))
        readings = await self._workers.readings()
        return await self._workers.do(encode, self._all(readings, several=True))

    def _all(self, readings: list[Reading], *, several: bool) -> _Together:
        return _Together(self._registry, _families(readings, several=several))
