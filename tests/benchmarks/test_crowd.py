"""The generator of the overload benchmark: what it says of a service whose answers are known."""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from benchmarks.load.crowd import STEP, CrowdLateError, Phase, PhaseResult, crowd
from benchmarks.load.generator import GAVE_UP, WAITING, Generator
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="the benchmarks are for Linux")


class Service:
    """Answers as its path says, and counts."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.left = 0
        self.sockets: set[object] = set()

    async def answer(self, request: web.Request) -> web.Response:
        what = request.match_info["what"]
        self.asked[what] = self.asked.get(what, 0) + 1
        self.sockets.add(request.transport)
        if what == "never":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.left += 1
                raise
        if what == "gone":
            assert request.transport is not None
            request.transport.abort()
        if what == "last":
            response = web.Response(text="the last on this connection")
            response.force_close()
            return response
        if what == "parts":
            parts = web.StreamResponse(headers={"Content-Length": "6"})
            await parts.prepare(request)
            for part in (b"one", b"two"):
                await parts.write(part)
                await asyncio.sleep(0.01)
            return parts
        return web.Response(status=int(what) if what.isdigit() else 200, text=what)


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[Service, str]]:
    service = Service()
    app = web.Application()
    app.router.add_get("/{what}", service.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield service, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def came(url: str, *phases: tuple[str, str, float, float], patience: float, seed: int = 1) -> list[PhaseResult]:
    """The generator itself, in a thread: without the start of its process."""
    generator = Generator(url, [Phase(*phase) for phase in phases], patience=patience, seed=seed, pid=None)
    return await asyncio.to_thread(generator.run)


def ends(result: PhaseResult) -> tuple[int, ...]:
    return result.served, result.refused, result.failed, result.gave_up, result.dropped


async def test_every_client_of_every_phase_ends_in_the_way_the_service_chose() -> None:
    """Phases follow each other, and each client is counted once, in the phase in which it came."""
    phases = [(what, f"/{what}", 200.0, 0.1) for what in ("200", "503", "500", "never", "gone", "last", "parts")]
    async with listening() as (service, url):
        results = await came(url, *phases, patience=0.2)
        await until(lambda: service.left == results[3].gave_up, "everyone who gave up is gone")
    assert [result.name for result in results] == [name for name, *_ in phases]
    for result, place in zip(results, (0, 1, 2, 3, 4, 0, 0), strict=True):
        assert result.arrivals == service.asked[result.name] > 0
        assert ends(result) == tuple(result.arrivals if each == place else 0 for each in range(5))
        assert sum(result.series_arrivals) == result.arrivals
        assert sum(result.series_served) == result.served
        assert len(result.series_arrivals) == round(0.1 / STEP)
        assert result.answered == (0.0 if place in (3, 4) else 1.0)
        assert result.goodput == pytest.approx(sum(result.series_answers) / 0.1)
    assert 0 < sum(sum(result.series_answers) for result in results) <= sum(result.served for result in results)


async def test_connections_are_kept_and_the_same_seed_brings_the_same_clients() -> None:
    phases = [("kept", "/200", 300.0, 0.1)]
    async with listening() as (service, url):
        (first,) = await came(url, *phases, patience=1.0)
        assert len(service.sockets) < first.arrivals == first.served
        (again,) = await came(url, *phases, patience=1.0)
        (other,) = await came(url, *phases, patience=1.0, seed=2)
    assert first.series_arrivals == again.series_arrivals != other.series_arrivals


async def test_an_answer_after_the_clients_patience_is_none() -> None:
    """Also where it is the generator that comes too late to let the client go first."""
    async with listening() as (service, url):
        generator = Generator(url, [Phase("any", "/200", 100.0, 0.1)], patience=0.1, seed=1, pid=None)
        client = generator.clients[0]
        client.due = time.monotonic() - 0.2
        generator._send(client, time.monotonic())
        assert client.wire is not None
        wire = client.wire
        await until(lambda: (service.asked and client.outcome != WAITING) or generator._read(wire), "an answer")
        generator.epoll.close()
    assert client.outcome == GAVE_UP
    assert wire.closed


async def test_a_crowd_is_a_process_and_says_when_it_was_late_itself() -> None:
    """More than any one process can send: the figures would be its own, and not the service's."""
    phases = [("flood", "/200", 200_000.0, 0.02)]
    async with listening() as (service, url):

        async def look() -> None:
            await until(lambda: service.asked, "the crowd has come")

        with pytest.raises(CrowdLateError, match="late"):
            await crowd(url, phases, patience=0.002, seed=1, meanwhile=look)


def result_of(arrivals: list[int], served: list[int]) -> PhaseResult:
    numbers = dict.fromkeys(("refused", "failed", "gave_up", "dropped"), 0)
    times = dict.fromkeys(("p50", "p99", "refused_p50", "refused_p99", "late_p99", "goodput", "rate"), 0.0)
    return PhaseResult(
        name="any",
        seconds=len(arrivals) * STEP,
        arrivals=sum(arrivals),
        served=sum(served),
        series_arrivals=arrivals,
        series_served=served,
        series_answers=served,
        **numbers,
        **times,
    )


def test_recovered_is_the_share_of_those_who_came_after_a_while() -> None:
    late = result_of([10] * 40, [0] * 20 + [9] * 10 + [10] * 10)
    assert late.recovered(0.0) == 190 / 400
    assert late.recovered(1.0) == 190 / 200
    assert late.recovery_time() == pytest.approx(29 * STEP)  # 109 of 110


def test_a_service_that_does_not_come_back_has_no_recovery() -> None:
    dead = result_of([10] * 40, [0] * 40)
    assert dead.recovered() == 0.0
    assert dead.recovery_time() == 40 * STEP
