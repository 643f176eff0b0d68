"""Hosts, and the network between them and the pool: messages take a while, and things go wrong."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .loop import Loop
    from .server import Session, Write

__all__ = ("GRID", "Host", "Wire")

GRID = 0.001
"""Seconds that all delays are multiples of, so that many things happen in one instant."""


class Wire:
    """A connection's two directions. What is sent arrives in order, after a while, unless the network is silent."""

    def __init__(self, host: Host, lost: Callable[[], object]) -> None:
        self.host = host
        self.silent = host.silent
        self._lost = lost
        self._ways: tuple[collections.deque[Any], collections.deque[Any]] = (collections.deque(), collections.deque())
        self._last = [0.0, 0.0]
        self._held: list[int] = []
        self._forgotten = False

    def send(self, way: int, deliver: Callable[..., object], *args: Any) -> None:
        """Up (0) or down (1)."""
        if self._forgotten:
            deliver, args, way = self._lost, (), 1
        loop = self.host.loop
        self._last[way] = at = max(self._last[way], loop.time() + self.host.delay())
        self._ways[way].append((deliver, args))
        loop.call_at(at, self._arrive, way)

    def _arrive(self, way: int) -> None:
        if self.silent:
            self._held.append(way)
        elif self._ways[way]:
            deliver, args = self._ways[way].popleft()
            deliver(*args)

    def speak(self) -> None:
        """The network is back: what was sent meanwhile arrives now."""
        self.silent = False
        held, self._held = self._held, []
        for way in held:
            self._arrive(way)

    def forget(self) -> None:
        """A firewall has dropped it: what is sent from now on is answered with a reset, and so is what was."""
        sent = self._ways[0] or self._held
        self.silent, self._held = False, []
        self._forgotten = True
        self._ways = (collections.deque(), collections.deque())
        if sent:
            self.send(1, self._lost)

    def notice(self) -> None:
        """TCP's keepalive: a client that only waits for an answer learns that it is gone, in the end."""
        if self._forgotten:
            self.send(1, self._lost)


class Host:
    """One server: where connections lead to. ``standby`` takes no writes; ``rows`` are those of the whole cluster."""

    def __init__(self, name: str, loop: Loop, rng: random.Random, rows: list[Write], *, standby: bool = False) -> None:
        self.name = name
        self.loop = loop
        self.rng = rng
        self.rows = rows
        self.standby = standby
        self.sessions: dict[Session, None] = {}
        self.wires: dict[Wire, Session] = {}
        self.limit = 100
        self.refusing = False
        self.hanging = False
        self.silent = False
        self.slowness = 1.0
        self.check_interval: float | None = None
        self.statement_timeout: float | None = None
        self.idle_in_transaction_timeout: float | None = None
        self.deaths: list[tuple[str, str]] = []
        self.findings: list[str] = []
        self.statements = 0

    def delay(self) -> float:
        """Seconds that a message is under way: few, now and then many."""
        most = 30 if self.rng.random() < 0.02 else 3
        return GRID * round(self.rng.randint(0, most) * self.slowness)

    def die(self) -> None:
        """Every session ends."""
        for session in list(self.sessions):
            session.die()

    def silence(self) -> None:
        """Nothing arrives any more, in either direction."""
        self.silent = True
        for wire in self.wires:
            wire.silent = True

    def speak(self, *, forgotten: bool) -> None:
        """The network is back. ``forgotten``: the connections that were open are not: a firewall has dropped them."""
        self.silent = False
        for wire, session in list(self.wires.items()):
            if wire.silent and forgotten:
                session.end()
                wire.forget()
            elif wire.silent:
                wire.speak()

    def heal(self) -> None:
        """All is well again."""
        self.refusing = self.hanging = False
        self.slowness, self.limit = 1.0, 100
        self.deaths.clear()
        if self.silent:
            self.speak(forgotten=True)
        for wire in self.wires:
            wire.notice()

    def doomed(self, sql: str) -> str | None:
        """How the session dies over this statement, if it does: "before" it is executed, or "after"."""
        for death in self.deaths:
            if death[1] in sql:
                self.deaths.remove(death)
                return death[0]
        return None
