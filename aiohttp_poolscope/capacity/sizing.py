"""Sizing: how many connections a load needs, and whether the server has them. Pure.

The formulas are those of the queue M/M/c (Erlang, 1917): requests come independently of each other, how long they hold
a connection varies as an exponential distribution does, and whoever finds all connections busy waits. Real leases
mostly vary less, and then fewer wait than is said here; real requests may come in bursts, and then more do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .limits import overdrawn

if TYPE_CHECKING:
    from .limits import Limits

__all__ = ("Advice", "Demand", "Plan", "Share", "connections_for", "erlang_c", "plan", "wait_quantile", "workers_for")

BUSY = 0.7
"""The part of its time that a process may work: the nearer to 1, the longer everything waits for it."""

MOST = 1_000_000
"""Busy connections for which a number is looked for: more is a slip of the keyboard, and would take for ever."""

NEARLY_ALL = 0.999
"""The share of requests whose longest wait is told: with few that wait at all, p99 would be 0."""

IN_FRONT_OF_PGBOUNCER = 2
"""Connections to PgBouncer for each of its own to the server: with more, clients queue there, first come, first
served, where nobody knows who has left (docs/pgbouncer.md has figures)."""


def erlang_c(connections: int, load: float) -> float:
    """The share of requests that wait when ``connections`` serve a ``load`` (rate times lease). 1.0: all do.

    By way of Erlang B, whose recursion needs no factorials: B(0) = 1, B(n) = load B(n-1) / (n + load B(n-1)).
    """
    _at_least("connections", connections, 1)
    _at_least("load", load, 0)
    blocked = 1.0
    for number in range(1, connections + 1):
        blocked = load * blocked / (number + load * blocked)
    return _waits(connections, load, blocked)


def connections_for(rate: float, lease: float, *, waiting: float = 0.01) -> int:
    """The fewest connections with which no more than the share ``waiting`` of the requests waits.

    ``rate`` in requests per second, ``lease`` the mean time in seconds for which one holds a connection. By Little's
    law rate times lease of them are busy on average; Erlang C says how many more it takes.
    """
    _at_least("rate", rate, 0)
    _at_least("lease", lease, 0)
    _between("waiting", waiting)
    load = rate * lease
    if load > MOST:
        raise ValueError(f"rate={rate!r} times lease={lease!r} are {load:.3g} busy connections: more than {MOST:,}")
    number, blocked = 0, 1.0
    while True:
        number += 1
        blocked = load * blocked / (number + load * blocked)
        if _waits(number, load, blocked) <= waiting:
            return number


def wait_quantile(connections: int, load: float, lease: float, q: float) -> float:
    """Seconds that the share ``q`` of the requests does not wait longer than; infinity if the queue only grows.

    P(wait > t) = erlang_c * exp(-(connections - load) * t / lease).
    """
    _between("q", q, zero=True)
    _at_least("lease", lease, 0)
    waits = erlang_c(connections, load)
    if load >= connections:
        return math.inf
    if waits <= 1 - q:
        return 0.0
    return math.log(waits / (1 - q)) * lease / (connections - load)


def workers_for(rate: float, cpu: float, *, busy: float = BUSY) -> int:
    """Processes, each on a core of its own, for ``rate`` requests per second of ``cpu`` seconds of processor time."""
    _at_least("rate", rate, 0)
    _at_least("cpu", cpu, 0)
    _above("busy", busy, 0, 1)
    return max(1, math.ceil(round(rate * cpu / busy, 9)))  # 0.7 / 0.7 is one process, whatever floats make of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be served. Raises ValueError, with the argument's name, for what cannot be."""

    rate: float
    """Requests per second that use a connection, on all hosts together, when most come."""
    lease: float
    """Seconds for which one holds its connection, on average: ``stats().lease``."""
    hosts: int = 1
    processes: int = 1
    """On each host."""
    reads: float = 0.0
    """The share of the requests that replicas may serve."""
    replicas: int = 0
    cpu: float | None = None
    """Seconds of processor time for a request, where the number of processes is to be checked."""
    waiting: float = 0.01
    """The share of requests that may wait for a connection."""
    budget: float = 0.8
    """The share of a server's connections that may be taken: as in PoolConfig."""
    pgbouncer: bool = False
    """Whether there is one before each server."""

    def __post_init__(self) -> None:
        for name in ("rate", "lease"):
            _above(name, getattr(self, name), 0)
        for name in ("hosts", "processes"):
            _at_least(name, getattr(self, name), 1)
        _at_least("replicas", self.replicas, 0)
        if self.cpu is not None:
            _at_least("cpu", self.cpu, 0)
        if not 0 <= self.reads <= 1:
            raise ValueError(f"reads must be a share from 0 to 1, not {self.reads!r}")
        _between("waiting", self.waiting)
        _above("budget", self.budget, 0, 1)
        if self.reads and not self.replicas:
            raise ValueError(f"reads={self.reads!r} needs replicas: with none of them the primary serves everything")

    @property
    def everywhere(self) -> int:
        """Processes on all hosts."""
        return self.hosts * self.processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One pool in every process, and the servers of one kind (the primary, or the replicas) that it goes to."""

    rate: float
    """Requests per second for one such server."""
    busy: float
    """Its connections that are busy on average."""
    processes: int
    """That come to one such server: they spread over the replicas."""
    rate_of_process: float
    minsize: int
    maxsize: int
    """Of the pool in each process."""
    connections: int
    """What all processes open at most, to one such server or to its PgBouncer."""
    allowed: int
    """What one such server may give: the budget's part of what it has."""
    waits: float
    """The share of a process's requests that waits; 1.0 if the queue only grows."""
    longest_wait: float
    """Seconds that 999 of 1000 do not wait longer than; infinity if the queue only grows."""
    default_pool_size: int | None = None
    """Of PgBouncer, where one is used or needed."""
    problem: str | None = None
    """Why it does not fit, and what can be done."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to set, and why."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to set for a demand, and what is in its way."""

    primary: Share
    replica: Share | None
    workers: int | None
    """Processes needed on all hosts, as far as the processor counts."""
    advice: tuple[Advice, ...]
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the servers have enough for all of it."""
        return not self.problems


def plan(demand: Demand, limits: Limits) -> Plan:
    """What to set, given what a server has; a replica is taken to have as much as the primary.

    (It must: a standby with less than its primary's ``max_connections`` does not start.)
    """
    primary = _share_of(demand, limits, rate=demand.rate * (1 - demand.reads), servers=1)
    advice = [*_pool_advice("", primary, demand), *_pgbouncer_advice("", primary)]
    problems = [primary.problem]
    replica = None
    if demand.reads:
        rate = demand.rate * demand.reads
        replica = _share_of(demand, limits, rate=rate, servers=demand.replicas)
        advice += [
            *_pool_advice("replica: ", replica, demand),
            *_pgbouncer_advice("replica: ", replica),
            _primary_alone(demand),
        ]
        problems.append(replica.problem and f"each replica: {replica.problem}")
    workers = None
    if demand.cpu is not None:
        workers = workers_for(demand.rate, demand.cpu)
        why = f"{demand.rate:g}/s of {seconds(demand.cpu)} processor time, {BUSY:.0%} busy, each on a core of its own"
        advice.append(Advice("workers, all hosts", f"{workers}", why))
        if workers > demand.everywhere:
            problems.append(f"{demand.everywhere} processes are too few: the processor time needs {workers}")
    found = tuple(problem for problem in problems if problem)
    return Plan(primary=primary, replica=replica, workers=workers, advice=tuple(advice), problems=found)


def _share_of(demand: Demand, limits: Limits, *, rate: float, servers: int) -> Share:
    """The pool in each process for ``rate`` requests per second in all, spread over some servers."""
    each = rate / demand.everywhere
    load = each * demand.lease
    wanted = maxsize = connections_for(each, demand.lease, waiting=demand.waiting)
    on_one = math.ceil(demand.everywhere / servers)  # the processes spread over the servers
    allowed = int(limits.available * demand.budget)
    said = overdrawn(limits, processes=on_one, maxsize=wanted, budget=demand.budget)
    default_pool_size = problem = None
    if said is not None or demand.pgbouncer:
        shared = connections_for(rate / servers, demand.lease, waiting=demand.waiting)
        half = math.ceil(on_one * wanted / IN_FRONT_OF_PGBOUNCER)
        default_pool_size = min(max(shared, half), max(1, allowed))
        maxsize = min(wanted, max(1, IN_FRONT_OF_PGBOUNCER * default_pool_size // on_one))
        if shared > allowed:
            problem = (
                f"{rate / servers:g}/s of {seconds(demand.lease)} need {shared} connections even if all processes "
                f"share them, and the server may give {allowed}. Shorten the leases, read from more replicas, or "
                "raise max_connections"
            )
        elif maxsize <= load:
            problem = (
                f"{each:g}/s of {seconds(demand.lease)} in one process keep {load:.3g} connections to one server busy, "
                f"and {maxsize} are as many as make sense in front of {default_pool_size}. Run more processes"
            )
        elif not demand.pgbouncer:
            problem = f"{said}. {_without_pgbouncer(demand, load, allowed // on_one)}"
    return Share(
        rate=rate / servers,
        busy=rate / servers * demand.lease,
        processes=on_one,
        rate_of_process=each,
        minsize=min(maxsize, math.ceil(load)),
        maxsize=maxsize,
        connections=on_one * maxsize,
        allowed=allowed,
        waits=erlang_c(maxsize, load),
        longest_wait=wait_quantile(maxsize, load, demand.lease, NEARLY_ALL),
        default_pool_size=default_pool_size,
        problem=problem,
    )


def _without_pgbouncer(demand: Demand, load: float, maxsize: int) -> str:
    if not maxsize:
        return "Without PgBouncer there is not even one for each process"
    if maxsize <= load:
        return f"Without PgBouncer, maxsize {maxsize} is too little for {load:.1f} busy ones in each process"
    return f"With maxsize {maxsize} and no PgBouncer, {_waiting(maxsize, load, demand.lease)}"


def _waiting(maxsize: int, load: float, lease: float) -> str:
    longest = seconds(wait_quantile(maxsize, load, lease, NEARLY_ALL))
    return f"{erlang_c(maxsize, load):.2%} of the requests wait, 999 of 1000 at most {longest}"


def _pool_advice(prefix: str, share: Share, demand: Demand) -> list[Advice]:
    load, lease = share.rate_of_process * demand.lease, seconds(demand.lease)
    waiting = _waiting(share.maxsize, load, demand.lease)
    maxsize = f"in each process, for {share.rate_of_process:g}/s x {lease} = {load:.2g} busy ones: {waiting}"
    busy = f"{share.rate:g}/s x {lease} = {share.busy:.2g} are busy"
    to = f"to one server, {share.allowed} allowed" if share.default_pool_size is None else "to PgBouncer"
    return [
        Advice(f"{prefix}maxsize", f"{share.maxsize}", maxsize),
        Advice(f"{prefix}minsize", f"{share.minsize}", "in each process: what is busy on average"),
        Advice(f"{prefix}processes", f"{share.processes}", "that come to one server, from all hosts"),
        Advice(f"{prefix}connections", f"{share.connections}", f"at most, {to}; {busy}"),
    ]


def _primary_alone(demand: Demand) -> Advice:
    alone = connections_for(demand.rate / demand.everywhere, demand.lease, waiting=demand.waiting)
    return Advice("primary alone", f"{alone}", "the maxsize that it would take while no replica answers")


def _pgbouncer_advice(prefix: str, share: Share) -> list[Advice]:
    if share.default_pool_size is None:
        return []
    why = f"of PgBouncer, {share.allowed} allowed; max_client_conn above {share.connections}; pgbouncer=True here"
    return [Advice(f"{prefix}default_pool_size", f"{share.default_pool_size}", why)]


def seconds(value: float) -> str:
    """A duration, to be read."""
    if math.isinf(value):
        return "for ever"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _waits(connections: int, load: float, blocked: float) -> float:
    """Erlang C from Erlang B."""
    if load >= connections:
        return 1.0
    busy = load / connections
    return blocked / (1 - busy * (1 - blocked))


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least {least}, not {value!r}")


def _above(name: str, value: float, least: float, most: float = math.inf) -> None:
    if not (least < value <= most and value < math.inf):
        raise ValueError(f"{name} must be a number above {least}{_up_to(most)}, not {value!r}")


def _between(name: str, value: float, *, zero: bool = False) -> None:
    if not (0 < value < 1 or (zero and value == 0)):
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0 and below 1, not {value!r}")


def _up_to(most: float) -> str:
    return "" if math.isinf(most) else f", {most} at most"
