"""A watch on a pool under load: what must hold at every moment, looked at again and again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from aiohttp_poolscope.events import Event, StatementFailed
from tests.conftest import BUSY, DEADLINE, Database, until

if TYPE_CHECKING:
    from aiohttp_poolscope import PoolScope, PoolStats

ENDING = 1.0 + BUSY
"""Seconds that a connection the pool has closed may live on in the server: a second of abandon_interval at most."""


class Watch:
    """``async with Watch(scope, database)``: samples while the block runs, and knows what it saw."""

    def __init__(self, scope: PoolScope, database: Database) -> None:
        assert scope._run is not None
        self.scope = scope
        self.pool = scope._run.pool
        self.samples = 0
        self.most_in_use = self.most_waiting = 0
        self.wrong: list[Any] = []
        self.ledger = Ledger(scope)
        self._database = database
        self._seen: dict[int, float] = {}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while True:
            self.look()
            if self.samples % 10 == 0:
                self.look_at_server()
            await asyncio.sleep(0.003)

    def look(self) -> None:
        """The pool's own invariants."""
        self.samples += 1
        self.wrong += self.pool.gate.violations()
        stats = self.scope.stats()
        self.most_in_use = max(self.most_in_use, stats.in_use)
        self.most_waiting = max(self.most_waiting, stats.waiting)
        if stats.borrows != ended(stats):
            self.wrong.append(stats)

    def look_at_server(self) -> None:
        """Backends the pool does not know of are about to end, or about to become its own."""
        now = time.monotonic()
        known = {slot.link.raw.get_backend_pid() for slot in self.pool.gate.slots if not slot.link.closed}
        others = {pid for (pid,) in self._database.backends("pid")} - known
        self._seen = {pid: self._seen.get(pid, now) for pid in others}
        self.wrong += [f"backend {pid} lives on" for pid, since in self._seen.items() if now - since > ENDING]

    async def calm(self) -> None:
        """Wait until everything has come back, and check that it is as before."""
        scope, gate = self.scope, self.pool.gate
        await until(lambda: gate.lent == gate.waiting == gate.repairing == gate.opening == 0, "calm")
        assert self.wrong == []
        stats = scope.stats()
        assert (stats.in_use, stats.waiting, stats.leaked) == (0, 0, 0), stats
        assert stats.borrows == ended(stats), stats
        assert self.ledger.differences() == {}
        assert stats.size == stats.idle == stats.opened - stats.closed <= stats.maxsize, stats
        backends = await until(lambda: len(found := self._database.backends("state")) <= stats.idle and found)
        assert set(backends) == {("idle",)}
        waited = stats.wait.count
        async with asyncio.timeout(DEADLINE):
            await scope.check()
        assert scope.stats().wait.count == waited + 1


class Ledger:
    """Counts the events of a scope, from now on: as many as the numbers have grown by since."""

    def __init__(self, scope: PoolScope) -> None:
        self._scope = scope
        self._told: Counter[str] = Counter()
        self._before = counted(scope.stats())
        scope.on_event(self._hear)

    def _hear(self, event: Event) -> None:
        self._told[f"{event.kind} {event.fault}" if isinstance(event, StatementFailed) else event.kind] += 1

    @property
    def events(self) -> int:
        """How many there were."""
        return self._told.total()

    def differences(self) -> dict[str, tuple[int, int]]:
        """Kinds of which there are other than the numbers say: events, and what was counted."""
        now = counted(self._scope.stats())
        pairs = {kind: (self._told[kind], now[kind] - self._before[kind]) for kind in now}
        return {kind: pair for kind, pair in pairs.items() if pair[0] != pair[1]}


def counted(stats: PoolStats) -> dict[str, int]:
    """The numbers, by the kind of event that belongs to each."""
    same = ("timed_out", "refused", "shed", "client_gone", "cancelled", "failed", "opened", "connect_failed", "closed",
            "leaked")  # fmt: skip
    return {
        **{kind: getattr(stats, kind) for kind in same},
        **{f"error {fault}": count for fault, count in stats.errors.items()},
        "acquired": stats.lent,
        "released": stats.lease.count,
    }


def ended(stats: Any) -> int:
    """How many borrows have ended, in whichever way."""
    return (
        stats.lent + stats.timed_out + stats.refused + stats.shed
        + stats.client_gone + stats.cancelled + stats.failed
    )  # fmt: skip
