"""The TCP sockets of a server's processes, as Linux shows them in /proc."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Server

CLOSE_WAIT = "08"


def inodes(pid: int) -> set[str]:
    """The sockets that a process has open; none if it has ended."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                kind, _, inode = str(descriptor.readlink()).partition(":")
                if kind == "socket":
                    found.add(inode.strip("[]"))
    return found


def half_closed() -> set[str]:
    """Those of which the other side has been closed, and this one not."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == CLOSE_WAIT}


LOOK = 0.02
"""Seconds between two looks."""

STALL = 0.1
"""Seconds that count of those from one look to the next: what holds up the watch holds up the server as well."""

LONGEST = 1.0
"""Seconds of that clock that a socket may stay half closed. Nearly always none is ever seen."""


class Watch:
    """How long the server's sockets have stayed in CLOSE_WAIT while it was watched, by a clock that stalls with it."""

    def __init__(self, server: Server) -> None:
        self.longest = self._now = 0.0
        self._looked = time.monotonic()
        self.looks = 0
        self.seen: set[str] = set()
        self._pids = [server.process.pid, *server.workers]
        self._since: dict[str, float] = {}

    def look(self) -> None:
        looked, self._looked = self._looked, time.monotonic()
        self._now += min(self._looked - looked, STALL)
        now = self._now
        there = half_closed() & set[str]().union(*map(inodes, self._pids))
        self._since = {inode: self._since.get(inode, now) for inode in there}
        self.seen |= there
        self.looks += 1
        self.longest = max([self.longest, *(now - since for since in self._since.values())])


@contextlib.contextmanager
def watched(server: Server) -> Iterator[Watch]:
    """Look at the sockets of the server again and again while the block runs."""
    watch, ended = Watch(server), threading.Event()

    def watching() -> None:
        while not ended.wait(LOOK):
            watch.look()

    thread = threading.Thread(target=watching, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
