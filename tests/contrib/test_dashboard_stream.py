"""The page's stream, over real sockets: what it tells, what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import weakref
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientError, web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import journal, sampler, setup_dashboard, streams
from aiohttp_poolscope.stats import Histogram, PoolStats
from tests.conftest import DEADLINE, until

from .dashboard_app import App, find_streams, messages, recorders, state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Serve, Served


async def stuck(served: Served) -> asyncio.StreamWriter:
    """A client with little room that asks for the stream and reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", served.port))
    _, writer = await asyncio.open_connection(sock=sock, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /_pool/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return writer


async def collect(told: AsyncIterator[Any]) -> list[Any]:
    return [message async for message in told]


async def test_a_stream_has_the_past_and_then_each_second(
    dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first message has all samples, each later one those that are new: none twice, none missing."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.02)
    app = App(dsn)
    async with serve(app.web) as served:
        recorder = await until(lambda: next(iter(recorders(app)), None))
        await until(lambda: len(recorder.samples) >= 5)
        async with contextlib.aclosing(messages(served)) as told:
            first = await anext(told)
            assert first["kind"] == "state"
            assert first["columns"] == list(sampler.COLUMNS)
            assert len(first["samples"][0]) >= 5
            for _ in range(3):
                assert await served.status("/run", params={"sql": "SELECT %s"}) == 200
            seen = first["samples"][0]
            while not any(sample[sampler.COLUMNS.index("borrows")] for sample in seen):
                seen += (await anext(told))["samples"][0]
            for _ in range(5):
                seen += (await anext(told))["samples"][0]
        times = [sample[0] for sample in seen]
        assert times == [sample[0] for sample in recorder.samples][: len(times)]
        assert all(len(sample) == len(sampler.COLUMNS) for sample in seen)


async def test_quantiles_and_rates_are_of_the_last_seconds(
    dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was slow long ago is no longer in the percentiles: they are of what ended lately."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.02)
    app = App(dsn)
    async with serve(app.web) as served:
        (recorder,) = recorders(app)
        held = asyncio.create_task(served.status("/hold/x"))
        await until(lambda: app.scope.stats().oldest_lease > 0.3)
        app.go.set()
        await held
        (scope,) = (await state(served))["scopes"]
        assert scope["lease"]["p99"] >= 0.25
        count = len(recorder.samples)
        await until(lambda: len(recorder.samples) > count + sampler.RECENT)
        (scope,) = (await state(served))["scopes"]
        assert (scope["lease"], scope["rates"]["borrows"]) == ({"p50": None, "p99": None}, 0)
        await served.status("/hold/x")
        (scope,) = (await state(served))["scopes"]
        assert scope["lease"]["p99"] < 0.25
        assert scope["rates"]["borrows"] > 0


async def test_memory_has_a_bound(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples and events are kept up to a number; ten thousand refusals of one kind are one entry that counts them."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.0005)
    app = App(dsn, maxsize=1, max_waiting=0)
    async with serve(app.web) as served:
        (recorder,) = recorders(app)
        db = await app.scope.acquire()
        for _ in range(10_000):
            with contextlib.suppress(poolscope.PoolExhausted):
                await app.scope.acquire()
        db.release()
        (refused,) = [entry for entry in recorder.journal.entries() if entry["kind"] == "refused"]
        assert refused["count"] == 10_000
        for i in range(2 * journal.KEPT):
            await served.status("/run", params={"sql": f"SELECT %s FROM t{i}"})
        entries = recorder.journal.entries()
        assert len(entries) == journal.KEPT == len(recorder.journal._last)
        assert entries[0]["statement"] == f"SELECT %s FROM t{2 * journal.KEPT - 1}"
        assert [entry["at"] for entry in entries] == sorted((entry["at"] for entry in entries), reverse=True)
        await until(lambda: len(recorder.samples) == sampler.KEPT)
        last = recorder.samples[-1]
        await until(lambda: recorder.samples[-1] is not last)
        assert len(recorder.samples) == sampler.KEPT
        assert len(recorder._looks) == sampler.MINUTE + 1


async def test_no_error_is_kept_alive(dsn: str, serve: Serve) -> None:
    """What an error holds (frames, connections, rows) can be collected: the journal copies words."""
    app = App(dsn)
    seen: list[weakref.ref[Any]] = []
    app.scope.on_event(lambda event: seen.append(weakref.ref(event.error)), poolscope.events.StatementFailed)
    async with serve(app.web) as served:
        await served.status("/run", params={"sql": "SELECT %s FROM nowhere"})
        await until(lambda: [ref() for ref in seen] == [None])


async def test_a_client_that_does_not_read(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs what is on its way and no more; others are told meanwhile, and the end waits for nobody."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.002)
    app = App(dsn)
    async with serve(app.web, shutdown_timeout=60) as served:
        (recorder,) = recorders(app)
        writer = await stuck(served)
        try:
            (owner,) = find_streams(app)
            stream = await until(lambda: next(iter(owner._streams), None))
            transport = stream.request.transport
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await until(lambda: stream.writing, deadline=4 * DEADLINE)
            size = transport.get_write_buffer_size()
            last = recorder.samples[-1]
            await until(lambda: recorder.samples[-1][0] > last[0] + 0.3)
            assert stream.writing
            assert transport.get_write_buffer_size() == size < 2_000_000
            async with contextlib.aclosing(messages(served)) as told:
                for _ in range(3):
                    await anext(told)
            async with asyncio.timeout(DEADLINE):
                await served.runner.cleanup()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_only_so_many_may_look(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a stream is a 503; one that leaves makes room."""
    monkeypatch.setattr(streams, "LIMIT", 1)
    monkeypatch.setattr(sampler, "INTERVAL", 0.02)
    app = App(dsn)
    async with serve(app.web) as served:
        (owner,) = find_streams(app)
        async with contextlib.aclosing(messages(served)) as told:
            await anext(told)
            assert await served.status("/_pool/events") == 503
        await until(lambda: len(owner) == 0)
        async with contextlib.aclosing(messages(served)) as told:
            await anext(told)


@pytest.mark.parametrize("order", ["before", "after", "by hand"])
async def test_a_stream_does_not_delay_the_end(dsn: str, serve: Serve, order: str) -> None:
    """With somebody watching, the shutdown ends at once although aiohttp would wait a minute; the last word is told."""
    app = web.Application()
    scope = poolscope.PoolScope(dsn)
    if order == "before":
        setup_dashboard(app, scope, allow="loopback")
    if order == "by hand":
        app.middlewares.append(scope.middleware)
        app.cleanup_ctx.append(scope.cleanup_ctx)
    else:
        scope.setup(app)
    if order != "before":
        setup_dashboard(app, scope, allow="loopback")
    async with serve(app, shutdown_timeout=60) as served:
        async with contextlib.aclosing(messages(served)) as told:
            assert not (await anext(told))["ended"]
            async with asyncio.timeout(DEADLINE):
                _, rest = await asyncio.gather(served.runner.cleanup(), collect(told))
        assert rest[-1]["ended"]
        assert scope.state == "closed"


async def test_a_drain_can_be_watched(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """While connections are waited for the stream goes on and says so; it ends with the drain."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.02)
    app = App(dsn, drain_grace=30.0, drain_timeout=40.0)
    async with serve(app.web, shutdown_timeout=60) as served:
        held = [asyncio.create_task(served.status(f"/hold/{name}")) for name in "ab"]
        await until(lambda: app.scope.stats().in_use == 2)
        async with contextlib.aclosing(messages(served)) as told:
            await anext(told)
            ending = asyncio.create_task(served.runner.cleanup())
            texts = []
            async with asyncio.timeout(2 * DEADLINE):
                async for message in told:
                    texts.append(message["scopes"][0]["verdict"]["text"])
                    if texts.count("Draining: 2 connections to wait for") == 3:
                        app.go.set()
                await ending
        assert "Draining: 2 connections to wait for" in texts
        assert message["ended"]
        assert message["scopes"][0]["events"][0]["kind"] == "drain_finished"
        assert await asyncio.gather(*held) == [200, 200]


async def test_nothing_is_left(dsn: str, serve: Serve) -> None:
    """After the end there is no task of the page's, though a client has left without a word."""
    app = App(dsn)
    async with serve(app.web) as served:
        reader, writer = await served.raw(b"GET /_pool/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"event: state")
        writer.transport.abort()
        with contextlib.suppress(ConnectionError, ClientError):
            await writer.wait_closed()
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("poolscope")]


async def test_a_stall_makes_no_spike(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the event loop stood still the next samples are an interval apart: a rate is over the time it took."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.05)
    app = App(dsn)
    async with serve(app.web) as served:
        (recorder,) = recorders(app)
        await until(lambda: recorder.samples)
        time.sleep(0.4)  # noqa: ASYNC251 - that is the stall
        count = len(recorder.samples)
        await until(lambda: len(recorder.samples) >= count + 4)
        looks = [at for at, _ in recorder._looks]
        assert min(b - a for a, b in pairwise(looks)) > 0.01
        assert served.port


async def test_a_scope_runs_again(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scope that runs elsewhere, ended and started again, counts from zero: nothing shown is negative or old."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.02)
    scope = poolscope.PoolScope(dsn)
    setup_dashboard(admin := web.Application(), scope, allow="loopback")
    async with serve(admin) as served:
        for count in (9, 2):
            async with scope.running():
                for _ in range(count):
                    await scope.fetchval("SELECT 1")
                (entry,) = (await state(served))["scopes"]
                assert (entry["state"], entry["verdict"]["kind"]) == ("serving", "healthy")
                assert entry["rates"]["borrows"] > 0
                assert entry["lease"]["p50"] > 0
                async with contextlib.aclosing(messages(served)) as told:
                    samples = (await anext(told))["samples"][0] + (await anext(told))["samples"][0]
                assert all(value is None or value >= 0 for sample in samples for value in sample)
            (entry,) = (await state(served))["scopes"]
            assert (entry["state"], entry["slots"][0]["state"]) == ("closed", "empty")


def test_counters_that_begin_again() -> None:
    """Between two looks at different pools lies all that the newer one has; between two at one pool the difference."""
    old, new = Histogram(), Histogram()
    for duration in (0.2, 0.2, 0.001):
        old.record(duration)
    new.record(0.2)
    assert sampler.since(new.snapshot(), old.snapshot()) == new.snapshot()
    before = old.snapshot()
    old.record(3.0)
    assert sampler.since(old.snapshot(), before).count == 1
    assert sampler.since(old.snapshot(), before).quantile(0.5) > 2.5
    counted = sampler._counted(PoolStats(borrows=5, shed=2), PoolStats(borrows=9, shed=1))
    assert (counted["borrows"], counted["shed"]) == (5, 2)
    counted = sampler._counted(PoolStats(borrows=9, shed=2), PoolStats(borrows=5, shed=1))
    assert (counted["borrows"], counted["shed"]) == (4, 1)
