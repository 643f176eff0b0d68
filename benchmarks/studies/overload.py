"""Overload: what is still served when more is asked than can be, and how soon all is well again afterwards.

The clients are a crowd (``crowd.py``): they come at random moments and give up after PATIENCE. *Capacity* is what
poolscope serves to a closed loop of CLIENTS clients, who always want something but never more than they can wait for;
it is measured in the process that is then overloaded, and each load is a multiple of it.

- overload: 3 and 10 times the capacity, then AFTERWARDS of it; with queries of 10 ms, where the processor may become
  the limit, and with queries of 100 ms, where only the connections are
- slow database: 0.6 times the capacity, while each query takes ten times as long
- restart: 0.6 times the capacity; PostgreSQL is away for about two seconds, and then three times the capacity comes
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from benchmarks.load.crowd import LATE, STEP, PhaseResult, Processor, crowd
from benchmarks.load.keepalive import Server
from benchmarks.services.service import Service, running
from benchmarks.services.work import CONNECTIONS
from benchmarks.study import Bench, Figures, Goal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

STUDY = "overload"
OURS, BY_HAND, FIFO, NO_GATE = "poolscope", "by hand", "poolscope, fifo", "poolscope, no gate"
ALONE = "aiohttp alone"
"""Refuses everybody, and has nothing else to do: where it cannot answer in time, no service in one process can."""

CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("poolscope", {}),
    FIFO: ("poolscope", {"queue_target": None}),
    NO_GATE: ("poolscope", {"queue_target": None, "max_waiting": 1_000_000}),
    BY_HAND: ("by hand", {}),
    ALONE: (ALONE, {}),
}
"""A service each, and its settings: "fifo" serves in order and refuses beyond ``max_waiting``, "no gate" never does."""

PATIENCE = 1.0
CLIENTS = 20
AFTERWARDS, NORMAL = 0.45, 0.6
SHORT, LONG = 0.01, 0.1
"""Seconds of a query."""

WARM, OVERLOAD, QUICK, FALL = 0.5, 4.0, 3.0, 2.5
BEFORE, SLOW, AWAY, HERD = 1.0, 10.0, 2.0, 2.0
CAPACITY_RUN = {SHORT: 1.2, LONG: 2.0}
SERIES_STEP = 0.25
"""Seconds of a step of the time series in the notes."""

START_TAKES = 0.2
"""Seconds that PostgreSQL needs to start, about: it is started so much before it shall be back."""


STARVED = 0.25
"""The part of the time that the service could have run but had no processor. Above this, and beside a crowd that takes
half of one, the machine has other work: neither the service nor its database was the limit. Such runs are noted."""


@dataclass(frozen=True)
class Capacity:
    """What poolscope serves to a closed loop, per second, and the processor seconds of one such request."""

    rate: float
    cpu: float


@dataclass(frozen=True)
class Case:
    """One load. ``of``: the query that the capacity is of; ``watched``: the phase that ``goodput`` is of."""

    name: str
    of: float
    watched: str
    baselines: tuple[str, ...] = ()
    """Candidates besides poolscope; they run in the first round only: the worst of them takes nothing but time."""
    factor: float = 0.0
    restarts: bool = False
    seldom: bool = False
    """Left out of every third round: it takes long, and varies little."""

    @property
    def queries(self) -> tuple[float, ...]:
        """Those whose capacity is needed: the load of a database that becomes slow is given by what it was before."""
        return (self.of,) if self.factor or self.of == SHORT else (SHORT, self.of)

    def phases(self, capacity: dict[float, Capacity], *, quick: bool = False) -> list[tuple[str, str, float, float]]:
        """What the crowd does."""
        if self.factor:
            rate = capacity[self.of].rate
            return [
                ("before", _sleep(self.of), NORMAL * rate, WARM),
                ("overload", _sleep(self.of), self.factor * rate, QUICK if quick else OVERLOAD),
                ("afterwards", _sleep(self.of), AFTERWARDS * rate, FALL),
            ]
        rate = capacity[SHORT].rate
        before = ("before", _sleep(SHORT), NORMAL * rate, BEFORE)
        if not self.restarts:
            slow = ("slow", _sleep(LONG), NORMAL * rate, SLOW)
            return [before, slow, ("afterwards", _sleep(SHORT), NORMAL * rate, FALL)]
        away = ("away", _sleep(SHORT), NORMAL * rate, AWAY)
        herd = ("herd", _sleep(SHORT), 3 * rate, HERD)
        return [before, away, herd, ("afterwards", _sleep(SHORT), AFTERWARDS * rate, FALL)]


CASES = (
    Case("3 x, 10 ms", SHORT, "overload", (BY_HAND, FIFO, NO_GATE), factor=3),
    Case("10 x, 10 ms", SHORT, "overload", (BY_HAND, ALONE), factor=10),
    Case("3 x, 100 ms", LONG, "overload", (BY_HAND,), factor=3),
    Case("10 x, 100 ms", LONG, "overload", factor=10),
    Case("slow database", LONG, "slow", seldom=True),
    Case("restart", SHORT, "herd", restarts=True, seldom=True),
)


def _goals() -> Iterator[Goal]:
    for case in CASES:
        yield Goal(STUDY, case.name, OURS, "recovered", "at least", 0.99)
        # Before the queue is found to stand, eight leases have passed: of 100 ms each, that is nearly the patience.
        yield Goal(STUDY, case.name, OURS, "answered", "at least", 0.99 if case.of == SHORT else 0.95)
        yield Goal(STUDY, case.name, OURS, "late_p99", "at most", LATE)
        if not case.restarts:
            yield Goal(STUDY, case.name, OURS, "goodput", "at least", 0.93, by="capacity")
        if case.factor:
            yield Goal(STUDY, case.name, OURS, "p50", "at most", 5 * case.of)


GOALS = tuple(_goals())


async def measure(bench: Bench) -> None:
    """All cases; ``bench.quick``: the first one, once, against what is written by hand."""
    for number in range(1 if bench.quick else bench.rounds):
        for case in CASES[:1] if bench.quick else CASES:
            if not (case.seldom and number % 3 == 1):
                baselines = case.baselines[: 1 if bench.quick else None] if number == 0 else ()
                await _round(bench, case, baselines, number)


async def _round(bench: Bench, case: Case, baselines: tuple[str, ...], number: int) -> None:
    found: dict[float, Capacity] = {}
    for candidate in (OURS, *baselines):  # ours first: the load of all is a multiple of its capacity
        bench.tell(f"{STUDY}: {case.name}: {candidate}, round {number + 1}")
        name, settings = CANDIDATES[candidate]
        away: Figures = {}
        with _database(bench, own=case.restarts) as (dsn, server):
            async with running(name, dsn, **settings) as service:
                own = found if candidate == ALONE else await _capacities(service, case)
                found = found or own
                results = await crowd(
                    service.url,
                    case.phases(found, quick=bench.quick),
                    patience=PATIENCE,
                    seed=f"{bench.seed} {case.name} {number}",
                    pid=service.process.pid,
                    meanwhile=None if server is None else _restart(server, away),
                    may_be_late=True,  # it is a figure with a goal of its own
                )
                await _end(service)
        figures = _figures(case, {result.name: result for result in results}, found[case.of], own[case.of])
        bench.add(STUDY, case.name, candidate, number, figures | away)
        if figures["starved"] > STARVED:
            bench.notes.setdefault("overload starved", []).append(f"{case.name}: {candidate}, round {number + 1}")
        series = bench.notes.setdefault("overload series", {}).setdefault(case.name, {})
        series.setdefault(candidate, _series(results))


async def _capacities(service: Service, case: Case) -> dict[float, Capacity]:
    return {query: await find_capacity(service, query) for query in case.queries}


async def find_capacity(service: Service, query: float) -> Capacity:
    """Ask with CLIENTS clients, each again as soon as it is answered. A service in use is also what overload meets."""
    server = Server(service.process, service.port)
    moments: list[float] = []
    end = time.monotonic() + CAPACITY_RUN[query]

    async def client() -> None:
        while time.monotonic() < end:
            said, _ = await server.ask(query, 5.0)
            if said != "200":
                raise RuntimeError(f"{CLIENTS} clients are no overload, but one was told {said}")
            moments.append(time.monotonic())

    before = Processor.of(service.process.pid)
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    spent = Processor.of(service.process.pid).since(before)
    for wire in server.free:
        wire.transport.abort()
    # The first ones, one for each connection, end together: from the last of these on there is no ragged edge.
    rate = (len(moments) - CONNECTIONS) / (moments[-1] - moments[CONNECTIONS - 1])
    return Capacity(rate, spent.used / len(moments))


def _figures(case: Case, results: dict[str, PhaseResult], capacity: Capacity, own: Capacity) -> Figures:
    during, after = results[case.watched], results["afterwards"]
    figures = {
        "capacity": capacity.rate,
        "offered": during.arrivals / during.seconds,
        "goodput": during.goodput,
        "answered": during.answered,
        "refused": during.refused / during.seconds,
        "gave_up": during.gave_up / during.seconds,
        "dropped": during.dropped / during.seconds,
        "failed": during.failed / during.seconds,
        "recovered": after.recovered(),
        "recovery_time": after.recovery_time(),
        "served_cpu": own.cpu * 1e6,
        "late_p99": max(during.late_p99, after.late_p99),
        "busy": during.cpu / during.seconds,
        "starved": during.cpu_waited / during.seconds,
        "stolen": during.cpu_stolen / during.seconds,
    }
    if during.served:
        figures |= {"p50": during.p50, "p99": during.p99}
    if during.refused:
        figures |= {"refused_p50": during.refused_p50, "refused_p99": during.refused_p99}
        # µs; whatever else the service did meanwhile, for clients who gave up, say, is counted to the refused.
        spent = during.cpu - during.goodput * during.seconds * own.cpu
        figures["refusal_cpu"] = spent / during.refused * 1e6
    return figures


def _series(results: list[PhaseResult]) -> dict[str, Any]:
    """The whole run, per SERIES_STEP: how many came, how many of these were served, and answers of 200 given."""
    each = round(SERIES_STEP / STEP)

    def joined(name: str) -> list[int]:
        values = [value for result in results for value in getattr(result, name)]
        return [sum(values[start : start + each]) for start in range(0, len(values), each)]

    return {
        "step": SERIES_STEP,
        "arrivals": joined("series_arrivals"),
        "served": joined("series_served"),
        "answers": joined("series_answers"),
        "phases": [(result.name, result.seconds, result.rate) for result in results],
    }


@contextmanager
def _database(bench: Bench, *, own: bool) -> Iterator[tuple[str, EmbeddedPostgres | None]]:
    if not own:
        yield bench.dsn, None
        return
    with EmbeddedPostgres(settings={"max_connections": 100}) as server:
        yield server.dsn, server


def _restart(server: EmbeddedPostgres, found: Figures) -> Callable[[], Awaitable[None]]:
    async def restart() -> None:
        await asyncio.sleep(BEFORE)
        begun = time.monotonic()
        await asyncio.to_thread(server.stop, "fast")
        await asyncio.sleep(max(0.0, begun + AWAY - START_TAKES - time.monotonic()))
        await asyncio.to_thread(server.start)
        found["away"] = time.monotonic() - begun

    return restart


async def _end(service: Service) -> None:
    """How it ends is no question here, and with a thousand clients in its queue it may take long."""
    service.process.kill()
    await service.process.wait()


def _sleep(seconds: float) -> str:
    return f"/sleep?seconds={seconds}"
