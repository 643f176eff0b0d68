"""OpenTelemetry: metrics as the conventions have them, and waits in the trace of their request."""

from __future__ import annotations

import asyncio
import gc
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from opentelemetry.metrics import MeterProvider as APIMeterProvider
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import NoOpTracerProvider

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import events
from aiohttp_poolscope.contrib import opentelemetry
from aiohttp_poolscope.contrib.opentelemetry import OUTCOMES, instrument
from tests.conftest import until
from tests.kit.documents import blocks, names, section, table
from tests.kit.following import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.conftest import Database, Serve

POOL, STATE = db_attributes.DB_CLIENT_CONNECTION_POOL_NAME, db_attributes.DB_CLIENT_CONNECTION_STATE
OWN = {
    "poolscope.borrows",
    "poolscope.connections.dead",
    "poolscope.leases.leaked",
    "poolscope.statements.abandoned",
    "poolscope.breaker.open",
}


class Telemetry:
    """An SDK with everything in memory."""

    def __init__(self, **tracing: Any) -> None:
        self.reader, self.exporter = InMemoryMetricReader(), InMemorySpanExporter()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracers = TracerProvider(shutdown_on_exit=False, **tracing)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def instrument(self, *scopes: poolscope.PoolScope, **options: Any) -> None:
        instrument(*scopes, **{"meter_provider": self.meters, "tracer_provider": self.tracers, **options})

    def collect(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        every = [] if data is None else [one for each in data.resource_metrics for one in each.scope_metrics]
        found = [metric for one in every for metric in one.metrics]
        assert len({metric.name for metric in found}) == len(found)  # nothing is there twice
        return {metric.name: metric for metric in found}

    def points(self, name: str, attribute: str | None = None, pool: str = "db") -> Any:
        """The point of a pool; of each value of an attribute, if one is named. None: there is none."""
        metric = self.collect().get(name)
        points = [] if metric is None else [each for each in metric.data.data_points if each.attributes[POOL] == pool]
        if attribute is not None:
            return {each.attributes[attribute]: each.value for each in points}
        assert len(points) <= 1
        return points[0] if points else None

    def value(self, name: str, pool: str = "db") -> Any:
        return self.points(name, pool=pool).value

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]

    def waits(self) -> list[ReadableSpan]:
        return self.spans("poolscope wait")


@pytest.fixture
def seen() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    yield telemetry
    telemetry.meters.shutdown()
    telemetry.tracers.shutdown()


def conventional() -> dict[str, Any]:
    """The nine instruments of the conventions, as their own package makes them."""
    meter = MeterProvider(shutdown_on_exit=False).get_meter("conventions")
    make = [value for name, value in vars(db_metrics).items() if name.startswith("create_db_client_connection_")]
    return {instrument.name: instrument for instrument in (each(meter) for each in make)}


async def use(scope: poolscope.PoolScope) -> None:
    """Of three borrows of one connection the second waits, and the third gives up."""
    first = await scope.acquire()
    second = asyncio.create_task(scope.fetchval("SELECT 1"))
    await until(lambda: scope.stats().waiting == 1, "the second borrow")
    with pytest.raises(poolscope.PoolExhausted):
        await scope.acquire(timeout=0.01)
    first.release()
    await second


async def test_the_nine_metrics_are_as_in_the_conventions(make_scope: Callable[..., Any], seen: Telemetry) -> None:
    """Names, units, descriptions and kinds are those of opentelemetry-semantic-conventions."""
    async with make_scope() as scope:
        seen.instrument(scope)
        scope.expire()
        await scope.fetchval("SELECT 1")
        found = seen.collect()
        wanted = conventional()
        assert len(wanted) == 9
        assert found.keys() == wanted.keys() | OWN
        for name, each in wanted.items():
            assert (found[name].unit, found[name].description) == (each.unit, each.description)
            kind = type(each).__name__.strip("_")
            assert isinstance(found[name].data, Histogram if kind == "Histogram" else Sum)
            if kind != "Histogram":
                assert found[name].data.is_monotonic == (kind == "Counter")
            attributes = {POOL, STATE} if name.endswith(".count") else {POOL}
            assert all(set(point.attributes) == attributes for point in found[name].data.data_points)
        assert opentelemetry.SCHEMA in {schema.value for schema in Schemas}
        used = {value.value for value in db_attributes.DbClientConnectionStateValues}
        assert seen.points("db.client.connection.count", STATE).keys() == used


