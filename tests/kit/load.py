"""Load from a process of its own, over real sockets, that knows what became of each request.

``python -m tests.kit.load URL --rate 200 --seed 7 --patience 5 --paths '{"/read": 8, "/write": 2}'`` is an open loop:
arrivals do not wait for answers. It ends its arrivals when its standard input ends. Each try of a request that has
ended is one JSON line, times as ``time.monotonic()``, which on Linux is one clock for all processes. In a test::

    async with load(url, rate=200, paths={"/read": 1}, seed=seed) as run:
        ...

Like every child it imports nothing of the package: that would take longer than all else before it begins.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from .child import BEGUN, child, parent
from .clients import Answer, answer, head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .child import Child
    from .clients import Socket

DROPPED, NOT_CONNECTED, GAVE_UP = 0, -1, -2
"""Instead of a status: no whole answer came; no connection to the service; the client's patience was over."""

BATCH = 0.02
"""Seconds between two batches of results."""


class Result(NamedTuple):
    """One try of a request that has ended.

    ``status``: HTTP's, or one of DROPPED, NOT_CONNECTED, GAVE_UP. ``code``: which of our errors it was, from its body.
    ``id`` is this try's, ``first`` that of the request's first try. ``used``: its connection had served another.
    """

    at: float
    took: float
    path: str
    status: int
    retry_after: int | None
    id: int
    first: int
    used: bool = False
    code: str | None = None

    @property
    def end(self) -> float:
        """When its answer was there."""
        return self.at + self.took


def options(*, rate: float, paths: dict[str, float], seed: int, patience: float, **more: object) -> list[str]:
    """Options of the program."""
    known = {"rate": rate, "seed": seed, "patience": patience, "paths": json.dumps(paths), **more}
    return [f"--{name}={value}" for name, value in known.items()]


class Results(list[Result]):
    """What a load has met so far."""

    def hear(self, line: bytes | str) -> None:
        """One line of a load."""
        self.append(Result(**json.loads(line)))

    def between(self, start: float, end: float) -> list[Result]:
        """The requests that started then, of those that have ended."""
        return [result for result in self if start <= result.at < end]

    def statuses(self, *, start: float = float("-inf"), end: float = float("inf")) -> Counter[int]:
        """How often which status, of the requests that started then."""
        return Counter(result.status for result in self.between(start, end))


class Run:
    """A load that runs."""

    def __init__(self, process: Child, results: Results) -> None:
        self.results = results
        self.between = results.between
        self.statuses = results.statuses
        self.stop = process.stop
        self._process = process

    async def success_after(self, t: float, path: str | None = None, deadline: float = 30.0) -> Result:
        """The first answer 200 to a request that started after ``t``. Waits for it, ``deadline`` seconds at most."""
        seen, limit = 0, time.monotonic() + deadline
        while True:
            for result in self.results[seen:]:
                if result.status == 200 and result.at > t and path in (None, result.path):
                    return result
            seen = len(self.results)
            assert not self._process.ended, "the load has ended"
            assert time.monotonic() < limit, f"no success within {deadline:g} s: {self.statuses(start=t)}"
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def load(
    url: object, *, rate: float = 100.0, paths: dict[str, float], seed: int, patience: float = 8.0
) -> AsyncIterator[Run]:
    """Requests to ``url``, ``rate`` a second on average, the paths by their weights, until the block ends."""
    results = Results()
    arguments = options(rate=rate, paths=paths, seed=seed, patience=patience)
    async with child(__name__, url, *arguments, hear=results.hear) as process:
        yield Run(process, results)


