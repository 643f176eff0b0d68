"""What the soak knows: how requests ended, what the pool and the process look like, and whatever was wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from array import array
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psycopg2

from tests.kit.audit import Ledger, unbalanced
from tests.kit.load import DROPPED, NOT_CONNECTED, Result

from .promises import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiohttp import web

    from aiohttp_poolscope import PoolScope
    from aiohttp_poolscope.pool import Lifecycle

PAGE = os.sysconf("SC_PAGE_SIZE") / 1024

LATE = 3.0
"""Seconds that a lease may last beyond max_lease: the housekeeper looks once a second, and the machine may be busy."""

ENDING = 2.0
"""Seconds that a backend whose connection is closed may live on: abandon_interval and a second."""

STALL = 0.15
"""Seconds between two looks at the pool, 0.02 if all is well, from which the machine had other things to do."""

LEAK_PER_REQUEST = 256.0
"""Bytes per request from which growth is a leak.

The smallest object that the pool makes for a request, a ScopedConnection, has about as much, and a request of aiohttp
has twenty times as much. It is also what the clients' sockets cost while there are more of them from burst to burst
(they stay open); that ends by itself, and without bursts 8 bytes per request were measured.
"""

LEAK_AT_LEAST = 6 * 1024.0
"""KiB in all from which growth is a leak: a burst alone makes the heap so much larger once, and for good."""

SHED_IN_CALM = 0.02
"""The part of the requests in calm seconds that may be shed: one in fifty."""

ENOUGH = 2000
"""Requests from which that is judged: in a short run one second in which others have the machine is most of it."""


class Findings:
    """Whatever was wrong: what, how often, when first, and during which fault."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.during = "start"
        self.all: dict[str, tuple[int, str, str]] = {}

    def add(self, what: str, detail: str = "") -> None:
        """One more. ``detail`` is kept of the first."""
        count, when, kept = self.all.get(what, (0, f"{time.monotonic() - self.begun:.1f} s, {self.during}", detail))
        self.all[what] = count + 1, when, kept

    def lines(self) -> Iterator[str]:
        """For people."""
        for what, (count, when, detail) in self.all.items():
            yield f"{what}: {count} times, first after {when}"
            yield from (f"    {line}" for line in detail.rstrip().splitlines()[-12:])


class Tally:
    """How the requests of those clients ended who wait for their answer. It keeps numbers only, however long it runs.

    ``acknowledged`` gets the ids of the writes that were answered 200. From ``calm_from`` on, a request to one of the
    ``quick`` paths is answered 200, or it is a finding; unless it was ``shed``, which a machine that stands still for
    a moment can bring about at any time: of these there may be a few.
    """

    def __init__(self, findings: Findings, acknowledged: IO[str], quick: frozenset[str]) -> None:
        self.statuses: Counter[int] = Counter()
        self.reads: list[float] = []
        self.calm_from = float("inf")
        self.in_calm = self.shed_in_calm = 0
        self._findings = findings
        self._acknowledged = acknowledged
        self._quick = quick
        self._wanted: tuple[float, asyncio.Future[Result]] | None = None

    def hear(self, line: bytes) -> None:
        """One line of a load."""
        result = Result(**json.loads(line))
        self.statuses[UNKNOWN_OUTCOME if result.code == UNKNOWN else result.status] += 1
        if result.status == 200:
            self._served(result)
        elif result.status in (DROPPED, NOT_CONNECTED, 500) and result.code != UNKNOWN:
            self._findings.add(f"a client that waited got {NAMES.get(result.status, result.status)}", str(result))
        if result.at > self.calm_from and result.path in self._quick:
            self.in_calm += 1
            if result.code == "pool-exhausted":
                self.shed_in_calm += 1
            elif result.status != 200:
                self._findings.add(f"not served in a calm second: {result.code or result.status}", str(result))

    @property
    def calm(self) -> bool:
        """Whether calm seconds were calm."""
        return self.in_calm < ENOUGH or self.shed_in_calm <= SHED_IN_CALM * self.in_calm

    def _served(self, result: Result) -> None:
        if result.path == "/write":
            self._acknowledged.write(f"{result.id}\n")
        elif result.path == "/read":
            self.reads.append(result.took)
        if self._wanted is not None and result.at > self._wanted[0] and result.path in self._quick:
            (_, wanted), self._wanted = self._wanted, None
            if not wanted.done():
                wanted.set_result(result)

    async def success_after(self, t: float, deadline: float) -> Result:
        """The first answer 200 to a request that started after ``t``; TimeoutError."""
        wanted: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._wanted = t, wanted
        async with asyncio.timeout(deadline):
            return await wanted


