"""Metrics, over real sockets: what Prometheus is told, in which words, and that asking costs nobody anything."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.prometheus import METRICS, OUTCOMES, PoolScopeCollector, setup_metrics
from aiohttp_poolscope.contrib.prometheus import route as metrics_route
from tests.conftest import until
from tests.kit.documents import ROOT, names, section, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Database, Serve, Served

POOL = "db_client_connection_pool_name"

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(text: str) -> Numbers:
    """Every sample by its name and labels, each of them there once."""
    found: Numbers = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(numbers: Numbers, name: str, pool: str = "db", **labels: str) -> float:
    return numbers[name, frozenset((labels | {POOL: pool}).items())]


def told(*scopes: poolscope.PoolScope) -> Numbers:
    registry = CollectorRegistry()
    registry.register(PoolScopeCollector(*scopes))
    return series(generate_latest(registry).decode())


async def scrape(served: Served, path: str = "/metrics") -> Numbers:
    status, text = await served.get(path)
    assert status == 200
    return series(text)


def unused(key: str = "db") -> poolscope.PoolScope:
    return poolscope.PoolScope("postgresql:///nowhere", key=key)


class App:
    """An application with metrics, one handler that asks the database, and one that holds its connection."""

    def __init__(self, dsn: str, settings: dict[str, Any] | None = None, **options: Any) -> None:
        self.go = asyncio.Event()
        self.web = web.Application()
        self.scope = poolscope.setup(self.web, dsn, **{"maxsize": 2, "acquire": "eager", **(settings or {})})
        setup_metrics(self.web, self.scope, **options)
        self.web.add_routes([web.get("/", self.ask), web.get("/hold", self.hold), web.get("/wrong", self.wrong)])

    async def ask(self, request: web.Request) -> web.Response:
        return web.json_response(await request["db"].fetchval("SELECT 42"))

    async def hold(self, request: web.Request) -> web.Response:
        await self.go.wait()
        return web.Response()

    async def wrong(self, request: web.Request) -> web.Response:
        await request["db"].execute("SELECT no_such_column")
        return web.Response()


async def test_what_is_told_is_what_the_scope_says(dsn: str, serve: Serve) -> None:
    """Every number of stats() arrives under its name: connections, outcomes, errors, and whole histograms."""
    app = App(dsn, {"acquire_timeout": 60, "queue_target": None})
    async with serve(app.web) as served:
        for _ in range(3):
            assert await served.status("/") == 200
        assert await served.status("/wrong") == 500
        held = [asyncio.create_task(served.status("/hold")) for _ in range(2)]
        await until(lambda: app.scope.stats().lent == 6)
        with pytest.raises(poolscope.PoolExhausted):
            await app.scope.acquire(timeout=0.1)
        waiting = asyncio.create_task(served.status("/"))
        await until(lambda: app.scope.stats().waiting)
        numbers = await scrape(served)
        stats = app.scope.stats()
        state = "db_client_connection_state"
        assert value(numbers, "db_client_connection_count", **{state: "used"}) == 2
        assert value(numbers, "db_client_connection_count", **{state: "idle"}) == 0
        assert value(numbers, "db_client_connection_max") == value(numbers, "db_client_connection_idle_max") == 2
        assert value(numbers, "db_client_connection_idle_min") == 1
        assert value(numbers, "db_client_connection_pending_requests") == 1
        assert value(numbers, "db_client_connection_timeouts_total") == 1
        assert value(numbers, "poolscope_opened_total") == 2
        assert value(numbers, "poolscope_oldest_lease_seconds") > 0.1
        assert 0 < value(numbers, "poolscope_oldest_wait_seconds") < value(numbers, "poolscope_oldest_lease_seconds")
        assert {out: value(numbers, "poolscope_borrows_total", outcome=out) for out in OUTCOMES} == {
            outcome: getattr(stats, outcome) for outcome in OUTCOMES
        }
        assert value(numbers, "poolscope_borrows_total", outcome="lent") == 6
        faults = {fault: value(numbers, "poolscope_statement_errors_total", fault=fault) for fault in stats.errors}
        assert faults == {"statement": 1, "timeout": 0, "connection": 0}
        assert value(numbers, "poolscope_state", state="serving") == 1
        assert value(numbers, "poolscope_breaker", state="closed") == 1
        assert value(numbers, "poolscope_breaker", state="half-open") == 0
        for name, histogram in (("wait_time", stats.wait), ("use_time", stats.lease), ("create_time", stats.connect)):
            whole = f"db_client_connection_{name}_seconds"
            assert histogram.count > 0
            assert value(numbers, f"{whole}_count") == value(numbers, f"{whole}_bucket", le="+Inf") == histogram.count
            assert value(numbers, f"{whole}_sum") == pytest.approx(histogram.sum)
            for bound in histogram.bounds:
                below = sum(count for count, at in zip(histogram.counts, histogram.bounds, strict=False) if at <= bound)
                assert value(numbers, f"{whole}_bucket", le=str(bound)) == below
        app.go.set()
        assert await asyncio.gather(*held, waiting) == [200, 200, 200]


async def test_before_the_start_and_after_the_end(dsn: str, serve: Serve) -> None:
    """A scope that does not run has its size and its state to tell, and nothing else that is not zero."""
    app = App(dsn)
    for state in ("starting", "closed"):
        numbers = told(app.scope)
        assert value(numbers, "poolscope_state", state=state) == 1
        assert value(numbers, "db_client_connection_max") == 2
        said = {name for (name, _), number in numbers.items() if number}
        assert said == {
            "poolscope_state", "poolscope_breaker", "db_client_connection_max", "db_client_connection_idle_max",
            "db_client_connection_idle_min",
        }  # fmt: skip
        if state == "starting":
            async with serve(app.web) as served:
                assert value(await scrape(served), "poolscope_state", state="serving") == 1


async def test_it_takes_no_connection(dsn: str, serve: Serve, database: Database) -> None:
    """With every connection in use and the database gone the answer is the same, and nothing has been borrowed."""
    app = App(dsn)
    async with serve(app.web) as served:
        held = [asyncio.create_task(served.status("/hold")) for _ in range(2)]
        await until(lambda: app.scope.stats().lent == 2)
        database.kill(waiting=False)
        assert value(await scrape(served), "db_client_connection_count", db_client_connection_state="used") == 2
        assert app.scope.stats().borrows == 2
        app.go.set()
        await asyncio.gather(*held)


async def test_it_is_answered_while_the_pool_drains(dsn: str, serve: Serve) -> None:
    """The drain is told while it goes on, and the scraper is asked not to keep its connection."""
    app = App(dsn, {"drain_grace": 3.0})
    async with serve(app.web) as served:
        held = asyncio.create_task(served.status("/hold"))
        await until(lambda: app.scope.stats().in_use)
        app.scope.begin_drain()
        async with served.client.get(served.url / "metrics") as response:
            numbers = series(await response.text())
            assert response.headers[hdrs.CONNECTION] == "close"
        assert value(numbers, "poolscope_state", state="draining") == 1
        assert value(numbers, "db_client_connection_count", db_client_connection_state="used") == 1
        app.go.set()
        assert await held == 200


async def test_in_an_application_of_its_own(dsn: str, serve: Serve) -> None:
    """On another port, where no middleware of the scope is, it tells the same and lets go of the scraper as well."""
    app, other = App(dsn), web.Application()
    setup_metrics(other, app.scope)
    async with serve(app.web) as served, serve(other) as apart:
        assert await served.status("/") == 200
        assert value(await scrape(apart), "poolscope_borrows_total", outcome="lent") == 1
        app.scope.begin_drain()
        async with apart.client.get(apart.url / "metrics") as response:
            assert response.headers[hdrs.CONNECTION] == "close"


async def test_nothing_listens(dsn: str) -> None:
    """Metrics ask for no event: what happens in a request is the same with them and without."""
    without = poolscope.PoolScope(dsn)
    assert App(dsn).scope._events.subscribed.keys() == without._events.subscribed.keys()


ACCEPTED = [
    (None, "text/plain; version=0.0.4; charset=utf-8", parse),
    ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain; version=0.0.4; charset=utf-8", parse),
    ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", parse_openmetrics),
]


@pytest.mark.parametrize(("accept", "content_type", "parser"), ACCEPTED, ids=["none", "prometheus", "openmetrics"])
async def test_the_format_is_negotiated(
    accept: str | None, content_type: str, parser: Callable[[str], Any], dsn: str, serve: Serve
) -> None:
    """Whoever asks for OpenMetrics gets it, all others the text format; each parses, and is compressed if wanted."""
    headers = {} if accept is None else {hdrs.ACCEPT: accept}
    async with serve(App(dsn, registry=CollectorRegistry()).web) as served:
        for encoding in ("identity", "gzip"):
            asked = headers | {hdrs.ACCEPT_ENCODING: encoding}
            async with served.client.get(served.url / "metrics", headers=asked, auto_decompress=False) as response:
                body = await response.read()
                assert response.headers[hdrs.CONTENT_TYPE].startswith(content_type)
                assert response.headers.get(hdrs.CONTENT_ENCODING, "identity").replace("deflate", "gzip") == encoding
            text = (gzip.decompress(body) if encoding == "gzip" else body).decode()
            found = [family.name for family in parser(text)]
            assert len(found) == len(set(found)) == len(METRICS)


@pytest.mark.system
@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of the system package prometheus")
def test_promtool_accepts_it() -> None:
    """promtool has one objection, to a name that OpenTelemetry has chosen."""
    registry = CollectorRegistry()
    registry.register(PoolScopeCollector(unused(), unused("b")))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    complaints = (done.stdout + done.stderr).decode().strip().splitlines()
    assert complaints == [
        'db_client_connection_count non-histogram and non-summary metrics should not have "_count" suffix'
    ]


async def test_the_usual_registry_has_the_process_and_the_application(dsn: str, serve: Serve) -> None:
    """By default the process's metrics and the application's own are there as well, and nothing is registered."""
    from prometheus_client import REGISTRY

    counter = Counter("poolscope_test_cups", "Cups of tea.")
    try:
        counter.inc()
        async with serve(App(dsn).web) as served, serve(App(dsn).web) as second:  # two applications, one registry
            for each in (served, second):
                numbers = await scrape(each)
                assert numbers["poolscope_test_cups_total", frozenset()] == 1
                assert ("process_start_time_seconds", frozenset()) in numbers
                assert value(numbers, "poolscope_state", state="serving") == 1
        assert "poolscope_state" not in generate_latest(REGISTRY).decode()
    finally:
        REGISTRY.unregister(counter)


@pytest.mark.parametrize("filled", [True, False])
async def test_a_process_that_has_just_begun(
    dsn: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, filled: bool
) -> None:
    """prometheus_client makes its file and gives it its size in two steps: who asks between them waits a little."""
    monkeypatch.setattr(metrics_route, "TRIES", 500 if filled else 2)
    file = tmp_path / "counter_4711.db"
    file.touch()

    def fill() -> None:
        time.sleep(0.1)
        if filled:
            os.truncate(file, 1 << 20)

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    async with serve(App(dsn, registry=registry).web) as served:
        with ThreadPoolExecutor(1) as other:
            filling = other.submit(fill)
            assert await served.status("/metrics") == (200 if filled else 500)
            filling.result()


async def test_a_registry_of_ones_own(dsn: str, serve: Serve) -> None:
    """With a registry that is given, it and the pool are there, and nothing else."""
    registry = CollectorRegistry()
    Counter("cups", "Cups of tea.", registry=registry)
    async with serve(App(dsn, registry=registry, path="/internal/metrics").web) as served:
        numbers = await scrape(served, "/internal/metrics")
        families = {name for name, _ in numbers if not name.startswith(("db_client_", "poolscope_"))}
        assert families == {"cups_total", "cups_created"}
        assert await served.status("/metrics") == 404


async def test_several_pools_are_told_apart(dsn: str, serve: Serve) -> None:
    """Each scope has its key as a label."""
    app = web.Application()
    scopes = [poolscope.setup(app, dsn, key=key, maxsize=size) for key, size in (("db", 2), ("reports", 3))]
    setup_metrics(app, *scopes)
    async with serve(app) as served:
        numbers = await scrape(served)
        assert [value(numbers, "db_client_connection_max", key) for key in ("db", "reports")] == [2, 3]


async def test_from_another_thread(dsn: str, serve: Serve) -> None:
    """A collector may be read by prometheus_client's own server, in a thread, while requests come and go."""
    app = App(dsn, {"maxsize": 4, "queue_target": None})  # nothing is shed, however slowly a busy machine answers
    failures: list[BaseException] = []
    lent: list[float] = []
    end = threading.Event()

    def read() -> None:
        try:
            while not end.is_set():
                lent.append(value(told(app.scope), "poolscope_borrows_total", outcome="lent"))
        except BaseException as error:  # noqa: BLE001 - a thread's errors are lost otherwise
            failures.append(error)

    async with serve(app.web) as served:
        thread = threading.Thread(target=read)
        thread.start()
        try:
            for _ in range(10):
                assert set(await asyncio.gather(*(served.status("/") for _ in range(20)))) == {200}
            await until(lambda: not thread.is_alive() or len(lent) > 5)
        finally:
            end.set()
            thread.join()
    assert failures == []
    assert lent == sorted(lent)


