"""A discrete-event simulation of the real Gate: requests come, wait, are served or not; no sockets, no event loop.

A *load* is a list of requests, drawn from a seed: when each comes, how long it will hold a connection, how long its
client waits for the answer. Every overload policy gets the same requests.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp_poolscope.gate import Gate, Outcome, Slot, Waiter

SWEEP = 0.05
"""Seconds between the housekeeper's looks at the queue, while somebody waits."""

STALL = 0.3
"""Seconds for which the event loop does nothing, in a stall."""

REOPENING = 0.002
"""Seconds that each connection takes to open after an outage."""

Draw = Callable[[random.Random], float]


@dataclass(frozen=True)
class Load:
    """What comes. ``phases``: seconds, and the load in that time as a multiple of the capacity."""

    name: str
    phases: tuple[tuple[float, float], ...]
    lease: float = 0.01
    """Seconds: the mean of ``service``."""
    patience: float = 1.0
    service: Draw | None = None
    """How long a connection is held; None: always ``lease``."""
    maxsize: int = 10
    burst: int = 0
    """So many come at once, at the very beginning."""
    strays: float = 0.0
    """The share of clients that leave for reasons of their own, at any moment of the first two seconds."""
    slow: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """From, until, and how many times as long a connection is held by whoever gets it in that time."""
    away: tuple[float, float] | None = None
    """From and until: there is no connection."""
    stalls: tuple[float, ...] = ()
    """When the event loop stands still."""
    processor: float = 0.0
    """Seconds of the one processor that each arrival and each answer cost."""
    servers: int = 0
    """Server connections of a PgBouncer that all connections share; 0: there is none."""

    @property
    def capacity(self) -> float:
        """Requests a second that can be served."""
        return (self.servers or self.maxsize) / self.lease

    @property
    def length(self) -> float:
        """Seconds in which requests come."""
        return sum(seconds for seconds, _ in self.phases)

    def requests(self, seed: int) -> list[tuple[float, float, float]]:
        """When, for how long, and how patient: Poisson arrivals in each phase."""
        rng = random.Random(f"{seed} {self.name}")
        times = [0.0] * self.burst
        begin = 0.0
        for seconds, multiple in self.phases:
            now, end = begin, begin + seconds
            while multiple and (now := now + rng.expovariate(multiple * self.capacity)) < end:
                times.append(now)
            begin = end
        service = self.service or (lambda _: self.lease)
        return [
            (at, service(rng), rng.uniform(0.0, 2.0) if rng.random() < self.strays else self.patience) for at in times
        ]


@dataclass
class Result:
    """What became of the requests."""

    load: Load
    arrived: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    good: list[tuple[float, float]] = field(default_factory=list)
    """When each that was answered in time came, and when it was answered."""
    refused: list[tuple[float, float]] = field(default_factory=list)
    """When each whose client was told no came, and when it was told."""

    def goodput(self, begin: float = 0.0, end: float = float("inf")) -> float:
        """Answers in time, given in that time, as a share of the capacity."""
        end = min(end, self.load.length)
        return sum(begin <= at < end for _, at in self.good) / (end - begin) / self.load.capacity

    def in_time(self, begin: float = 0.0, end: float = float("inf")) -> float:
        """Of those who came in that time, the share that was answered in time."""
        came = sum(begin <= at < end for at in self.arrived)
        return sum(begin <= at < end for at, _ in self.good) / came if came else 0.0

    def told_no(self) -> float:
        """The share that was refused."""
        return len(self.refused) / len(self.arrived)

    def quantile(self, q: float, begin: float = 0.0, end: float = float("inf")) -> float:
        """Seconds to the answer, of those answered in time who came in that time."""
        took = sorted(answered - came for came, answered in self.good if begin <= came < end)
        return took[min(len(took) - 1, int(q * len(took)))] if took else float("nan")

    def first_no(self, begin: float) -> float:
        """Seconds from ``begin`` to the first refusal."""
        return min((at - begin for _, at in self.refused if at >= begin), default=float("nan"))


class Request(Waiter[int]):
    """Somebody in the queue."""

    __slots__ = ("arrived", "deadline", "service", "world")

    def __init__(self, world: World, arrived: float, service: float, patience: float) -> None:
        super().__init__()
        self.world = world
        self.arrived = arrived
        self.service = service
        self.deadline = arrived + patience

    @property
    def left(self) -> bool:
        """Whether its client has left."""
        return self.world.now >= self.deadline

    def client_gone(self) -> bool:
        return self.world.looks_for_clients and self.left

    def wake(self) -> None:
        self.world.woken.append(self)