async def test_values(make_scope: Callable[..., Any], seen: Telemetry) -> None:
    """What is exported is what happened; the histograms have the very buckets of scope.stats()."""
    async with make_scope(minsize=1, maxsize=1) as scope:
        seen.instrument(scope)
        held = await scope.acquire()
        waiting = asyncio.create_task(scope.fetchval("SELECT 1"))
        await until(lambda: scope.stats().waiting == 1, "the second borrow")
        assert seen.points("db.client.connection.count", STATE) == {"idle": 0, "used": 1}
        assert seen.value("db.client.connection.pending_requests") == 1
        with pytest.raises(poolscope.PoolExhausted):
            await scope.acquire(timeout=0.01)
        held.release()
        await waiting
        assert seen.points("db.client.connection.count", STATE) == {"idle": 1, "used": 0}
        single = {name: seen.value(f"db.client.connection.{name}") for name in ("max", "idle.max", "idle.min")}
        assert single == {"max": 1, "idle.max": 1, "idle.min": 1}
        assert seen.value("db.client.connection.pending_requests") == 0
        assert seen.value("db.client.connection.timeouts") == 1
        borrows = dict.fromkeys(OUTCOMES, 0) | {"lent": 2, "timed_out": 1}
        assert seen.points("poolscope.borrows", "poolscope.outcome") == borrows
        stats = scope.stats()
        assert sum(borrows.values()) == stats.borrows
        for name, snapshot in (("wait_time", stats.wait), ("use_time", stats.lease)):
            point = seen.points(f"db.client.connection.{name}")
            assert (point.count, point.explicit_bounds) == (2, snapshot.bounds)
            assert point.bucket_counts == snapshot.counts
            assert point.sum == pytest.approx(snapshot.sum)
        assert seen.points("db.client.connection.create_time") is None  # that one was before we looked
        scope.expire()
        await scope.fetchval("SELECT 1")
        assert seen.points("db.client.connection.create_time").sum == pytest.approx(
            scope.stats().connect.sum - stats.connect.sum
        )


async def test_a_connection_that_is_repaired_is_used(make_scope: Callable[..., Any], seen: Telemetry) -> None:
    """Nobody can be lent it, so that idle and used are always all that are open."""
    go = asyncio.Event()

    async def cleaning(_db: Any) -> None:
        await go.wait()

    async with make_scope(maxsize=1, on_release=cleaning) as scope:
        seen.instrument(scope)
        await scope.fetchval("SELECT 1")
        assert scope.stats().repairing == 1
        assert seen.points("db.client.connection.count", STATE) == {"idle": 0, "used": 1}
        go.set()
        await until(lambda: seen.points("db.client.connection.count", STATE) == {"idle": 1, "used": 0}, "its return")


async def test_counters_go_on_over_the_end(dsn: str, serve: Serve, seen: Telemetry) -> None:
    """Before the start there are limits and zeros; at no moment of the end, nor in a second run, does one go back."""
    scope = poolscope.PoolScope(dsn, maxsize=1)
    told: list[tuple[int, int]] = []

    def timeouts(_event: Any = None) -> tuple[int, int]:
        told.append(
            (seen.value("db.client.connection.timeouts"), seen.points("poolscope.borrows", "poolscope.outcome")["lent"])
        )
        return told[-1]

    scope.on_event(timeouts, events.DrainStarted, events.DrainFinished)
    seen.instrument(scope)
    scope.on_event(timeouts, events.DrainStarted, events.DrainFinished)
    assert (timeouts(), seen.value("db.client.connection.max")) == ((0, 0), 1)
    assert seen.points("db.client.connection.count", STATE) == {"idle": 0, "used": 0}
    for run in (1, 2):
        async with scope.running():
            assert timeouts() == (run - 1, 2 * run - 2)
            await use(scope)
            assert timeouts() == (run, 2 * run)
        assert scope.state == "closed"
        assert timeouts() == (run, 2 * run)
        assert seen.points("db.client.connection.count", STATE) == {"idle": 0, "used": 0}
    assert told == sorted(told)
    assert len(told) == 1 + 2 * (3 + 4)


async def test_two_scopes(dsn: str, seen: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """Each has points under its own name, whether they come in one call or in several; one that is gone has none."""
    names = ("one", "two", "three")
    one, two, three = [poolscope.PoolScope(dsn, key=key, maxsize=size) for size, key in enumerate(names, 1)]
    seen.instrument(one, two)
    seen.instrument(three)
    assert [seen.value("db.client.connection.max", pool=name) for name in names] == [1, 2, 3]
    del two
    gc.collect()
    four = poolscope.PoolScope(dsn, key="two", maxsize=4)  # its name is free again
    assert seen.points("db.client.connection.max", pool="two") is None
    seen.instrument(four)
    assert [seen.value("db.client.connection.max", pool=name) for name in names] == [1, 4, 3]
    assert caplog.messages == []


async def test_read_in_another_thread(
    make_scope: Callable[..., Any], seen: Telemetry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exporter's thread that meets a change in the middle of its reading reads again."""
    async with make_scope() as scope:
        seen.instrument(scope)
        real, failures = scope.stats, [RuntimeError("Set changed size during iteration")] * 50

        def stats() -> Any:
            if failures:
                raise failures.pop()
            return real()

        monkeypatch.setattr(scope, "stats", stats)
        found = await asyncio.to_thread(seen.collect)
        assert failures == []
        assert found.keys() >= {each.name for each in opentelemetry.OBSERVED}
        assert caplog.messages == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda scope: instrument(), "at least one scope"),
        (lambda scope: instrument(scope.config), "must be a PoolScope"),
        (lambda scope: instrument(scope, scope), "a key of its own, not 'db', 'db'"),
        (lambda scope: (instrument(scope), instrument(scope)), "instrumented already"),
        (lambda scope: instrument(scope, meter_provider=TracerProvider(shutdown_on_exit=False)), "meter_provider="),
        (lambda scope: instrument(scope, tracer_provider="otlp"), "tracer_provider='otlp'"),
        (lambda scope: instrument(scope, wait_threshold=-1), "wait_threshold=-1"),
        (lambda scope: instrument(scope, wait_threshold=float("nan")), "wait_threshold=nan"),
        (lambda scope: instrument(scope, wait_threshold="1 ms"), "wait_threshold='1 ms'"),
    ],
)
def test_what_cannot_be_right_is_refused(call: Callable[[Any], None], words: str) -> None:
    """At once, with the name of what is wrong."""
    with pytest.raises(poolscope.ConfigError, match=words):
        call(poolscope.PoolScope("postgresql://localhost/app"))


