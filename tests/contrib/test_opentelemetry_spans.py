"""OpenTelemetry: waits and statements in the trace of their request, beside the instrumentations of others."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.aiopg import AiopgInstrumentor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv.attributes import db_attributes, error_attributes
from opentelemetry.trace import SpanKind, StatusCode

import aiohttp_poolscope as poolscope
from tests.conftest import until
from tests.kit.documents import names, section, table

from .test_opentelemetry import DOCUMENT, POOL, Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

OUTCOME = "poolscope.outcome"
TEXT, CODE, TYPE = db_attributes.DB_QUERY_TEXT, db_attributes.DB_RESPONSE_STATUS_CODE, error_attributes.ERROR_TYPE
SECRET = "correct-horse"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Iterator[Telemetry]:
    """An SDK that each application made meanwhile reports its requests to."""
    telemetry = Telemetry(**getattr(request, "param", {}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Inheritance class _InstrumentedApplication")  # aiohttp's opinion
        AioHttpServerInstrumentor().instrument(tracer_provider=telemetry.tracers, meter_provider=telemetry.meters)
    yield telemetry
    AioHttpServerInstrumentor().uninstrument()
    telemetry.meters.shutdown()
    telemetry.tracers.shutdown()


class App:
    """A service in a trace, with one connection that /hold keeps until ``go``."""

    def __init__(self, dsn: str, seen: Telemetry, options: dict[str, Any] | None = None, **settings: Any) -> None:
        self.go = asyncio.Event()
        self.web = web.Application()
        self.scope = poolscope.setup(self.web, dsn, **{"maxsize": 1, "acquire": "eager", **settings})
        self.web.router.add_get("/hold", self.hold)
        self.web.router.add_get("/use", self.use)
        seen.instrument(self.scope, **(options or {}))

    async def hold(self, request: web.Request) -> web.Response:
        await self.go.wait()
        return web.Response()

    async def use(self, request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))

    async def one_waits(self, served: Any) -> int:
        """The status of a request that waits for another one for at least 5 ms."""
        held = asyncio.create_task(served.status("/hold"))
        await until(lambda: self.scope.stats().in_use == 1, "the first request")
        waiting = asyncio.create_task(served.status("/use"))
        await until(lambda: self.scope.stats().oldest_wait > 0.005 or waiting.done(), "a wait")
        self.go.set()
        assert await held == 200
        return await waiting


async def test_a_wait_is_a_span_of_its_request(dsn: str, serve: Serve, seen: Telemetry) -> None:
    """Its parent is the server's span, and it lies within that; who was served at once has none."""
    app = App(dsn, seen)
    async with serve(app.web) as served:
        assert await app.one_waits(served) == 200
        [wait] = seen.waits()
        [server] = [span for span in seen.spans("GET") if span.name.endswith("/use")]
        assert (wait.name, wait.kind) == ("poolscope wait db", SpanKind.INTERNAL)
        assert (wait.parent, server.kind) == (server.context, SpanKind.SERVER)
        assert wait.status.status_code is StatusCode.UNSET
        assert server.start_time <= wait.start_time < wait.end_time <= server.end_time
        waited = wait.attributes["poolscope.waited"]
        assert (wait.end_time - wait.start_time) / 1e9 == pytest.approx(waited, abs=1e-6)
        assert 0.005 <= waited <= app.scope.stats().wait.sum + 1e-6
        assert (wait.attributes[POOL], wait.attributes[OUTCOME]) == ("db", "lent")
        assert set(wait.attributes) == {POOL, OUTCOME, "poolscope.waited", "poolscope.request_id"}
        exemplars = seen.points("db.client.connection.wait_time").exemplars
        assert server.context.trace_id in {each.trace_id for each in exemplars}
        said = {names(row[0])[0] for row in table(section(DOCUMENT, "Spans"))}
        assert said == {*wait.attributes, TYPE}


async def test_a_short_wait_is_none(dsn: str, serve: Serve, seen: Telemetry) -> None:
    """Below wait_threshold there is no span."""
    app = App(dsn, seen, {"wait_threshold": 3600})
    async with serve(app.web) as served:
        assert await app.one_waits(served) == 200
        assert app.scope.stats().wait.sum > 0.005
        assert seen.waits() == []
        assert len(seen.spans("GET")) == 2


@pytest.mark.parametrize(
    ("outcome", "settings"), [("timed_out", {"acquire_timeout": 0.02}), ("refused", {"max_waiting": 0})]
)
async def test_who_is_not_served_has_one_with_an_error(
    dsn: str, serve: Serve, seen: Telemetry, outcome: str, settings: dict[str, Any]
) -> None:
    """However short the wait was, and it says what the answer's log line says."""
    app = App(dsn, seen, {"wait_threshold": 3600}, **settings)
    async with serve(app.web) as served:
        held = asyncio.create_task(served.status("/hold"))
        await until(lambda: app.scope.stats().in_use == 1, "the first request")
        async with served.client.get(served.url / "use", headers={"X-Request-ID": "r-1"}) as response:
            assert response.status == 503
        app.go.set()
        assert await held == 200
        [wait] = seen.waits()
        [server] = [span for span in seen.spans("GET") if span.attributes["http.status_code"] == 503]
        assert wait.parent == server.context
        assert wait.status.status_code is StatusCode.ERROR
        assert "1/1 in use" in str(wait.status.description)
        assert wait.attributes[OUTCOME] == wait.attributes[TYPE] == outcome
        assert wait.attributes["poolscope.request_id"] == "r-1"


