"""OpenTelemetry: a pool's metrics, and a span for each borrow that had to wait.

    scope = poolscope.setup(app, dsn)
    instrument(scope)

Metrics have the names of the semantic conventions for connection pools. What ``scope.stats()`` counts anyway is read
when an exporter collects it; only the durations of borrows and leases are recorded where they happen. Nothing of the
SDK is needed here. docs/opentelemetry.md has the list, and what it costs.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp_poolscope import ConfigError, PoolScope, __version__, events
from aiohttp_poolscope.gate import Outcome
from aiohttp_poolscope.stats import BUCKETS

from .extras import extra

with extra("opentelemetry"):
    from opentelemetry import metrics, trace
    from opentelemetry.trace import SpanKind, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from aiohttp_poolscope import PoolStats

__all__ = ("instrument",)

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions that the names are from."""

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
OUTCOME = "poolscope.outcome"

OUTCOMES = tuple(outcome.value for outcome in Outcome)
COUNTED = (*OUTCOMES, "dead", "leaked", "abandoned")
"""The numbers of PoolStats that only grow, as far as they are exported."""

TRIES = 100
"""How often the numbers are read again when the event loop's thread has changed them meanwhile."""

NANOSECONDS = 1_000_000_000


def instrument(
    *scopes: PoolScope,
    meter_provider: metrics.MeterProvider | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    wait_threshold: float = 0.001,
    durations: bool = True,
) -> None:
    """Report the pools of ``scopes`` to OpenTelemetry, from now on and for as long as the scopes live.

    Providers default to the global ones, which may be set later. One of the API's NoOp providers leaves metrics or
    spans out, and what they cost. ``durations=False`` leaves out wait_time and use_time: they alone are recorded for
    each request; all others are read when they are exported.

    A borrow that queued for ``wait_threshold`` seconds (0.001) or longer, or was not served, becomes a span within the
    current one, if that is recorded.

    A scope may be instrumented once, before it starts or after. Raises ConfigError for one that is already, and for
    whatever else cannot be right.
    """
    _check(scopes, meter_provider, tracer_provider, wait_threshold)
    _instrumented.update(scopes)
    if not isinstance(meter_provider, metrics.NoOpMeterProvider):
        instruments = _instruments(meter_provider)
        for scope in scopes:
            instruments.add(scope, durations=durations)
    if not isinstance(tracer_provider, trace.NoOpTracerProvider):
        spans = _Spans(trace.get_tracer(__name__, __version__, tracer_provider, SCHEMA), wait_threshold)
        for scope in scopes:
            scope.on_event(spans.waited, events.Waited, events.Unserved)
            scope.on_event(spans.statement, events.StatementEvent)


_instrumented: weakref.WeakSet[PoolScope] = weakref.WeakSet()


def _check(scopes: tuple[Any, ...], meter_provider: Any, tracer_provider: Any, wait_threshold: Any) -> None:
    if not scopes:
        raise ConfigError("instrument(*scopes): give at least one scope, as in instrument(scope)")
    for scope in scopes:
        if not isinstance(scope, PoolScope):
            raise ConfigError(f"instrument({scope!r}): must be a PoolScope, such as poolscope.setup(app, dsn) returns")
        if scope in _instrumented:
            raise ConfigError(f"instrument({scope!r}): is instrumented already; call it once for each scope")
    if len({scope.config.key for scope in scopes}) < len(scopes):
        keys = ", ".join(repr(scope.config.key) for scope in scopes)
        raise ConfigError(f"instrument(*scopes): each scope needs a key of its own, not {keys}")
    for name, given, kind in (
        ("meter_provider", meter_provider, metrics.MeterProvider),
        ("tracer_provider", tracer_provider, trace.TracerProvider),
    ):
        if given is not None and not isinstance(given, kind):
            raise ConfigError(f"instrument({name}={given!r}): must be a {kind.__name__}, or None for the global one")
    if isinstance(wait_threshold, bool) or not isinstance(wait_threshold, (int, float)) or not wait_threshold >= 0:
        raise ConfigError(f"instrument(wait_threshold={wait_threshold!r}): must be a number of seconds from 0")


class _Reading(NamedTuple):
    """A pool's numbers: of this moment, and the counters with those of former runs."""

    now: PoolStats
    total: Mapping[str, int]


