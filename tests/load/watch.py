"""A watch on a pool under load: what must hold at every moment, looked at again and again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self

from tests.conftest import BUSY, DEADLINE, Database, until
from tests.kit.audit import Ledger, left, quiet, unbalanced

if TYPE_CHECKING:
    from aiohttp_poolscope import PoolScope

ENDING = 1.0 + BUSY
"""Seconds that a connection the pool has closed may live on in the server: a second of abandon_interval at most."""


class Watch:
    """``async with Watch(scope, database)``: samples while the block runs, and knows what it saw."""

    def __init__(self, scope: PoolScope, database: Database) -> None:
        assert scope._run is not None
        self.scope = scope
        self.run = scope._run
        self.pool = self.run.pool
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
        stats = self.scope.stats()
        if found := unbalanced(self.run):
            self.wrong += [*found, stats]
        self.most_in_use = max(self.most_in_use, stats.in_use)
        self.most_waiting = max(self.most_waiting, stats.waiting)

    def look_at_server(self) -> None:
        """Backends the pool does not know of are about to end, or about to become its own."""
        now = time.monotonic()
        known = {slot.link.raw.get_backend_pid() for slot in self.pool.gate.slots if not slot.link.closed}
        others = {pid for (pid,) in self._database.backends("pid")} - known
        self._seen = {pid: self._seen.get(pid, now) for pid in others}
        self.wrong += [f"backend {pid} lives on" for pid, since in self._seen.items() if now - since > ENDING]

    async def calm(self) -> None:
        """Wait until everything has come back, and check that it is as before."""
        scope, run = self.scope, self.run
        await until(lambda: quiet(run), "calm")
        assert self.wrong == []
        assert left(run) == []
        assert self.ledger.differences() == {}
        stats = scope.stats()
        assert stats.leaked == 0
        backends = await until(lambda: len(found := self._database.backends("state")) <= stats.idle and found)
        assert set(backends) == {("idle",)}
        waited = stats.wait.count
        async with asyncio.timeout(DEADLINE):
            await scope.check()
        assert scope.stats().wait.count == waited + 1