def test_what_is_left_out_costs_nothing(seen: Telemetry) -> None:
    """For metrics no event of a request is made at all, and a duration that is left out is told to nobody."""
    neither, spans, read, every = [poolscope.PoolScope("postgresql://localhost/app", key=key) for key in "abcd"]
    instrument(neither, meter_provider=NoOpMeterProvider(), tracer_provider=NoOpTracerProvider())
    instrument(spans, meter_provider=NoOpMeterProvider(), tracer_provider=seen.tracers)
    seen.instrument(read, durations=False)
    seen.instrument(every)
    wanted = {events.Acquired, events.Released, events.Waited}
    scopes = (neither, spans, read, every)
    assert [wanted & scope._events.subscribed.keys() for scope in scopes] == [set(), *[{events.Waited}] * 3]
    told = [{of for of, listeners in scope._events.durations.items() if listeners} for scope in scopes]
    assert told == [set(), set(), {"connect"}, {"connect", "wait", "lease"}]


class OldMeter(NoOpMeter):
    """As in opentelemetry-api 1.27."""

    def create_histogram(self, name: str, unit: str = "", description: str = "") -> Any:  # type: ignore[override]
        return super().create_histogram(name, unit, description)


class OldMeters(APIMeterProvider):
    def get_meter(self, name: str, *args: Any) -> OldMeter:
        return OldMeter(name)


async def test_an_api_without_advice_for_buckets(make_scope: Callable[..., Any]) -> None:
    """Histograms are made without it, and the pool works."""
    async with make_scope() as scope:
        instrument(scope, meter_provider=OldMeters())
        assert all(scope._events.durations[of] for of in ("connect", "wait", "lease"))
        assert await scope.fetchval("SELECT 1") == 1


DOCUMENT = (Path(__file__).parents[2] / "docs" / "opentelemetry.md").read_text()


async def test_the_code_in_the_document(dsn: str, serve: Serve, seen: Telemetry, database: Database) -> None:
    """It runs, and does what its comment says."""
    [block] = blocks(DOCUMENT, "python")
    code = block.body.replace("postgresql://localhost/app", dsn)
    code = code.replace("instrument(scope)", "instrument(scope, meter_provider=seen.meters)")
    app = web.Application()
    context: dict[str, Any] = {"__name__": "document", "app": app, "poolscope": poolscope, "seen": seen}
    exec(code, context)
    app.router.add_get("/one", one)
    async with serve(app) as served:
        for step in (block.how or "").split("; "):
            await follow(step, served, context, database)


async def one(request: web.Request) -> web.Response:
    return web.Response(text=str(await request["db"].fetchval("SELECT 1")))


async def test_the_table_in_the_document(make_scope: Callable[..., Any], seen: Telemetry) -> None:
    """It has what is exported: names, kinds, units, and the values of the attributes."""
    async with make_scope() as scope:
        seen.instrument(scope)
        scope.expire()
        await scope.fetchval("SELECT 1")
        found = seen.collect()
    rows = {names(row[0])[0]: row for row in table(section(DOCUMENT, "Metrics"))}
    kinds = {
        (Sum, True): "counter",
        (Sum, False): "up-down counter",
        (Gauge, None): "gauge",
        (Histogram, None): "histogram",
    }
    assert {name: (row[1], row[2].strip("`")) for name, row in rows.items()} == {
        name: (kinds[type(each.data), getattr(each.data, "is_monotonic", None)], each.unit)
        for name, each in found.items()
    }
    for name, attribute in (("poolscope.borrows", "poolscope.outcome"), ("db.client.connection.count", STATE)):
        values = {point.attributes[attribute] for point in found[name].data.data_points}
        assert values <= set(re.findall(r"`(\w+)`", rows[name][3]))
        assert f"`{attribute}`" in rows[name][3]
