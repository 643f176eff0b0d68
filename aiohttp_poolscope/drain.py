"""Drain: how a pool ends.

Begun when the application starts to shut down, beside aiohttp's own waiting for handlers: those handlers hold our
connections, and aiohttp would wait for them twice its ``shutdown_timeout``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ("Drain",)

logger = logging.getLogger("aiohttp_poolscope")

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
        return self._task

    async def _run(self) -> None:
        pool, config = self._pool, self._pool.config
        begun = time.monotonic()
        taken = pool.gate.taken
        await self._until(begun + config.drain_grace, running=True)
        cancelled = self._cancel()
        if cancelled:
            await self._until(begun + config.drain_timeout)
        forced = [f"{lease.method or 'no request'} {lease.path or lease.task or ''}".strip() for lease in pool.leases()]
        await pool.stop()
        logger.log(
            logging.WARNING if forced else logging.INFO,
            "pool %r: drained in %.2f s, %d served meanwhile, %d cancelled, %d forced%s",
            pool.key,
            time.monotonic() - begun,
            pool.gate.taken - taken,
            cancelled,
            len(forced),
            f": {', '.join(forced)}" if forced else "",
        )

    async def _until(self, end: float, *, running: bool = False) -> None:
        """Wait until nobody holds or awaits a connection any more (or, if ``running``, could still ask for one)."""
        pool, gate = self._pool, self._pool.gate
        while gate.lent or gate.waiting or gate.repairing or (running and pool.attached):
            if time.monotonic() >= end:
                return
            await asyncio.sleep(STEP)

    def _cancel(self) -> int:
        """End the grace: who still holds or awaits a connection is cancelled."""
        pool = self._pool
        pool.gate.close()
        tasks = {db.task for _, db in pool.holders() if db.task is not None and not db.task.done()}
        for task in tasks:
            task.cancel("the application is shutting down")
        return len(tasks)