@pytest.mark.parametrize("seen", [{"sampler": ALWAYS_OFF}], indirect=True)
async def test_a_request_that_is_not_recorded(dsn: str, serve: Serve, seen: Telemetry) -> None:
    """What the server's sampler has left out has no span of ours either, whatever our own provider does."""
    recording = Telemetry()
    app = App(dsn, recording, slow_threshold=0.0001)
    async with serve(app.web) as served:
        assert await app.one_waits(served) == 200
        assert app.scope.stats().wait.sum > 0.005
    assert seen.spans() == recording.spans() == []


async def test_a_wait_outside_of_any_trace(dsn: str, serve: Serve, seen: Telemetry) -> None:
    """It is no trace of its own."""
    app = App(dsn, seen)
    async with serve(app.web):
        held = await app.scope.acquire()
        waiting = asyncio.create_task(app.scope.fetchval("SELECT 1"))
        await until(lambda: app.scope.stats().oldest_wait > 0.005, "a wait")
        held.release()
        await waiting
    assert seen.spans() == []


async def test_statements_that_fail_or_are_slow(dsn: str, serve: Serve, seen: Telemetry) -> None:
    """They are events on the request's span, with their text and no value of it."""
    app = App(dsn, seen, slow_threshold=0.01)

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        await db.fetchval("SELECT 'fine'")
        await db.execute("SELECT pg_sleep(%s), 'confidential'", (0.02,))
        with pytest.raises(Exception, match="confidential"):
            await db.execute("SELECT 'confidential'::int")
        return web.Response()

    app.web.router.add_get("/statements", handler)
    async with serve(app.web) as served:
        assert await served.status("/statements") == 200
    [server] = seen.spans("GET")
    slow = next(event for event in server.events if event.attributes[TEXT] == "SELECT pg_sleep(%s), ?")
    failed = next(event for event in server.events if event.name == "poolscope.statement.failed")
    assert slow.name == "poolscope.statement.slow"
    assert slow.attributes["poolscope.duration"] >= 0.02
    assert failed.attributes[TEXT] == "SELECT ?::int"
    told = [failed.attributes[name] for name in (CODE, TYPE, "poolscope.fault", POOL)]
    assert told == ["22P02", "InvalidTextRepresentation", "statement", "db"]
    assert "confidential" not in server.to_json()


async def test_no_secret_is_told(serve: Serve, seen: Telemetry, unused_tcp_port: int) -> None:
    """The password is in no attribute, also when the database cannot be reached and everything says so."""
    dsn = f"postgresql://ada:{SECRET}@127.0.0.1:{unused_tcp_port}/app"
    app = App(dsn, seen, connect_at_start=False, breaker_failures=1)
    async with serve(app.web) as served:
        assert await served.status("/use") == 503
        assert seen.value("poolscope.breaker.open") == 1
        [wait] = seen.waits()
        assert (wait.attributes[OUTCOME], wait.status.status_code) == ("failed", StatusCode.ERROR)
        told = wait.to_json() + seen.reader.get_metrics_data().to_json()
    assert "cannot connect" in told
    assert SECRET not in told


@pytest.fixture
def instrumented_aiopg(seen: Telemetry) -> Iterator[None]:
    AiopgInstrumentor().instrument(tracer_provider=seen.tracers, meter_provider=seen.meters)
    yield
    AiopgInstrumentor().uninstrument()


@pytest.mark.usefixtures("instrumented_aiopg")
async def test_beside_the_instrumentation_of_aiopg(dsn: str, serve: Serve, seen: Telemetry) -> None:
    """Everything works on its proxies. It sees what runs through ``raw``, and no other statement."""
    app = App(dsn, seen)

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        async with db.transaction() as tx:
            await tx.execute("SELECT 1")
        async with db.cursor() as cursor:
            await cursor.execute("SELECT 2")
        with pytest.raises(poolscope.QueryTimeout):
            await db.execute("SELECT pg_sleep(60)", timeout=0.05)
        assert [row[0] async for row in db.stream("SELECT generate_series(1, 2500)")][-1] == 2500
        async with db.raw.cursor() as cursor:
            await cursor.execute("SELECT 3")
            assert await cursor.fetchall() == [(3,)]
        return web.Response()

    app.web.router.add_get("/statements", handler)
    async with serve(app.web) as served:
        assert await served.status("/statements") == 200
        app.scope.expire()
        assert await served.status("/statements") == 200
        assert app.scope.stats().opened == 2
    statements = [span for span in seen.spans() if span.kind is SpanKind.CLIENT]
    assert [span.attributes["db.statement"] for span in statements] == ["SELECT 3"] * 2
    assert [span.parent for span in statements] == [span.context for span in seen.spans("GET")]


GLOBAL = """
import asyncio, json, sys
from opentelemetry import metrics, trace
import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.opentelemetry import instrument
from tests.contrib.test_opentelemetry import Telemetry

early, late = poolscope.PoolScope(sys.argv[1], key="early", maxsize=1), poolscope.PoolScope(sys.argv[1], key="late")
instrument(early, wait_threshold=0)
seen = Telemetry()
metrics.set_meter_provider(seen.meters)
trace.set_tracer_provider(seen.tracers)
instrument(late)

async def main():
    async with early.running():
        with trace.get_tracer("test").start_as_current_span("job"):
            held = await early.acquire()
            waiting = asyncio.create_task(early.fetchval("SELECT 1"))
            await asyncio.sleep(0)
            held.release()
            await waiting
    used = seen.points("db.client.connection.use_time", pool="early").count
    sizes = [seen.value("db.client.connection.max", pool=scope.config.key) for scope in (early, late)]
    print(json.dumps([sizes, used, [span.name for span in seen.spans()]]))

asyncio.run(main())
"""


def test_the_global_providers(dsn: str) -> None:
    """They are used when none are given, whether they were set before or are set later."""
    command = [sys.executable, "-W", "error", "-c", GLOBAL, dsn]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == [[1, 10], 2, ["poolscope wait early", "job"]]
