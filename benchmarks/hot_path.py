"""Where the time of a request goes: SELECT 1, sampled from outside with py-spy.

    python -m benchmarks.hot_path              shares by layer, and this package's by function
    python -m benchmarks.hot_path --loop uvloop --clients 100

A C function counts for the Python line that called it; the two system calls that send have rows of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import linecache
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

from .service import SCHEMA, Loop, running
from .wrk import load

FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(?::(?P<line>\d+))?\)$")

PACKAGE = "aiohttp_poolscope"

LAYERS = (PACKAGE, "aiohttp", "aiopg", "asyncio", "uvloop", "benchmarks")

CALLS = {
    "cursor.execute(": "psycopg2: sends the statement",
    "self._conn.poll()": "psycopg2: receives the answer",
    "method(*args": "psycopg2: reads the row",
    "self._sock.send(": "asyncio: sends the answer",
    "self._sock.recv(": "asyncio: receives the request",
    "self._selector.poll(": "asyncio: waits for events",
}
"""Code whose time is that of a C function: what the function does."""


def layer(file: str, line: str) -> str:
    """What a frame belongs to."""
    code = linecache.getline(file, int(line or 0))
    called = (does for call, does in CALLS.items() if call in code and "/benchmarks/" not in file)
    owner = (name for name in LAYERS if f"/{name}/" in file)
    return next(called, None) or next(owner, "the rest of Python")


async def sample(loop: Loop, clients: int, seconds: int) -> list[tuple[list[re.Match[str]], int]]:
    """Stacks, outermost first, and how often each was seen."""
    with EmbeddedPostgres() as server, tempfile.TemporaryDirectory() as folder:
        server.sql(SCHEMA)
        found = Path(folder) / "stacks"
        async with running("poolscope", server.dsn, loop=loop) as service:
            await load(f"{service.url}/one", clients=clients, seconds=1)
            working = asyncio.create_task(load(f"{service.url}/one", clients=clients, seconds=seconds + 1))
            spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(service.process.pid)]
            spy += ["--duration", str(seconds), "--rate", "500", "--format", "raw", "--full-filenames"]
            spy += ["--output", str(found)]
            process = await asyncio.create_subprocess_exec(*spy, stdout=asyncio.subprocess.DEVNULL)
            if await process.wait():
                raise RuntimeError("py-spy failed: it wants to be root, or the right to trace other processes")
            await working
        stacks = []
        for each in found.read_text().splitlines():
            frames, count = each.rsplit(" ", 1)
            matches = [FRAME.fullmatch(frame) for frame in frames.split(";")]
            stacks.append(([match for match in matches if match is not None], int(count)))
        return stacks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=8)
    options = parser.parse_args()
    stacks = asyncio.run(sample(options.loop, options.clients, options.seconds))
    layers: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for frames, count in stacks:
        last = frames[-1]
        kind = layer(last["file"], last["line"])
        layers[kind] += count
        if kind == PACKAGE:
            functions[f"{Path(last['file']).stem}: {last['function']}"] += count
    total = layers.total()
    for title, counted in (("layer", layers), (f"of it, {PACKAGE}", functions)):
        print(f"| {title} | share |\n| --- | --- |")
        for name, count in counted.most_common(16):
            print(f"| {name} | {100 * count / total:.1f} % |")
        print()


if __name__ == "__main__":
    sys.exit(main())
