"""Load from a process of its own, over real sockets: the test's loop is the service's, and must not slow it.

``python -m tests.faults.load URL --rate 200 --seed 7 --patience 5 --paths '{"/read": 8, "/write": 2}'`` is an open
loop: arrivals do not wait for answers. It ends its arrivals when its standard input ends. Each request that has ended
is one JSON line, times as ``time.monotonic()``, which on Linux is one clock for all processes. In a test::

    async with load(url, rate=200, paths={"/read": 1}, seed=seed) as run:
        ...
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DROPPED, NOT_CONNECTED, GAVE_UP = 0, -1, -2
"""Instead of a status: closed without an answer; no connection to the service; the client's patience was over."""

BATCH = 0.02
"""Seconds between two batches of results."""

Socket = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Result(NamedTuple):
    """One request that has ended.

    ``status``: HTTP's, or one of DROPPED, NOT_CONNECTED, GAVE_UP. ``code``: which of our errors it was, from its body.
    """

    at: float
    took: float
    path: str
    status: int
    retry_after: int | None
    id: int
    code: str | None = None

    @property
    def end(self) -> float:
        """When its answer was there."""
        return self.at + self.took


class Run:
    """A load that runs: what it has met so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.results: list[Result] = []
        self._process = process
        self._reader = asyncio.create_task(self._read())

    def between(self, start: float, end: float) -> list[Result]:
        """The requests that started then, of those that have ended."""
        return [result for result in self.results if start <= result.at < end]

    def statuses(self, *, start: float = float("-inf"), end: float = float("inf")) -> Counter[int]:
        """How often which status, of the requests that started then."""
        return Counter(result.status for result in self.between(start, end))

    async def success_after(self, t: float, path: str | None = None, deadline: float = 30.0) -> Result:
        """The first answer 200 to a request that started after ``t``. Waits for it, ``deadline`` seconds at most."""
        seen, limit = 0, time.monotonic() + deadline
        while True:
            for result in self.results[seen:]:
                if result.status == 200 and result.at > t and path in (None, result.path):
                    return result
            seen = len(self.results)
            assert not self._reader.done(), "the load has ended"
            assert time.monotonic() < limit, f"no success within {deadline:g} s: {self.statuses(start=t)}"
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """End the arrivals, and wait until every request under way has its result. Harmless when repeated."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reader
        assert await self._process.wait() == 0

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.results.append(Result(**json.loads(line)))


@contextlib.asynccontextmanager
async def load(
    url: object, *, rate: float = 100.0, paths: dict[str, float], seed: int, patience: float = 8.0
) -> AsyncIterator[Run]:
    """Requests to ``url``, ``rate`` a second on average, the paths by their weights, until the block ends."""
    options = {"rate": rate, "seed": seed, "patience": patience, "paths": json.dumps(paths)}
    command = [sys.executable, "-m", __name__, str(url), *(f"--{name}={value}" for name, value in options.items())]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"begun\n"
        run = Run(process)
        try:
            yield run
        finally:
            await run.stop()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Clients:
    """What the process does: clients without number, each of which wants one answer."""

    def __init__(self, url: str, paths: dict[str, float], seed: int, patience: float) -> None:
        self.lines: list[str] = []
        self._host, _, port = url.removeprefix("http://").strip("/").partition(":")
        self._port = int(port)
        self._paths = paths
        self._rng = random.Random(seed)
        self._patience = patience
        self._idle: list[Socket] = []
        # One that no other process has had: what /write inserts must be unique in the database.
        self._ids = itertools.count(os.getpid() << 32)

    async def arrive(self, rate: float, ended: asyncio.Event) -> None:
        """Begin requests at random moments until ``ended``; return when the last has its result."""
        names, weights = list(self._paths), list(self._paths.values())
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not ended.is_set():
                due += self._rng.expovariate(rate)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, due - time.monotonic())):
                        await ended.wait()
                        return
                (path,) = self._rng.choices(names, weights)
                group.create_task(self._request(path, next(self._ids)))

    async def _request(self, path: str, number: int) -> None:
        at, status, retry_after, code = time.monotonic(), NOT_CONNECTED, None, None
        used: Socket | None = None
        try:
            async with asyncio.timeout(self._patience):
                used = self._kept() or await asyncio.open_connection(self._host, self._port)
                status = DROPPED
                status, retry_after, code, keep = await self._exchange(used, f"{path}?id={number}")
                if keep:
                    self._idle.append(used)
                    used = None
        except TimeoutError:
            status = GAVE_UP
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if used is not None:
                used[1].transport.abort()
        result = Result(at, time.monotonic() - at, path, status, retry_after, number, code)
        self.lines.append(json.dumps(result._asdict()))

    def _kept(self) -> Socket | None:
        """The connection used last that is still open. One is enough for many requests that follow each other."""
        while self._idle:
            kept = self._idle.pop()
            if not (kept[0].at_eof() or kept[1].is_closing()):
                return kept
            kept[1].transport.abort()
        return None

    async def _exchange(self, used: Socket, target: str) -> tuple[int, int | None, str | None, bool]:
        reader, writer = used
        writer.write(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in rest)
        body = await reader.readexactly(int(headers["content-length"]))
        code = json.loads(body)["code"] if "problem+json" in headers["content-type"] else None
        retry_after = int(headers["retry-after"]) if "retry-after" in headers else None
        return int(first.split()[1]), retry_after, code, headers.get("connection") != "close"


async def main(arguments: argparse.Namespace) -> None:
    """Tell what the clients have met, until there is nobody to tell."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    # Written by the loop: a reader that is slow, because its own loop is busy, must not stop the arrivals.
    out, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    clients = Clients(arguments.url, arguments.paths, arguments.seed, arguments.patience)

    async def tell() -> None:
        while True:
            await asyncio.sleep(BATCH)
            lines, clients.lines = clients.lines, []
            out.write("".join(line + "\n" for line in lines).encode())

    async def wait_for_the_end() -> None:
        await commands.read()
        ended.set()

    out.write(b"begun\n")
    telling, waiting = asyncio.create_task(tell()), asyncio.create_task(wait_for_the_end())
    await clients.arrive(arguments.rate, ended)
    telling.cancel()
    await waiting
    out.write("".join(line + "\n" for line in clients.lines).encode())
    out.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="http://HOST:PORT")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds after which a client gives up")
    parser.add_argument("--paths", type=json.loads, default={"/read": 1}, help="JSON: a path and its weight, ...")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(parser.parse_args()))