UNKNOWN_OUTCOME = -3

NAMES = {0: "dropped", -1: "refused", -2: "gave up", UNKNOWN_OUTCOME: "unknown outcome"}
"""Instead of a status."""


class Served:
    """The outermost middleware: how handlers ended, whoever asked; also for those who did not wait for it."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()

    @property
    def middleware(self) -> Any:
        """For ``app.middlewares``."""
        ends = self.ends

        async def counted(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> Any:
            end = "cancelled"
            try:
                response = await handler(request)
                unknown = UNKNOWN.encode() in (getattr(response, "body", None) or b"")
                end = "unknown outcome" if unknown else str(response.status)
            except Exception as error:
                end = f"500 ({type(error).__name__})"
                raise
            finally:
                ends[end] += 1
            return response

        counted.__middleware_version__ = 1  # type: ignore[attr-defined]  # what web.middleware does
        return counted


class Complaints(logging.Handler):
    """Everything that is said when something was forgotten: to the loop, to the log, by a warning."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.WARNING)
        self.said: Counter[str] = Counter()
        self._findings = findings

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen."""
        asyncio.get_running_loop().set_exception_handler(self._loop)
        before = sys.unraisablehook, threading.excepthook
        sys.unraisablehook = lambda it: self._findings.add(f"unraisable: {it.exc_value!r}", str(it.object))
        threading.excepthook = lambda it: self._findings.add(f"a thread ended: {it.exc_value!r}")
        root = logging.getLogger()
        root.addHandler(self)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = self._warning
                yield
                gc.collect()  # what nobody awaited or closed complains when it is collected
        finally:
            root.removeHandler(self)
            sys.unraisablehook, threading.excepthook = before

    def emit(self, record: logging.LogRecord) -> None:
        if record.threadName == "wire":  # the proxy's own loop: what it says of cut connections is no news
            return
        self.said[f"{record.name} {record.levelname}"] += 1
        ours = record.name == "aiohttp_poolscope"
        if record.exc_info or (record.levelno >= logging.ERROR and not ours):
            error = record.exc_info and record.exc_info[1]
            detail = "".join(traceback.format_exception(error)) if error else record.getMessage()
            self._findings.add(f"{record.name}: {error!r}" if error else f"{record.name}: {record.msg}", detail)

    def _loop(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        detail = "".join(traceback.format_exception(error)) if error else str(context)
        self._findings.add(f"the loop was told: {context['message']} {error!r}", detail)

    def _warning(self, message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        self._findings.add(f"{category.__name__}: {message}", f"{filename}:{lineno}")


class Watch:
    """Samples a service while it runs: the pool's own invariants, its backends from outside, its process.

    While the network hides the end of connections, ``hidden`` is true: whatever lives too long does so by that.
    """

    def __init__(self, scope: PoolScope, dsn: str, findings: Findings, served: Served) -> None:
        assert scope._run is not None
        self.lifecycle: Lifecycle = scope._run
        self.pool = self.lifecycle.pool
        self.hidden = False
        self.samples = self.looks_outside = 0
        self.most_in_use = self.most_waiting = self.most_backends = self.most_descriptors = 0
        self.longest_lease = self.longest_stall = 0.0
        self.stalls = 0
        self.requests, self.rss = array("d"), array("d")
        self.ledger = Ledger(scope)
        self._scope = scope
        self._dsn = dsn
        self._findings = findings
        self._served = served
        self._stopped = asyncio.Event()
        self._observer: Any = None
        self._unknown: dict[int, float] = {}
        self._looked = time.monotonic()

    async def run(self) -> None:
        """Until ``stop()``."""
        async with asyncio.TaskGroup() as group:
            for look, pause in ((self.look, 0.02), (self.look_at_process, 1.0), (self.look_outside, 0.25)):
                group.create_task(self._repeat(look, pause))

    def stop(self) -> None:
        """Look no more; ``backends()`` can still be asked."""
        self._stopped.set()

    def close(self) -> None:
        """Ask no more either."""
        if self._observer is not None:
            self._observer.close()
            self._observer = None

    async def _repeat(self, look: Callable[[], Awaitable[None]], pause: float) -> None:
        while not self._stopped.is_set():
            await look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopped.wait()

    async def look(self) -> None:
        """The pool's own invariants."""
        self.samples += 1
        now, before = time.monotonic(), self._looked
        self._looked = now
        self.stalls += now - before > STALL
        self.longest_stall = max(self.longest_stall, now - before)
        stats = self._scope.stats()
        for wrong in unbalanced(self.lifecycle):
            self._findings.add(wrong, f"{self._scope!r}, {stats}")
        self.most_in_use = max(self.most_in_use, stats.in_use)
        self.most_waiting = max(self.most_waiting, stats.waiting)

    async def look_at_process(self) -> None:
        """Its memory and descriptors, and its oldest lease."""
        self.requests.append(self._served.ends.total())
        self.rss.append(rss())
        self.most_descriptors = max(self.most_descriptors, len(descriptors()))
        limit = self._scope.config.max_lease
        for lease in self._scope.leases()[:1]:
            self.longest_lease = max(self.longest_lease, lease.held)
            if limit is not None and lease.held > limit + LATE:
                self._findings.add("a lease lives on beyond max_lease", repr(lease))

    async def look_outside(self) -> None:
        """The backends there are. Those the pool does not know of have just begun, or are about to end."""
        known = self._pids()
        found = await asyncio.to_thread(self.backends)
        known |= self._pids()
        if found is None or self.hidden:
            self._unknown.clear()
            return
        self.looks_outside += 1
        now, most = time.monotonic(), self.pool.gate.maxsize
        self._unknown = {pid: self._unknown.get(pid, now) for pid in found.keys() - known}
        self.most_backends = max(self.most_backends, len(found))
        if len(found) - len(self._unknown) > most:
            self._findings.add("more backends than maxsize", str(found))
        for pid, since in self._unknown.items():
            if now - since > ENDING:
                self._findings.add("a backend lives on that the pool does not know of", f"{pid}: {found[pid]}")

    def backends(self) -> dict[int, str] | None:
        """Pid and state of the pool's backends, seen over a connection of its own; None while there is no way there."""
        try:
            if self._observer is None:
                self._observer = psycopg2.connect(self._dsn, connect_timeout=5)
                self._observer.autocommit = True
            with self._observer.cursor() as cursor:
                cursor.execute(
                    "SELECT pid, state FROM pg_stat_activity WHERE application_name = %s",
                    (self._scope.config.application_name,),
                )
                return dict(cursor.fetchall())
        except psycopg2.Error:
            if self._observer is not None:
                self._observer.close()
            self._observer = None
            return None

    def _pids(self) -> set[int]:
        return {slot.link.raw.get_backend_pid() for slot in self.pool.gate.slots if not slot.link.closed}

    def growth(self) -> tuple[float, float]:
        """KiB per 1,000 requests over the second half of the samples, by a linear fit; and KiB in all."""
        half = len(self.rss) // 2
        x, y = self.requests[half:], self.rss[half:]
        if len(x) < 3 or x[-1] == x[0]:
            return 0.0, 0.0
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        slope = covariance / sum((a - mean_x) ** 2 for a in x)
        return slope * 1000, slope * (x[-1] - x[0])

    def leaks(self) -> bool:
        """Whether that is clearly a leak."""
        per_thousand, in_all = self.growth()
        return per_thousand * 1.024 > LEAK_PER_REQUEST and in_all > LEAK_AT_LEAST


def rss() -> float:
    """KiB of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def descriptors() -> dict[str, str]:
    """Those that this process has open, and what they are."""
    found = {}
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found[each.name] = str(each.readlink())
    return found
