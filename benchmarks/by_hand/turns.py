"""What the event loop does in an overload: three times the capacity, queries of 10 ms, by quarters of a second.

    python -m benchmarks.by_hand.turns [--times 3] [--runs 4]

Beside what is served stand the part of the time that the loop was not waiting for anything, its longest turn (in which
no other connection is handed on), and what the host took from the machine's processors meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from benchmarks.load.crowd import STEP, crowd
from benchmarks.load.host import Host
from benchmarks.services.service import Service, serve
from benchmarks.services.work import SCHEMA
from benchmarks.studies.overload import NORMAL, OVERLOAD, PATIENCE, SHORT, find_capacity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUARTER = 0.25
BEFORE = 0.5

Turn = tuple[float, float]
"""When it began (monotonic), and the seconds that it took."""


class Turns(selectors.DefaultSelector):  # type: ignore[valid-type,misc]
    """Notes each turn of the loop: from what was ready to the next look."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Turn] = []
        self._woke = time.monotonic()

    def select(self, timeout: float | None = None) -> Any:
        self.found.append((self._woke, time.monotonic() - self._woke))
        ready = super().select(timeout)
        self._woke = time.monotonic()
        return ready


def be_the_service(dsn: str) -> None:
    """What the other process does; at its end it tells all of its turns."""
    turns = Turns()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner:
        runner.run(serve("poolscope", dsn, {}))
    print(json.dumps(turns.found))


@asynccontextmanager
async def watched(dsn: str) -> AsyncIterator[tuple[Service, list[Turn]]]:
    """A service, and its turns once the block has ended."""
    command = [sys.executable, "-m", "benchmarks.by_hand.turns", "--serve", dsn]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**26)
    assert process.stdout is not None
    turns: list[Turn] = []
    try:
        line = await process.stdout.readline()
        yield Service(process, int(line.split()[1])), turns
        process.terminate()
        turns += [tuple(each) for each in json.loads(await process.stdout.readline())]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def measure(dsn: str, times: float, seed: int) -> list[dict[str, float]]:
    """One run: the figures of each quarter of a second."""
    begun: list[float] = []
    hosts: list[Host] = []

    async def look() -> None:
        begun.append(time.monotonic())
        for number in range(int(OVERLOAD / QUARTER) + 1):
            await asyncio.sleep(begun[0] + BEFORE + number * QUARTER - time.monotonic())
            hosts.append(Host.now())

    async with watched(dsn) as (service, turns):
        capacity = await find_capacity(service, SHORT)
        path = f"/sleep?seconds={SHORT}"
        phases = [("before", path, NORMAL * capacity.rate, BEFORE), ("over", path, times * capacity.rate, OVERLOAD)]
        _, over = await crowd(
            service.url, phases, patience=PATIENCE, seed=f"turns {seed}", meanwhile=look, may_be_late=True
        )
    found = []
    each = round(QUARTER / STEP)
    for number in range(int(OVERLOAD / QUARTER)):
        start = begun[0] + BEFORE + number * QUARTER
        took = [seconds for at, seconds in turns if start <= at < start + QUARTER]
        served = sum(over.series_answers[number * each : (number + 1) * each])
        found.append(
            {
                "served": served / QUARTER / capacity.rate,
                "busy": sum(took) / QUARTER,
                "longest": max(took, default=0.0),
                "stolen": (hosts[number + 1].stolen - hosts[number].stolen) / QUARTER,
            }
        )
    return found


async def main(times: float, runs: int) -> None:
    with EmbeddedPostgres() as server:
        server.sql(SCHEMA)
        quarters = [await measure(server.dsn, times, seed) for seed in range(runs)]
    print("| second | served, of the capacity | loop busy | longest turn | stolen |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for number, of_all in enumerate(zip(*quarters, strict=True)):
        mean = {name: sum(each[name] for each in of_all) / runs for name in of_all[0]}
        print(
            f"| {number * QUARTER:.2f} | {mean['served']:.2f} | {mean['busy']:.2f} | "
            f"{1000 * mean['longest']:.0f} ms | {mean['stolen']:.2f} |"
        )
    every = [each for run in quarters for each in run[2:]]
    print(f"\nAfter the first half second, {len(every)} quarters, by how busy the loop was:\n")
    print("| loop busy | quarters | served, of the capacity |\n| --- | ---: | ---: |")
    for low, high in ((0.0, 0.7), (0.7, 0.75), (0.75, 0.8), (0.8, 0.85), (0.85, 0.9), (0.9, 9.0)):
        served = [each["served"] for each in every if low <= each["busy"] < high]
        if served:
            name = f"{low} and more" if high > 1 else f"below {high}" if not low else f"{low} - {high}"
            print(f"| {name} | {len(served)} | {sum(served) / len(served):.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.by_hand.turns", description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=float, default=3.0, help="of the capacity; 3")
    parser.add_argument("--runs", type=int, default=4, help="means are of these; 4")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        be_the_service(arguments.serve)
    else:
        asyncio.run(main(arguments.times, arguments.runs))
