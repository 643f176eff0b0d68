"""Drain: how the leases of a pool end.

Begun when the application starts to shut down, beside aiohttp's own waiting for handlers: those handlers hold our
connections, and aiohttp would wait for them twice its ``shutdown_timeout``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.events import LeaseCancelled

from .holders import holders, leases

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pool import Pool

__all__ = ("Drain", "Drained")

STEP = 0.02
"""Seconds between looks at the leases that are left."""


@dataclass
class Drained:
    """What a drain has come to: tasks that were ``cancelled``, and leases that only force will end."""

    cancelled: int = 0
    forced: tuple[str, ...] = ()


class Drain:
    """Wait for leases, cancel their tasks, wait again. Every wait has an end."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._now = pool.clock.monotonic
        self._owner = asyncio.current_task()

    async def run(self) -> Drained:
        """Wait until no lease is left, ``drain_timeout`` seconds at most; refuse everybody from ``drain_grace`` on."""
        config, begun, result = self._pool.config, self._now(), Drained()
        await self._until(begun + config.drain_grace, self._in_use)
        result.cancelled = self._cancel()
        if result.cancelled:
            await self._until(begun + config.drain_timeout, self._coming_back)
        left = leases(self._pool.gate, self._now())
        result.forced = tuple(f"{it.method or 'no request'} {it.path or it.task or ''}".strip() for it in left)
        return result

    async def _until(self, end: float, busy: Callable[[], bool]) -> None:
        while busy():
            if self._now() >= end:
                return
            await asyncio.sleep(STEP)

    def _in_use(self) -> bool:
        """Whether anybody holds or awaits a connection, or could still ask for one."""
        pool, gate = self._pool, self._pool.gate
        return bool(gate.lent or gate.waiting or gate.repairing or pool.attached)

    def _coming_back(self) -> bool:
        """Whether a connection may still be returned. A leaked one is not: its task has ended without it."""
        return bool(self._pool.gate.repairing or self._pool.gate.handed or self._tasks())

    def _tasks(self) -> list[asyncio.Task[Any]]:
        """The living tasks that hold a connection; not the application's own, which is the one that shuts down."""
        tasks = dict.fromkeys(db.task for _, db in holders(self._pool.gate))
        return [task for task in tasks if task is not None and not task.done() and task is not self._owner]

    def _cancel(self) -> int:
        """End the grace: whoever still holds or awaits a connection is cancelled."""
        pool, now = self._pool, self._now()
        pool.gate.close()
        if LeaseCancelled in pool.reporter.subscribed:
            for slot, db in holders(pool.gate):
                pool.reporter.lease_cancelled(db, now - slot.since)
        tasks = self._tasks()
        for task in tasks:
            task.cancel("the application is shutting down")
        return len(tasks)
