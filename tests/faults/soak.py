"""The soak: a service under load and under faults, for as long as one likes, and an audit at its end.

``python -m tests.faults.soak --minutes 10 --seed 7``: a PostgreSQL of its own, a wire in front of it that can
misbehave, the service of service.py in this process, clients that wait and clients that leave in others. Every few
seconds something is broken, one fault at a time, in an order that the seed decides. The exit code is 0 only if every
request was answered, every fault was recovered from, and nothing was left behind. Ctrl-C ends it in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from tests.kit import load
from tests.kit.child import child
from tests.kit.wire import wired_to

from .service import SCHEMA, application
from .soak_audit import audit, audit_after
from .soak_faults import FAULTS, ROLE, Stage
from .soak_report import Display, Report
from .soak_watch import Complaints, Findings, Served, Tally, Watch, descriptors, rss

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATHS = {
    "/read": 50.0, "/write": 15.0, "/transfer": 15.0, "/stream": 3.0, "/slow/0.05": 5.0, "/hold/0.05": 5.0,
    "/slow/1": 0.5, "/hold/1": 0.3, "/slow/6": 0.1, "/hold/4": 0.1,
}  # fmt: skip
"""What clients ask for. The second last is longer than statement_timeout, the last than leak_threshold."""

QUICK = frozenset(list(PATHS)[:6])
"""What is answered 200 whenever the database is well."""

SETTINGS: dict[str, Any] = {
    "minsize": 2, "maxsize": 10, "acquire_timeout": 2.0, "max_waiting": 200, "connect_timeout": 2.0,
    "statement_timeout": 3.0, "max_lifetime": 20.0, "idle_timeout": 5.0, "keepalive": 3.0, "check_after_idle": 0.2,
    "leak_threshold": 2.0, "max_lease": 10.0, "cancel_abandoned": True,
}  # fmt: skip
"""Short, so that everything that happens to a connection in a day happens in minutes."""

SERVER: dict[str, str | float | bool] = {"synchronous_commit": True, "max_connections": 40}
"""What was committed survives a crash of the server, as it does in production."""

SOON = 5.0
"""Seconds from the end of a fault to the first answer: the promise is one, the rest is for a busy machine."""

SETTLE = 1.5
"""Seconds from the end of a fault from which every request is served."""

PATIENCE = 8.0
"""Seconds after which a client gives up: later than anything that the pool may take."""


@contextlib.asynccontextmanager
async def served(stage: Stage, ends: Served) -> AsyncIterator[None]:
    """The service, on a real socket."""
    dsn = f"postgresql://{ROLE}@127.0.0.1:{stage.wire.port}/postgres?sslmode=disable"
    scope = poolscope.PoolScope(
        dsn, password=lambda: stage.password, application_name=f"soak-{os.getpid()}", **SETTINGS
    )
    app = application(scope)

    async def stream(request: web.Request) -> web.Response:
        rows = request["db"].stream("SELECT generate_series(1, 500)", size=100)
        return web.Response(text=str(sum([row[0] async for row in rows])))

    app.router.add_get("/stream", stream)
    app.middlewares.insert(0, ends.middleware)
    # The default would close a connection at the moment when its client thinks of using it again.
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=24 * 3600.0, shutdown_timeout=5.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        stage.scope, stage.url = scope, f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield
    finally:
        await runner.cleanup()


class Soak:
    """One run."""

    def __init__(self, arguments: argparse.Namespace, stage: Stage, acknowledged: IO[str]) -> None:
        self.arguments = arguments
        self.stage = stage
        self.acknowledged = acknowledged
        self.findings = Findings()
        self.ends = Served()
        self.tally = stage.tally = Tally(self.findings, acknowledged, QUICK)
        self.report = Report()
        self.watch: Watch
        self.left = 0
        self.begun = time.monotonic()
        self.warm: tuple[float, int] | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Everything from the start of the service to the audit behind its end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopped.set)
        complaints = Complaints(self.findings)
        async with child("tests.faults.soak_clients", "http://127.0.0.1:9", "--rate=0.001", hear=lambda _: None):
            pass  # a loop opens a descriptor or two for its first child, and keeps them
        gc.collect()
        before = set(descriptors()), len(asyncio.all_tasks())
        with complaints.heard():
            async with served(self.stage, self.ends):
                self.watch = Watch(self.stage.scope, self.stage.server.dsn, self.findings, self.ends)
                watching = asyncio.create_task(self.watch.run())
                await self._load()
                await audit(self)
                self.watch.stop()
                await watching
            gc.collect()
            await audit_after(self, before)
        said = ", ".join(f"{name} {count:,}" for name, count in complaints.said.items())
        self.report.tell("log", said or "nothing")
        self.report.tell("findings", len(self.findings.all), ok=not self.findings.all)

    async def _load(self) -> None:
        stage, rng, rate = self.stage, self.stage.rng, self.arguments.rate
        leaving = f"--rate={rate / 7}", f"--seed={rng.getrandbits(32)}"
        waiting = load.options(rate=rate, seed=rng.getrandbits(32), patience=PATIENCE, paths=PATHS)
        with Display(60 * self.arguments.minutes) as display:
            telling = asyncio.create_task(self._tell(display))
            async with (
                child("tests.faults.soak_clients", stage.url, *leaving, hear=self._hear) as stage.leavers,
                child(load.__name__, stage.url, *waiting, hear=self.tally.hear),
            ):
                await self._break()
            telling.cancel()
            await asyncio.wait((telling,))
            display.show(self.tally, self.watch, self.ends, "the end")

    def _hear(self, line: bytes) -> None:
        if line == b"over\n":
            self.stage.storm_over.set()
        else:
            self.left = int(line)

    async def _tell(self, display: Display) -> None:
        while True:
            await asyncio.sleep(display.every)
            display.show(self.tally, self.watch, self.ends, self.findings.during)

    async def _break(self) -> None:
        """One fault after the other, each kind as often as the others, until the time is over."""
        end = self.begun + 60 * self.arguments.minutes
        rng = self.stage.rng
        deck: list[str] = []
        self.tally.calm_from = time.monotonic() + SETTLE
        while not await self._calm(min(end, time.monotonic() + rng.uniform(0.7, 1.3) * self.arguments.calm)):
            if not deck:
                deck = list(self.arguments.faults)
                rng.shuffle(deck)
            await self._one(deck.pop())

    async def _calm(self, until: float) -> bool:
        """Wait; whether the end has come."""
        self.findings.during = "calm"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._stopped.wait()
        self.tally.calm_from = float("inf")
        now = time.monotonic()
        if self.warm is None and now - self.begun > min(60.0, 6 * self.arguments.minutes):
            gc.collect()
            self.warm = int(rss()), len(descriptors())
        return self._stopped.is_set() or now >= self.begun + 60 * self.arguments.minutes

    async def _one(self, name: str) -> None:
        """One fault, and the recovery from it."""
        self.findings.during = name
        self.watch.hidden = True
        try:
            over = await FAULTS[name](self.stage)
        except Exception as error:  # noqa: BLE001 - one that could not be made is a finding like others
            self.findings.add(f"the fault {name!r} failed", repr(error))
            over = None
        over = time.monotonic() if over is None else over
        self.watch.hidden = False
        self.findings.during = f"after {name}"
        try:
            first = await self.tally.success_after(over, 2 * SOON)
        except TimeoutError:
            self.findings.add(f"no answer 200 within {2 * SOON:g} s after {name!r}", repr(self.stage.scope))
            took = float("inf")
        else:
            took = first.end - over
            if took > SOON:
                self.findings.add(f"the first answer after {name!r} came late", f"{took:.3f} s")
        self.report.recoveries[name].append(took)
        self.tally.calm_from = max(over + SETTLE, time.monotonic())


def main() -> int:
    """0: everything was as it must be."""
    arguments = parsed()
    if arguments.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    python, loop = sys.version.split()[0], "uvloop" if arguments.uvloop else "asyncio"
    print(f"Seed {arguments.seed}, {arguments.minutes:g} minutes, Python {python}, {loop}", flush=True)
    with (
        EmbeddedPostgres(tcp=True, settings=SERVER) as server,
        wired_to(server.dsn) as wire,
        tempfile.TemporaryFile("w+") as acknowledged,
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        wire.queries = Forgetful()
        stage = Stage(server, wire, random.Random(arguments.seed), password="first")
        server.sql(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'first'; GRANT ALL ON SCHEMA public TO {ROLE}")
        server.sql(f"SET ROLE {ROLE};{SCHEMA}")
        soak = Soak(arguments, stage, acknowledged)
        runner.run(soak.run())
    return show(soak)


class Forgetful(list[str]):
    """The wire keeps every query that it has seen: this would be the memory that grows."""

    def append(self, _: str) -> None:
        pass


def show(soak: Soak) -> int:
    """The table."""
    arguments = soak.arguments
    print("", *soak.report.lines(), "", sep="\n")
    print(*soak.findings.lines(), sep="\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(soak.report.data(soak.findings), indent=1))
    again = (
        f"--minutes {arguments.minutes:g} --seed {arguments.seed} --rate {arguments.rate:g} --calm {arguments.calm:g}"
    )
    again += " --uvloop" if arguments.uvloop else ""
    again += f" --faults '{','.join(arguments.faults)}'" if arguments.faults != list(FAULTS) else ""
    verdict = "Everything came back" if soak.report.passed else "Something is wrong, see BAD above"
    print(f"\n{verdict}. Again: python -m tests.faults.soak {again}")
    return 0 if soak.report.passed else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of everything random")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop instead of asyncio's own loop")
    parser.add_argument("--json", metavar="FILE", help="the table for programs")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second, on average")
    parser.add_argument("--calm", type=float, default=4.0, help="seconds between two faults, on average")
    parser.add_argument("--faults", type=lambda it: it.split(","), default=list(FAULTS), help="only these: A,B,...")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
