"""The process that a crowd comes from: ``python -m benchmarks.load.generator``, its orders on standard input.

One thread, ``epoll`` and plain sockets: no task and no timer for a request, so that half a core sends more than any
service here can answer. Connections are kept alive and taken newest first; some are open before the start.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import resource
import select
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .crowd import STEP, Phase, PhaseResult, Processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BEHIND = 0.002
"""Seconds by which it may be behind and still send all who are due, before it looks for answers."""

OPEN_BEFORE = 2000
"""Connections that are open before the first client comes, at most; more are opened when they are needed."""

OPEN_TOGETHER, OPEN_PAUSE = 64, 0.016
"""So many at a time, and seconds in between: less than the backlog of a listening socket."""

AT_ONCE = 128
"""Answers that are read before the clock is looked at again."""

WAITING, SERVED, REFUSED, FAILED, GAVE_UP, DROPPED = range(6)
"""How a request stands: FAILED is any other status than 200 and 503, DROPPED a connection that ended."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close sends a reset. Else each client who gives up would leave its port unusable for a minute."""


class Client:
    """One request, from the moment at which it was due."""

    __slots__ = ("due", "ended", "late", "outcome", "phase", "wire")

    def __init__(self, phase: int, due: float) -> None:
        self.phase = phase
        self.due = due
        self.late = 0.0
        self.ended = 0.0
        self.outcome = WAITING
        self.wire: Wire | None = None


class Wire:
    """One connection, and the client that waits for an answer on it."""

    __slots__ = ("client", "closed", "connecting", "got", "sock", "to_send")

    def __init__(self, address: tuple[str, int]) -> None:
        self.client: Client | None = None
        self.closed = False
        self.connecting = False
        self.got = b""
        self.to_send = b""
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        said = self.sock.connect_ex(address)
        if said not in (0, errno.EINPROGRESS):
            self.sock.close()
            raise OSError(said, os.strerror(said))


