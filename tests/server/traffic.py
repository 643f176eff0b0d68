"""Constant load from a process of its own, that tells what became of each request as its client knows it.

``python -m tests.server.traffic PORT --rate 50 --paths '{"/query/0.05": 1}' --kept --seed 7``: an open loop, until its
standard input ends. ``--kept``: connections are kept and used again. A request that is dropped before any byte of an
answer came is sent again on a new connection, as a proxy does and as RFC 9110 (9.2.2) allows: it is a GET.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Server

TRIES = 5

DROPPED, REFUSED, GAVE_UP = 0, -1, -2
"""Instead of a status: bytes were sent, and no whole answer came; no connection; the client's patience was over."""

PATIENCE = 20.0
"""Seconds: longer than any answer takes here, shorter than a hang."""

Socket = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Result(NamedTuple):
    """What became of one try of a request. Its id ends with the number of the try. ``used``: by a request before it."""

    id: str
    at: float
    took: float
    path: str
    status: int
    used: bool


class Traffic:
    """A load that runs, and its results."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.results: list[Result] = []
        self._process = process
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), name="traffic")
        self._reader.start()

    def stop(self) -> None:
        """End the arrivals, and wait until every request has its result. Harmless when repeated."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()
        assert self._process.wait() == 0

    def statuses(self) -> Counter[int]:
        """How often which status."""
        return Counter(result.status for result in self.results)

    def lost(self, *servers: Server) -> list[Result]:
        """In flight: an application had begun with it, and no whole answer came."""
        began = set[str]().union(*(server.began for server in servers))
        return [result for result in self.results if result.status == DROPPED and result.id in began]

    def unseen(self, *servers: Server) -> list[Result]:
        """Dropped before any application has seen it: may be sent again, whatever it is."""
        lost = self.lost(*servers)
        return [result for result in self.results if result.status == DROPPED and result not in lost]

    def unanswered(self) -> list[Result]:
        """Requests to which no answer came, however often they were sent."""
        last = {result.id.rpartition(".")[0]: result for result in self.results}
        return [result for result in last.values() if result.status <= 0]

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self.results.append(Result(*json.loads(line)))


@contextlib.contextmanager
def traffic(server: Server, paths: dict[str, float], *, rate: float = 40, kept: bool = True) -> Iterator[Traffic]:
    """Requests to the server's port, ``rate`` a second, the paths by their weights, until the block ends."""
    command = [sys.executable, "-m", __name__, str(server.port), f"--rate={rate}", f"--paths={json.dumps(paths)}"]
    command += ["--kept"] if kept else []
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2]) as process:
        run = Traffic(process)
        try:
            yield run
        finally:
            run.stop()


class Clients:
    """What the process does."""

    def __init__(self, port: int, *, kept: bool) -> None:
        self._port = port
        self._kept = kept
        self._idle: list[Socket] = []
        self._ids = itertools.count()
        self._name = f"{'kept' if kept else 'new'}-{random.getrandbits(32):x}"

    async def arrive(self, rate: float, paths: dict[str, float]) -> None:
        """Begin requests at random moments until standard input ends; return when the last has its result."""
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not ended.is_set():
                due += random.expovariate(rate)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, due - time.monotonic())):
                        await ended.wait()
                        return
                group.create_task(self._request(next(self._ids), *random.choices(list(paths), list(paths.values()))))

    async def _request(self, number: int, path: str, tries: int = 0) -> None:
        at, status, name = time.monotonic(), REFUSED, f"{self._name}-{number}.{tries}"
        connected = None if tries else self._idle_one()
        used = connected is not None
        answered = b""
        kept = False
        try:
            async with asyncio.timeout(PATIENCE):
                if connected is None:
                    connected = await asyncio.open_connection("127.0.0.1", self._port)
                status = DROPPED
                reader, writer = connected
                close = "" if self._kept else "Connection: close\r\n"
                writer.write(f"GET {path}?id={name} HTTP/1.1\r\nHost: test\r\n{close}\r\n".encode())
                answered = await reader.readexactly(1)
                head = (answered + await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            status = int(head.split()[1])
            kept = self._kept and b"connection: close" not in head
        except TimeoutError:
            status = GAVE_UP
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if connected is not None and kept:
                self._idle.append(connected)
            elif connected is not None:
                connected[1].close()
        print(json.dumps([name, at, time.monotonic() - at, path, status, used]), flush=True)
        if status == DROPPED and not answered and tries + 1 < TRIES:
            await self._request(number, path, tries + 1)

    def _idle_one(self) -> Socket | None:
        """Any, not the newest: so that some of them are idle for a while."""
        while self._idle:
            reader, writer = self._idle.pop(random.randrange(len(self._idle)))
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--paths", type=json.loads, required=True)
    parser.add_argument("--kept", action="store_true")
    options: Any = parser.parse_args()
    asyncio.run(Clients(options.port, kept=options.kept).arrive(options.rate, options.paths))


if __name__ == "__main__":
    main()
