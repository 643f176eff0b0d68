"""Drain: how a pool ends.

Begun when the application starts to shut down, beside aiohttp's own waiting for handlers: those handlers hold our
connections, and aiohttp would wait for them twice its ``shutdown_timeout``.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.events import DrainFinished, DrainStarted

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pool import Pool

__all__ = ("Drain",)

STEP = 0.02
"""Seconds between looks at the leases that are left."""


class Drain:
    """Wait for leases, cancel their tasks, wait again, then close by force. Every wait has an end."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._task: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether the pool is ending."""
        return self._task is not None

    def begin(self) -> asyncio.Task[None]:
        """Refuse who has not started, and start to drain. The task is done when the pool is closed."""
        if self._task is None:
            self._pool.gate.drain()
            # Not one of the pool's own tasks: it is the one that ends them.
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"poolscope {self._pool.key}: drain")
            self._pool.watch.tell(DrainStarted, in_use=self._pool.gate.lent)
        return self._task

    async def _run(self) -> None:
        pool, config = self._pool, self._pool.config
        begun = time.monotonic()
        taken = pool.gate.taken
        try:
            await self._until(begun + config.drain_grace, self._in_use)
            cancelled = self._cancel()
            if cancelled:
                await self._until(begun + config.drain_timeout, self._coming_back)
            forced = [f"{it.method or 'no request'} {it.path or it.task or ''}".strip() for it in pool.leases()]
        finally:
            await pool.stop()
        pool.watch.tell(
            DrainFinished,
            duration=time.monotonic() - begun,
            served=pool.gate.taken - taken,
            cancelled=cancelled,
            forced=tuple(forced),
        )

    async def _until(self, end: float, busy: Callable[[], bool]) -> None:
        while busy():
            if time.monotonic() >= end:
                return
            await asyncio.sleep(STEP)

    def _in_use(self) -> bool:
        """Whether anybody holds or awaits a connection, or could still ask for one."""
        pool, gate = self._pool, self._pool.gate
        return bool(gate.lent or gate.waiting or gate.repairing or pool.attached)

    def _coming_back(self) -> bool:
        """Whether a connection may still be returned. A leaked one is not: its task has ended without it."""
        return bool(self._pool.gate.repairing or self._pool.gate.handed or self._holders())

    def _holders(self) -> set[asyncio.Task[Any]]:
        """The living tasks that hold a connection; not the application's own, which is the one that shuts down."""
        tasks = {db.task for _, db in self._pool.holders() if db.task is not None and not db.task.done()}
        return tasks - {self._pool.owner}

    def _cancel(self) -> int:
        """End the grace: who still holds or awaits a connection is cancelled."""
        self._pool.gate.close()
        tasks = self._holders()
        for task in tasks:
            task.cancel("the application is shutting down")
        return len(tasks)