class Clients:
    """The clients in the process: without number, each of which wants one answer.

    With ``fresh``, each has a connection of its own. A request that was dropped before any byte of an answer came is
    sent up to ``tries`` times, on a new connection, as a proxy does and as RFC 9110 (9.2.2) allows: it is a GET.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.lines: list[str] = []
        host, _, port = arguments.url.removeprefix("http://").strip("/").partition(":")
        self._address = host, int(port)
        self._paths = arguments.paths
        self._rate = arguments.rate
        self._rng = random.Random(arguments.seed)
        self._patience = arguments.patience
        self._headers = {"Connection": "close"} if arguments.fresh else {}
        self._tries = arguments.tries
        self._idle: list[Socket] = []
        # One that no other process has had: what /write inserts must be unique in the database.
        self._ids = itertools.count(os.getpid() << 32)

    async def arrive(self, ended: asyncio.StreamReader) -> None:
        """Begin requests until there is nobody to tell; return when the last has its result."""
        names, weights = list(self._paths), list(self._paths.values())
        async with asyncio.TaskGroup() as group:

            async def come() -> None:
                due = time.monotonic()
                while True:
                    due += self._rng.expovariate(self._rate)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    group.create_task(self._request(*self._rng.choices(names, weights)))

            coming = group.create_task(come())
            await ended.read()
            coming.cancel()

    async def _request(self, path: str) -> None:
        first = number = next(self._ids)
        for _ in range(self._tries):
            if not await self._try(path, number, first):
                break
            number = next(self._ids)

    async def _try(self, path: str, number: int, first: int) -> bool:
        """Whether it may be sent again."""
        at, status, begun = time.monotonic(), NOT_CONNECTED, b""
        got: Answer | None = None
        connected = self._kept() if number == first else None
        used = connected is not None
        try:
            async with asyncio.timeout(self._patience):
                connected = connected or await asyncio.open_connection(*self._address)
                status = DROPPED
                reader, writer = connected
                writer.write(head(f"{path}?id={number}", **self._headers))
                begun = await reader.readexactly(1)
                got = await answer(reader, begun)
                status = got.status
        except TimeoutError:
            status = GAVE_UP
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if connected is not None and got is not None and got.headers.get("connection", "").lower() != "close":
                self._idle.append(connected)
            elif connected is not None:
                connected[1].transport.abort()
        retry_after, code = told(got)
        result = Result(at, time.monotonic() - at, path, status, retry_after, number, first, used, code)
        self.lines.append(json.dumps(result._asdict()))
        return status == DROPPED and not begun

    def _kept(self) -> Socket | None:
        """A connection that is still open. Any, not the newest: so that some of them are idle for a while."""
        while self._idle:
            kept = self._idle.pop(self._rng.randrange(len(self._idle)))
            if not (kept[0].at_eof() or kept[1].is_closing()):
                return kept
            kept[1].transport.abort()
        return None


def told(got: Answer | None) -> tuple[int | None, str | None]:
    """When to come again, and which of our errors it was."""
    if got is None:
        return None, None
    code = json.loads(got.body)["code"] if "problem+json" in got.headers.get("content-type", "") else None
    return int(got.headers["retry-after"]) if "retry-after" in got.headers else None, code


async def main(arguments: argparse.Namespace) -> None:
    """Tell what the clients have met, until there is nobody to tell."""
    # Written by the loop: a reader that is slow, because its own loop is busy, must not stop the arrivals.
    out, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.Protocol, sys.stdout)
    ended = await parent()
    clients = Clients(arguments)

    async def tell() -> None:
        while True:
            await asyncio.sleep(BATCH)
            lines, clients.lines = clients.lines, []
            out.write("".join(line + "\n" for line in lines).encode())

    out.write(BEGUN.encode())
    telling = asyncio.create_task(tell())
    await clients.arrive(ended)
    telling.cancel()
    out.write("".join(line + "\n" for line in clients.lines).encode())
    out.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="http://HOST:PORT")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds after which a client gives up")
    parser.add_argument("--paths", type=json.loads, default={"/read": 1}, help="JSON: a path and its weight, ...")
    parser.add_argument("--fresh", type=int, default=0, help="1: a new connection for each request")
    parser.add_argument("--tries", type=int, default=1, help="how often what was dropped unanswered is sent")
    asyncio.run(main(parser.parse_args()))
