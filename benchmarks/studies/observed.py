"""What it costs to be seen: the same service with metrics and without.

``poolscope`` counts, as it always does, and tells nobody. With Prometheus and the page, it is scraped once a second and
the page is open in a browser. With OpenTelemetry each borrow is two recordings in histograms of its SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from benchmarks.load import wrk
from benchmarks.services.service import running
from benchmarks.study import Goal

from .throughput import FEW, ROUTES, SECONDS, warm_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.services.service import Service
    from benchmarks.study import Bench

STUDY = "observed"
ROUTE = "SELECT 1"
CASE = f"{ROUTE}, {FEW} clients, asyncio"
OFF, SEEN, TRACED = "poolscope", "Prometheus and page", "OpenTelemetry"
TURNS, QUICK_TURNS = 8, 4
"""How often they take turns in one round: the difference looked for is smaller than what the processor varies by."""

AT_REST = "no requests"
REST = 10.0
"""Seconds without a request: what is spent then is spent on being scraped and looked at, and comes without scatter."""

SCRAPED_EVERY = 1.0
NANOSECOND = 1e-9


async def measure(bench: Bench) -> None:
    """Processor time of a request, which is what limits the throughput of one process."""
    playing = (OFF, SEEN, TRACED)
    turns = QUICK_TURNS if bench.quick else TURNS
    async with contextlib.AsyncExitStack() as stack:
        services = {name: await stack.enter_async_context(running(name, bench.dsn)) for name in playing}
        await warm_up({name: service.url for name, service in services.items()}, [ROUTES[ROUTE]])
        await stack.enter_async_context(scraped(services[SEEN].url))
        for number in range(bench.rounds * turns):
            for name in bench.in_turns(playing, number):
                bench.tell(f"{STUDY}: {CASE}: {name}, turn {number + 1} of {bench.rounds * turns}")
                begun = processor_time(services[name])
                figures = await wrk.load(services[name].url + ROUTES[ROUTE], clients=FEW, seconds=SECONDS)
                used = processor_time(services[name]) - begun
                figures["cpu"] = used / (figures["rate"] * SECONDS)
                bench.add(STUDY, CASE, name, number, figures)
        for number in range(bench.rounds):
            bench.tell(f"{STUDY}: {AT_REST}, round {number + 1} of {bench.rounds}")
            before, begun = {name: processor_time(each) for name, each in services.items()}, time.monotonic()
            await asyncio.sleep(REST)
            for name, service in services.items():
                spent = (processor_time(service) - before[name]) / (time.monotonic() - begun)
                bench.add(STUDY, AT_REST, name, number, {"each_second": spent})


@contextlib.asynccontextmanager
async def scraped(url: str) -> AsyncIterator[None]:
    """Be Prometheus, and a browser with the page open."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:

        async def scrape() -> None:
            while True:
                async with session.get(f"{url}/metrics") as answer:
                    await answer.read()
                await asyncio.sleep(SCRAPED_EVERY)

        async def look() -> None:
            async with session.get(f"{url}/_pool/events", timeout=aiohttp.ClientTimeout(None)) as answer:
                async for _ in answer.content.iter_any():
                    pass

        tasks = [asyncio.create_task(work()) for work in (scrape, look)]
        try:
            yield
            for task in tasks:  # one that has ended could not do its work
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def processor_time(service: Service) -> float:
    """Seconds of processor that the service's process has had, to the nanosecond (Linux)."""
    return int(Path(f"/proc/{service.process.pid}/schedstat").read_text().split()[0]) * NANOSECOND


GOALS = (
    Goal(STUDY, CASE, SEEN, "cpu", "at most", 1.03, against=OFF),
    Goal(STUDY, AT_REST, SEEN, "each_second", "at most", 0.03),
)