class _Source:
    """One scope, read from whatever thread an exporter has.

    A pool's counters end with its application: at a last export they would be back at zero. These do not go back.
    """

    def __init__(self, scope: PoolScope) -> None:
        self._scope = weakref.ref(scope)
        self.attributes = {POOL_NAME: scope.config.key}
        # What former runs have counted, and whether the current one is among them. Replaced, never changed.
        self._past = (dict.fromkeys(COUNTED, 0), False)
        # A run has begun when it opens its first connection, and not later than with its drain.
        scope.on_event(self._turn, events.Opened, events.DrainStarted, events.DrainFinished)

    @property
    def gone(self) -> bool:
        """Whether the scope is no more."""
        return self._scope() is None

    def read(self) -> _Reading | None:
        """The numbers; None if the scope is no more."""
        scope = self._scope()
        if scope is None:
            return None
        for _ in range(TRIES):
            past = self._past
            try:
                stats = scope.stats()
            except RuntimeError:  # a set has changed its size while it was read
                continue
            if past is self._past:
                return _Reading(stats, self._total(stats, serving=scope.state == "serving"))
        return None

    def _total(self, stats: PoolStats, *, serving: bool) -> dict[str, int]:
        past, ended = self._past
        if ended and not serving:
            return past
        return {name: past[name] + getattr(stats, name) for name in COUNTED}

    def _turn(self, event: events.Event) -> None:
        scope = self._scope()
        if scope is not None:
            past, _ = self._past
            over = isinstance(event, events.DrainFinished)
            self._past = (self._total(scope.stats(), serving=True) if over else past, over)


class _Observed(NamedTuple):
    """An instrument that is read: its values, each with the attributes it has besides the pool's name."""

    kind: str
    name: str
    unit: str
    description: str
    values: Callable[[_Reading], tuple[tuple[int, Mapping[str, str]], ...]]


def _only(value: int) -> tuple[tuple[int, Mapping[str, str]], ...]:
    return ((value, {}),)


OBSERVED = (
    _Observed(
        "up_down_counter",
        "db.client.connection.count",
        "{connection}",
        "The number of connections that are currently in state described by the `state` attribute.",
        lambda pool: (
            (pool.now.idle, {STATE: "idle"}),
            (pool.now.in_use + pool.now.repairing, {STATE: "used"}),  # nobody can be lent one that is repaired
        ),
    ),
    _Observed(
        "up_down_counter",
        "db.client.connection.idle.max",
        "{connection}",
        "The maximum number of idle open connections allowed.",
        lambda pool: _only(pool.now.maxsize),
    ),
    _Observed(
        "up_down_counter",
        "db.client.connection.idle.min",
        "{connection}",
        "The minimum number of idle open connections allowed.",
        lambda pool: _only(pool.now.minsize),
    ),
    _Observed(
        "up_down_counter",
        "db.client.connection.max",
        "{connection}",
        "The maximum number of open connections allowed.",
        lambda pool: _only(pool.now.maxsize),
    ),
    _Observed(
        "up_down_counter",
        "db.client.connection.pending_requests",
        "{request}",
        "The number of current pending requests for an open connection.",
        lambda pool: _only(pool.now.waiting),
    ),
    _Observed(
        "counter",
        "db.client.connection.timeouts",
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        lambda pool: _only(pool.total["timed_out"]),
    ),
    _Observed(
        "counter",
        "poolscope.borrows",
        "{borrow}",
        "Borrows that have ended, by outcome: lent, or why there was no connection.",
        lambda pool: tuple((pool.total[outcome], {OUTCOME: outcome}) for outcome in OUTCOMES),
    ),
    _Observed(
        "counter",
        "poolscope.connections.dead",
        "{connection}",
        "Connections found broken.",
        lambda pool: _only(pool.total["dead"]),
    ),
    _Observed(
        "counter",
        "poolscope.leases.leaked",
        "{lease}",
        "Leases held for longer than leak_threshold.",
        lambda pool: _only(pool.total["leaked"]),
    ),
    _Observed(
        "counter",
        "poolscope.statements.abandoned",
        "{statement}",
        "Statements whose task was cancelled while they ran.",
        lambda pool: _only(pool.total["abandoned"]),
    ),
    _Observed(
        "gauge",
        "poolscope.breaker.open",
        "1",
        "1 while the database cannot be reached and requests are refused, else 0.",
        lambda pool: _only(int(pool.now.breaker != "closed")),
    ),
)