class Generator:
    """The clients of all phases."""

    def __init__(self, url: str, phases: list[Phase], *, patience: float, seed: int | str, pid: int | None) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.phases = phases
        self.patience = patience
        self.pid = pid
        self.spent: list[Processor] = []
        self.requests = [f"GET {each.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode() for each in phases]
        self.clients = list(_clients(phases, random.Random(seed)))
        self.waiting: deque[Client] = deque()
        self.wires: dict[int, Wire] = {}
        self.free: list[Wire] = []
        self.epoll = select.epoll()

    def run(self, begins: Callable[[], None] = lambda: None) -> list[PhaseResult]:
        """Send everything, and wait until everyone is answered or gone. ``begins`` is called before the first."""
        peak = max(phase.rate for phase in self.phases) * self.patience
        for number in range(min(OPEN_BEFORE, int(peak) + 1)):
            self.free.append(self._connect())
            if number % OPEN_TOGETHER == 0:
                time.sleep(OPEN_PAUSE)
        begins()
        begun = time.monotonic()
        self._send_all(begun)
        while self._let_go(time.monotonic()):
            self._attend(self.patience)
        for wire in list(self.wires.values()):
            self._drop(wire, DROPPED, 0.0)
        self.epoll.close()
        return [self._result(number, begun) for number in range(len(self.phases))]

    def _send_all(self, begun: float) -> None:
        self.spent.append(self._processor())
        phase = 0
        for client in self.clients:
            while client.phase > phase:
                self.spent.append(self._processor())
                phase += 1
            client.due += begun
            while (now := time.monotonic()) < client.due:
                self._attend(client.due - now)
            self._send(client, now)
            # Also when it is behind: those who are answered, or give up, must not wait for it to have caught up.
            if now - client.due > BEHIND:
                self._attend(0.0)
        end = begun + sum(phase.seconds for phase in self.phases)
        while (now := time.monotonic()) < end:
            self._attend(end - now)
        self.spent += [self._processor()] * (len(self.phases) + 1 - len(self.spent))

    def _attend(self, at_most: float) -> None:
        """Read answers for at most so many seconds, and let go who has waited long enough."""
        now = time.monotonic()
        waiting = self._let_go(now)
        timeout = min(at_most, waiting[0].due + self.patience - now) if waiting else at_most
        for number, mask in self.epoll.poll(timeout, AT_ONCE):
            wire = self.wires.get(number)
            if wire is None:
                continue
            if mask & select.EPOLLOUT and not mask & select.EPOLLERR:
                self._flush(wire)
            else:
                self._read(wire)

    def _let_go(self, now: float) -> deque[Client]:
        """Those who are still waited for, once those at the front who are answered or give up are gone."""
        waiting = self.waiting
        while waiting and (waiting[0].outcome is not WAITING or waiting[0].due + self.patience <= now):
            client = waiting.popleft()
            if client.outcome is WAITING and client.wire is not None:
                self._drop(client.wire, GAVE_UP, now)
        return waiting

    def _send(self, client: Client, now: float) -> None:
        client.late = now - client.due
        self.waiting.append(client)
        free = self.free
        wire = free.pop() if free else None
        while wire is not None and wire.closed:
            wire = free.pop() if free else None
        try:
            wire = wire or self._connect()
        except OSError:
            client.outcome, client.ended = DROPPED, now
            return
        wire.client, client.wire = client, wire
        wire.to_send = self.requests[client.phase]
        self._flush(wire)

    def _connect(self) -> Wire:
        wire = Wire(self.address)
        number = wire.sock.fileno()
        self.wires[number] = wire
        self.epoll.register(number, select.EPOLLIN)
        return wire

    def _flush(self, wire: Wire) -> None:
        try:
            wire.sock.send(wire.to_send)  # far less than a socket's buffer: never only a part of it
            if wire.connecting:
                self.epoll.modify(wire.sock.fileno(), select.EPOLLIN)
                wire.connecting = False
        except BlockingIOError:
            self.epoll.modify(wire.sock.fileno(), select.EPOLLOUT)
            wire.connecting = True
        except OSError:
            self._drop(wire, DROPPED, time.monotonic())

    def _read(self, wire: Wire) -> None:
        try:
            data = wire.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client = wire.client
        now = time.monotonic()
        if not data or client is None:
            self._drop(wire, DROPPED, now)
            return
        data = wire.got + data
        head, _, body = data.partition(b"\r\n\r\n")
        at = head.find(b"Content-Length: ")
        if at < 0 or len(body) < int(head[at + 16 :].split(b"\r", 1)[0]):
            wire.got = data
            return
        if now - client.due > self.patience:  # an answer, but nobody waits for it
            self._drop(wire, GAVE_UP, now)
            return
        status = head[9:12]
        client.outcome = SERVED if status == b"200" else REFUSED if status == b"503" else FAILED
        client.ended = now
        client.wire = wire.client = None
        wire.got = b""
        if b"Connection: close" in head:
            self._drop(wire, DROPPED, now)
        else:
            self.free.append(wire)

    def _drop(self, wire: Wire, outcome: int, now: float) -> None:
        if wire.client is not None:
            wire.client.outcome, wire.client.ended = outcome, now
            wire.client.wire = wire.client = None
        wire.closed = True
        del self.wires[wire.sock.fileno()]
        wire.sock.close()

    def _processor(self) -> Processor:
        return Processor.of(self.pid) if self.pid is not None else Processor(0.0, 0.0, 0.0)

    def _result(self, number: int, begun: float) -> PhaseResult:
        phase = self.phases[number]
        clients = [client for client in self.clients if client.phase == number]
        start = begun + sum(each.seconds for each in self.phases[:number])
        counts = [sum(client.outcome == outcome for client in clients) for outcome in range(6)]
        served, refused = (
            [client.ended - client.due for client in clients if client.outcome == outcome]
            for outcome in (SERVED, REFUSED)
        )
        answers = [client.ended - start for client in self.clients if client.outcome == SERVED]
        series_answers = _series((each for each in answers if 0 <= each < phase.seconds), phase.seconds)
        spent = self.spent[number + 1].since(self.spent[number])
        return PhaseResult(
            name=phase.name,
            rate=phase.rate,
            seconds=phase.seconds,
            arrivals=len(clients),
            served=counts[SERVED],
            refused=counts[REFUSED],
            failed=counts[FAILED],
            gave_up=counts[GAVE_UP],
            dropped=counts[DROPPED],
            goodput=sum(series_answers) / phase.seconds,
            p50=_quantile(served, 0.5),
            p99=_quantile(served, 0.99),
            refused_p50=_quantile(refused, 0.5),
            refused_p99=_quantile(refused, 0.99),
            late_p99=_quantile([client.late for client in clients], 0.99),
            cpu=spent.used,
            cpu_waited=spent.waited,
            cpu_stolen=spent.stolen,
            series_arrivals=_series((client.due - start for client in clients), phase.seconds),
            series_served=_series(
                (client.due - start for client in clients if client.outcome == SERVED), phase.seconds
            ),
            series_answers=series_answers,
        )


def _series(moments: Iterable[float], seconds: float) -> list[int]:
    """How many there are in each STEP."""
    counts = [0] * max(1, round(seconds / STEP))
    for moment in moments:
        counts[min(int(moment / STEP), len(counts) - 1)] += 1
    return counts


def _clients(phases: list[Phase], rng: random.Random) -> Iterator[Client]:
    start = 0.0
    for number, phase in enumerate(phases):
        due = start
        while (due := due + rng.expovariate(phase.rate)) < start + phase.seconds:
            yield Client(number, due)
        start += phase.seconds


def _quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def main() -> None:
    order = json.load(sys.stdin)
    order["phases"] = [Phase(*phase) for phase in order["phases"]]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    generator = Generator(**order)
    gc.freeze()  # the clients are all there, and nothing here makes cycles: a collection would only make it late
    gc.disable()
    print(json.dumps([asdict(result) for result in generator.run(lambda: print(flush=True))]))


if __name__ == "__main__":
    main()
