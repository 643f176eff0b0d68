"""Where the time of a request goes: SELECT 1, sampled from outside with py-spy.

    python -m benchmarks.by_hand.hot_path              shares by layer, and this package's by function
    python -m benchmarks.by_hand.hot_path --loop uvloop --clients 100
    python -m benchmarks.by_hand.hot_path --beside "psycopg2 polling" --turns 8

Beside another candidate, both are looked at in turns, and a layer has microseconds of the processor for each request.
A C function counts for the Python line that called it; the two system calls that send have rows of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import linecache
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from benchmarks.load.wrk import load, warm_up
from benchmarks.services.candidates import CANDIDATES
from benchmarks.services.service import Loop, Service, running
from benchmarks.services.work import SCHEMA
from benchmarks.studies.observed import processor_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OURS = "poolscope"
PATH = "/one"

FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(?::(?P<line>\d+))?\)$")

PACKAGE = "aiohttp_poolscope"
CANDIDATE = "the candidate"

OWNERS = {name: name for name in (PACKAGE, "aiohttp", "aiopg", "asyncio", "uvloop")} | {"benchmarks": CANDIDATE}
"""Whose code a folder has."""

CALLS = {
    "cursor.execute(": "psycopg2: sends the statement",
    "self._impl.execute(": "psycopg2: sends the statement",
    "self._conn.poll()": "psycopg2: receives the answer",
    "self.raw.poll()": "psycopg2: receives the answer",
    "method(*args": "psycopg2: reads the row",
    "cursor.fetchone()": "psycopg2: reads the row",
    "self._impl.fetchone()": "psycopg2: reads the row",
    "self._sock.send(": "asyncio: sends the answer",
    "self._sock.recv(": "asyncio: receives the request",
    "self._selector.poll(": "asyncio: waits for events",
}
"""Code whose time is that of a C function: what the function does."""


@dataclass
class Profile:
    """What was seen of one candidate."""

    layers: Counter[str] = field(default_factory=Counter)
    """How often each layer was at work."""
    functions: Counter[str] = field(default_factory=Counter)
    """The same for the functions of this package."""
    processor: float = 0.0
    """Seconds of the processor."""
    requests: float = 0.0

    def add(self, stacks: Iterable[str]) -> None:
        """Count stacks as py-spy writes them: frames, outermost first, and how often they were seen."""
        for stack in stacks:
            frames, count = stack.rsplit(" ", 1)
            last = FRAME.fullmatch(frames.rpartition(";")[2])
            if last is None:
                continue
            kind = layer(last["file"], last["line"])
            self.layers[kind] += int(count)
            if kind == PACKAGE:
                self.functions[f"{Path(last['file']).stem}: {last['function']}"] += int(count)

    def microseconds(self, kind: str) -> float:
        """What a layer takes of a request."""
        return 1e6 * self.processor / self.requests * self.layers[kind] / self.layers.total()


def layer(file: str, line: str) -> str:
    """What a frame belongs to."""
    code = linecache.getline(file, int(line or 0))
    called = (does for call, does in CALLS.items() if call in code and "await" not in code)
    owner = (whose for folder, whose in OWNERS.items() if f"/{folder}/" in file)
    return next(called, None) or next(owner, "the rest of Python")


async def sample(
    candidates: Sequence[str], loop: Loop, *, clients: int, seconds: int, turns: int
) -> dict[str, Profile]:
    """Look at all of them in turns."""
    profiles = {name: Profile() for name in candidates}
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres())
        server.sql(SCHEMA)
        services = {name: await stack.enter_async_context(running(name, server.dsn, loop=loop)) for name in candidates}
        for service in services.values():
            await warm_up(service.url, [PATH])
        for number in range(turns):
            for name in candidates if number % 2 else reversed(candidates):
                await look(services[name], profiles[name], clients=clients, seconds=seconds)
    return profiles


async def look(service: Service, profile: Profile, *, clients: int, seconds: int) -> None:
    """Add ``seconds`` of load."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "stacks"
        begun = processor_time(service)
        working = asyncio.create_task(load(service.url + PATH, clients=clients, seconds=seconds + 1))
        spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(service.process.pid)]
        spy += ["--duration", str(seconds), "--rate", "500", "--format", "raw", "--full-filenames"]
        spy += ["--output", str(found)]
        process = await asyncio.create_subprocess_exec(*spy, stdout=asyncio.subprocess.DEVNULL)
        if await process.wait():
            raise RuntimeError("py-spy failed: it wants to be root, or the right to trace other processes")
        figures = await working
        profile.requests += figures["rate"] * (seconds + 1)
        profile.processor += processor_time(service) - begun
        profile.add(found.read_text().splitlines())


def shares(profile: Profile) -> None:
    """Print what each layer, and each function of this package, has of all."""
    total = profile.layers.total()
    for title, counted in (("layer", profile.layers), (f"of it, {PACKAGE}", profile.functions)):
        print(f"| {title} | share |\n| --- | --- |")
        for name, count in counted.most_common(16):
            print(f"| {name} | {100 * count / total:.1f} % |")
        print()


def differences(ours: Profile, other: Profile, name: str) -> None:
    """Print what each layer takes of a request, in microseconds, and how much more it is with this package."""

    def row(title: str, one: float, another: float) -> str:
        return f"| {title} | {one:.1f} | {another:.1f} | {one - another:+.1f} |"

    rows = {kind: (ours.microseconds(kind), other.microseconds(kind)) for kind in ours.layers | other.layers}
    print(f"| µs of a request | {OURS} | {name} | more |\n| --- | ---: | ---: | ---: |")
    for kind, both in sorted(rows.items(), key=lambda item: item[1][1] - item[1][0]):
        print(row(kind, *both))
    print(row("**all**", *map(sum, zip(*rows.values(), strict=True))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=8, help="of one turn")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--beside", choices=[name for name in CANDIDATES if name != OURS], help="another candidate")
    options = parser.parse_args()
    candidates = [OURS] if options.beside is None else [OURS, options.beside]
    profiles = asyncio.run(
        sample(candidates, options.loop, clients=options.clients, seconds=options.seconds, turns=options.turns)
    )
    shares(profiles[OURS])
    if options.beside is not None:
        differences(profiles[OURS], profiles[options.beside], options.beside)


if __name__ == "__main__":
    main()
