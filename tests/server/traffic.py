"""Constant load, as kit/load.py makes it, for tests that have no event loop; and whose fault it is what is dropped."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING

from tests.kit import load
from tests.kit.child import BEGUN, ROOT
from tests.kit.load import DROPPED, Result, Results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Server

TRIES = 5

PATIENCE = 20.0
"""Seconds: longer than any answer takes here, shorter than a hang."""


class Traffic:
    """A load that runs, and its results."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.results = Results()
        self.statuses = self.results.statuses
        self._process = process
        assert process.stdout is not None
        assert process.stdout.readline() == BEGUN
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), name="traffic")
        self._reader.start()

    def stop(self) -> None:
        """End the arrivals, and wait until every request has its result. Harmless when repeated."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()
        assert self._process.wait() == 0

    def lost(self, *servers: Server) -> list[Result]:
        """In flight: an application had begun with it, and no whole answer came."""
        began = set[int]().union(*(server.began for server in servers))
        return [result for result in self.results if result.status == DROPPED and result.id in began]

    def unseen(self, *servers: Server) -> list[Result]:
        """Dropped before any application has seen it: may be sent again, whatever it is."""
        lost = self.lost(*servers)
        return [result for result in self.results if result.status == DROPPED and result not in lost]

    def unanswered(self) -> list[Result]:
        """Requests to which no answer came, however often they were sent."""
        last = {result.first: result for result in self.results}
        return [result for result in last.values() if result.status <= 0]

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self.results.hear(line)


@contextlib.contextmanager
def traffic(server: Server, paths: dict[str, float], *, rate: float = 40, kept: bool = True) -> Iterator[Traffic]:
    """Requests to the server's port, ``rate`` a second, the paths by their weights, until the block ends."""
    seed = random.getrandbits(32)
    options = load.options(rate=rate, paths=paths, seed=seed, patience=PATIENCE, fresh=int(not kept), tries=TRIES)
    command = [sys.executable, "-m", load.__name__, f"http://127.0.0.1:{server.port}", *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        run = Traffic(process)
        try:
            yield run
        finally:
            run.stop()