class _Instruments:
    """The instruments of one provider, which all its scopes share: an SDK ignores the callbacks of a second set."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._sources: tuple[_Source, ...] = ()
        for each in OBSERVED:
            create = getattr(meter, f"create_observable_{each.kind}")
            callback = partial(self._observe, each)
            create(each.name, callbacks=[callback], unit=each.unit, description=each.description)
        self._create_time = _histogram(meter, "create_time", "The time it took to create a new connection.")
        self._wait_time = _histogram(meter, "wait_time", "The time it took to obtain an open connection from the pool.")
        self._use_time = _histogram(
            meter, "use_time", "The time between borrowing a connection and returning it to the pool."
        )

    def add(self, scope: PoolScope, *, durations: bool) -> None:
        """Report this one, too."""
        source = _Source(scope)
        self._sources = (*(each for each in self._sources if not each.gone), source)
        scope.on_duration(partial(self._create_time.record, attributes=source.attributes), "connect")
        if durations:  # as little as there can be: these run for each request
            scope.on_duration(partial(self._wait_time.record, attributes=source.attributes), "wait")
            scope.on_duration(partial(self._use_time.record, attributes=source.attributes), "lease")

    def _observe(self, observed: _Observed, _options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        for source in self._sources:
            reading = source.read()
            if reading is not None:
                for value, attributes in observed.values(reading):
                    yield metrics.Observation(value, {**source.attributes, **attributes})


def _histogram(meter: metrics.Meter, of: str, description: str) -> metrics.Histogram:
    """A histogram of seconds. Without advice an SDK's buckets begin at 5: it would see nothing in them."""
    name = f"db.client.connection.{of}"
    try:
        return meter.create_histogram(
            name, unit="s", description=description, explicit_bucket_boundaries_advisory=BUCKETS
        )
    except TypeError:  # an API before there was advice: whoever wants other buckets than the SDK's needs a view
        return meter.create_histogram(name, unit="s", description=description)


_known: weakref.WeakKeyDictionary[metrics.MeterProvider, _Instruments] = weakref.WeakKeyDictionary()
_of_global: list[_Instruments] = []


def _instruments(given: metrics.MeterProvider | None) -> _Instruments:
    """The instruments of a provider. Those made for the global one pass on to whatever that becomes later."""
    current = metrics.get_meter_provider()
    provider = current if given is None else given
    found = _known.get(provider)
    if found is None and provider is current and _of_global:
        found = _of_global[0]
    if found is None:
        meter = metrics.get_meter(__name__, __version__, given, SCHEMA)
        found = _known[provider] = _Instruments(meter)
        if given is None:
            _of_global.append(found)
    return found


class _Spans:
    """What is worth seeing in the trace of a request."""

    def __init__(self, tracer: trace.Tracer, threshold: float) -> None:
        self._tracer = tracer
        self._threshold = threshold

    def waited(self, event: Any) -> None:
        """A span for a borrow that had to wait, or was not served. It is told in the task of its request."""
        served = isinstance(event, events.Waited)
        if (served and event.waited < self._threshold) or not trace.get_current_span().is_recording():
            return
        outcome = "lent" if served else event.kind
        attributes: dict[str, Any] = {POOL_NAME: event.pool, OUTCOME: outcome, "poolscope.waited": event.waited}
        if event.request_id is not None:
            attributes["poolscope.request_id"] = event.request_id
        if not served:
            attributes["error.type"] = outcome
        end = int(event.at * NANOSECONDS)
        begin = end - int(event.waited * NANOSECONDS)
        span = self._tracer.start_span(
            f"poolscope wait {event.pool}", kind=SpanKind.INTERNAL, attributes=attributes, start_time=begin
        )
        if not served:
            span.set_status(StatusCode.ERROR, event.cause)
        span.end(end)

    @staticmethod
    def statement(event: Any) -> None:
        """An event on the current span for a statement that failed or was slow. It has the text, and no value of it."""
        span = trace.get_current_span()
        if not span.is_recording():
            return
        attributes: dict[str, Any] = {
            POOL_NAME: event.pool,
            "db.query.text": event.statement,
            "poolscope.duration": event.duration,
        }
        if isinstance(event, events.StatementFailed):
            attributes |= {"poolscope.fault": event.fault, "error.type": event.cause}
            if event.sqlstate is not None:
                attributes["db.response.status_code"] = event.sqlstate
        name = "failed" if isinstance(event, events.StatementFailed) else "slow"
        span.add_event(f"poolscope.statement.{name}", attributes)