class World:
    """One run: a gate, a load, and the time."""

    def __init__(
        self, gate: Gate[int], load: Load, *, acquire_timeout: float = 5.0, looks_for_clients: bool = True
    ) -> None:
        self.gate = gate
        self.load = load
        self.acquire_timeout = acquire_timeout
        self.looks_for_clients = looks_for_clients
        self.now = 0.0
        self.busy_until = 0.0
        self.woken: list[Request] = []
        self.agenda: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.entries = 0
        self.timers: deque[Request] = deque()
        self.sweeping = False
        self.held: dict[Slot[int], Request] = {}
        self.behind: deque[tuple[Slot[int], Request]] = deque()
        self.running = 0
        self.result = Result(load)

    def at(self, when: float, what: Callable[..., None], *arguments: object) -> None:
        """Do that then."""
        self.entries += 1
        heapq.heappush(self.agenda, (when, self.entries, what, arguments))

    def run(self, seed: int = 1) -> Result:
        """All of it, until every request has its end."""
        load, agenda = self.load, self.agenda
        for link in range(load.maxsize):
            self.connect(link)
        for when in load.stalls:
            self.at(when, self.stall)
        if load.away:
            self.at(load.away[0], self.disconnect)
            for link in range(load.maxsize):
                self.at(load.away[1] + link * REOPENING, self.connect, link)
        for arrived, service, patience in load.requests(seed):
            self.result.arrived.append(arrived)
            while agenda and agenda[0][0] <= arrived:
                self.step()
            self.now = max(arrived, self.busy_until)
            self.arrive(Request(self, arrived, service, patience))
        while agenda:
            self.step()
        return self.result

    def step(self) -> None:
        """What is next on the agenda. While the processor is busy nothing is noticed."""
        when, _, what, arguments = heapq.heappop(self.agenda)
        self.now = max(when, self.busy_until)
        what(*arguments)
        self.attend()

    def attend(self) -> None:
        """Those who were woken go on."""
        while self.woken:
            woken, self.woken = self.woken, []
            for request in woken:
                if request.outcome is Outcome.LENT:
                    self.begin(self.gate.claim(request), request)
                else:
                    self.turn_away(request)

    # Requests.

    def arrive(self, request: Request) -> None:
        """Borrow, or queue up."""
        self.busy_until = self.now + self.load.processor
        slot = self.gate.try_acquire(self.now)
        if slot is not None:
            self.begin(slot, request)
            return
        self.gate.make_room()
        self.gate.join(request, self.now)
        self.attend()  # a full queue that stands has shed somebody
        if request.outcome is not None:
            self.turn_away(request)
            return
        self.timers.append(request)
        if len(self.timers) == 1 and self.acquire_timeout < float("inf"):
            self.at(self.now + self.acquire_timeout, self.time_out)
        if not self.sweeping:
            self.sweeping = True
            self.at(self.now + SWEEP, self.sweep)

    def begin(self, slot: Slot[int], request: Request) -> None:
        """The handler runs. Behind a PgBouncer its statement may have to wait once more, in order."""
        self.held[slot] = request
        if self.load.servers and self.running == self.load.servers:
            self.behind.append((slot, request))
        else:
            self.running += 1
            self.serve(slot, request)

    def serve(self, slot: Slot[int], request: Request) -> None:
        """The statement runs."""
        begin, end, factor = self.load.slow
        service = request.service * (factor if begin <= self.now < end else 1.0)
        self.at(self.now + service, self.finish, slot, request)

    def finish(self, slot: Slot[int], request: Request) -> None:
        """The answer goes out and the connection comes back, whether or not the client is still there."""
        if self.held.pop(slot, None) is None:  # the connection died under it
            return
        self.busy_until = self.now + self.load.processor
        if request.left:
            self.result.outcomes["late"] += 1
        else:
            self.result.outcomes["good"] += 1
            self.result.good.append((request.arrived, self.now))
        if self.behind:
            self.serve(*self.behind.popleft())
        else:
            self.running -= 1
        self.gate.give(slot, self.now)

    def turn_away(self, request: Request) -> None:
        """A 503, unless nobody is there to read it."""
        self.busy_until = max(self.busy_until, self.now) + self.load.processor
        if request.left:
            self.result.outcomes["gave up"] += 1
        else:
            assert request.outcome is not None
            self.result.outcomes[request.outcome.value] += 1
            self.result.refused.append((request.arrived, self.now))

    # The pool.

    def time_out(self) -> None:
        """``acquire_timeout``, the same for all: the timers end in the order in which they began."""
        timers = self.timers
        while timers and (timers[0].outcome is not None or timers[0].since + self.acquire_timeout <= self.now):
            request = timers.popleft()
            if request.outcome is None:
                self.gate.withdraw(request, Outcome.TIMED_OUT, self.now)
                self.turn_away(request)
        if timers:
            self.at(timers[0].since + self.acquire_timeout, self.time_out)

    def sweep(self) -> None:
        """The housekeeper."""
        self.gate.sweep(self.now)
        self.sweeping = bool(self.gate.waiting)
        if self.sweeping:
            self.at(self.now + SWEEP, self.sweep)

    def connect(self, link: int) -> None:
        """A connection opens."""
        self.gate.reserve().fill(Slot(link), self.now)

    def disconnect(self) -> None:
        """Every connection dies; who held one gets an error."""
        for slot in list(self.gate.slots):
            self.gate.lost(slot, self.now)
            if self.held.pop(slot, None) is not None:
                self.result.outcomes["failed"] += 1
        self.behind.clear()
        self.running = 0

    def stall(self) -> None:
        """The event loop stands still; then everything happens at once."""
        self.busy_until = self.now + STALL