def test_a_reading_that_is_disturbed_is_begun_again() -> None:
    """What another thread changes while it is read is read again; what goes on for ever is an error, not a loop."""

    class Disturbed(poolscope.PoolScope):
        left = 3

        def stats(self) -> poolscope.PoolStats:
            self.left -= 1
            if self.left >= 0:
                raise RuntimeError("Set changed size during iteration")
            return super().stats()

    scope = Disturbed("postgresql:///nowhere")
    assert value(told(scope), "db_client_connection_max") == 10
    scope.left = 1000
    with pytest.raises(RuntimeError, match="changed size"):
        told(scope)


WRONG = [
    ({"path": "/taken"}, r"setup_metrics\(path='/taken'\): this path is taken"),
    ({"interval": 0}, r"setup_metrics\(interval=0\): must be a number of seconds from 0.1"),
    ({"interval": "1"}, r"setup_metrics\(interval='1'\): must be"),
    ({"registry": "default"}, r"setup_metrics\(registry='default'\): must be a CollectorRegistry"),
    ({"interval": float("nan")}, r"setup_metrics\(interval=nan\): must be"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    """What cannot be right is refused at once, with its name."""
    app = web.Application()
    app.router.add_static("/taken", ROOT)
    with pytest.raises(poolscope.ConfigError, match=message):
        setup_metrics(app, unused(), **options)


def test_bad_scopes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scope, two of one key, one that is told already: each would be a wrong answer, and is said at once."""
    scope = unused()
    with pytest.raises(poolscope.ConfigError, match="at least one scope"):
        setup_metrics(web.Application())
    with pytest.raises(poolscope.ConfigError, match="at least one scope"):
        PoolScopeCollector()
    with pytest.raises(poolscope.ConfigError, match=r"\(app, \*scopes\): 'db' is no PoolScope"):
        setup_metrics(web.Application(), "db")  # type: ignore[arg-type]
    with pytest.raises(poolscope.ConfigError, match="key of its own, not 'db', 'db'"):
        setup_metrics(web.Application(), scope, unused())
    with pytest.raises(poolscope.ConfigError, match="key of its own"):
        PoolScopeCollector(scope, scope)
    registry = CollectorRegistry()
    registry.register(PoolScopeCollector(scope))
    with pytest.raises(poolscope.ConfigError, match="would be told twice"):
        setup_metrics(web.Application(), scope, registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PoolScopeCollector(unused("y")))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere/at/all")
    with pytest.raises(poolscope.ConfigError, match="PROMETHEUS_MULTIPROC_DIR is '/nowhere/at/all'"):
        setup_metrics(web.Application(), scope)


def test_workers_that_do_not_meet_are_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """With WEB_CONCURRENCY and no directory each answer has one worker alone: a warning says what to set."""
    for workers, warned in (("", False), ("1", False), ("4", True)):
        caplog.clear()
        monkeypatch.setenv("WEB_CONCURRENCY", workers)
        setup_metrics(web.Application(), unused())
        assert ("set PROMETHEUS_MULTIPROC_DIR" in caplog.text) is warned


def test_the_table_in_the_document() -> None:
    """docs/prometheus.md has every metric with its type and labels, and no other."""
    document = (ROOT / "docs" / "prometheus.md").read_text()
    said = {names(row[0])[0]: (row[1], tuple(names(row[2]))) for row in table(section(document, "What there is"))}
    assert said == {metric.name: (metric.kind, () if metric.label is None else (metric.label,)) for metric in METRICS}
    numbers = told(unused())
    assert f"begins {len(numbers)} new series for each pool" in document
    exported = {name for name, _ in numbers}
    plain = {name for name, (kind, _) in said.items() if kind != "histogram"}
    histograms = {name for name, (kind, _) in said.items() if kind == "histogram"}
    assert exported == plain | {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}
