"""Housekeeper: one task that looks at everything which no event announces.

It sweeps every 50 ms while anyone waits, every second otherwise. A borrow that waits too long has its timer from a
sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.errors import QueryTimeout
from aiohttp_poolscope.gate import SlotState
from aiohttp_poolscope.logs import left_out
from aiohttp_poolscope.request import client_gone

from .holders import holders
from .pool import SILENCE_MARGIN

if TYPE_CHECKING:
    from aiohttp_poolscope.connection import ScopedConnection
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.gate import Slot

    from .pool import Pool

__all__ = ("Housekeeper",)

logger = logging.getLogger("aiohttp_poolscope")

BUSY, CALM = 0.05, 1.0
"""Seconds between sweeps. One sweep over 2,000 waiters costs about half a millisecond."""


class Housekeeper:
    """Sweeps the queue, the leases and the idle connections of one pool. ``leaked`` counts leases held too long."""

    def __init__(self, pool: Pool) -> None:
        self.leaked = 0
        self._pool = pool
        self._now = pool.clock.monotonic
        self._rush = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._housekept_at = 0.0
        self._cancelled: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def start(self) -> None:
        """Begin to sweep."""
        self._task = self._pool.tasks.spawn(self._run(), "housekeeper")

    def wake(self) -> None:
        """Sweep soon: a borrow is queued, and only a sweep sets its timer."""
        if self._task is not None and self._task.done() and not self._pool.gate.closed:
            self.start()  # whatever ended it: a filter of the user's log, say
        if not self._rush.is_set():
            self._rush.set()

    async def _run(self) -> None:
        while True:
            if self._pool.gate.waiting:
                await asyncio.sleep(BUSY)
            else:
                self._rush.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CALM):
                        await self._rush.wait()
                if self._now() - self._housekept_at < CALM:  # else those who wait only now and then starve it
                    continue
            try:
                self.sweep(self._now())
            except Exception:  # what it does for everyone must not end with one mistake
                if (more := left_out(self._pool.key, "sweep")) is not None:
                    logger.exception("pool %r: a sweep failed%s", self._pool.key, more)

    def sweep(self, now: float) -> None:
        """Look at everything once."""
        pool = self._pool
        pool.queue.set_timers(now)
        pool.gate.sweep(now)
        for slot, db in holders(pool.gate):
            self._look_at_lease(slot, db, now)
        if now - self._housekept_at >= CALM:
            self._housekept_at = now
            for slot in pool.gate.idle_slots():
                self._look_at_idle(slot, now)
            pool.roles.look(now)
        pool.replenish()

    def _look_at_lease(self, slot: Slot[OpenConnection], db: ScopedConnection, now: float) -> None:
        pool, config = self._pool, self._pool.config
        held = now - slot.since
        if config.leak_threshold is not None and held > config.leak_threshold and not db.reported:
            db.reported = True
            self.leaked += 1
            pool.reporter.leaked(db, held)
        if config.max_lease is not None and held > config.max_lease:
            db._revoke(f"it was held for more than max_lease ({config.max_lease:g} s)")
        # Once: a second one would interrupt the handler's own cleaning up.
        elif config.cancel_abandoned and _is_for_nobody(db) and db.task not in self._cancelled:
            self._cancelled.add(db.task)
            db.task.cancel("the client has left")
        self._look_at_statement(slot.link, now)

    def _look_at_statement(self, link: OpenConnection, now: float) -> None:
        limit, since = self._pool.config.statement_timeout, link.running_since
        if limit is None or since is None:
            return
        if now - since > limit + SILENCE_MARGIN:
            link.fail(QueryTimeout(f"the server has not answered within statement_timeout ({limit:g} s), nor since"))
        elif now - since > limit and self._pool.config.pgbouncer:
            link.time_out(limit)  # the server has not been told of the limit

    def _look_at_idle(self, slot: Slot[OpenConnection], now: float) -> None:
        pool, config = self._pool, self._pool.config
        if slot.state is not SlotState.IDLE:  # a subscriber that was told of another's end has taken or closed it
            return
        spare = len(pool.gate.slots) > config.minsize
        if slot.link.closed:
            pool.inventory.discard_dead(slot)
        elif now >= slot.expires:
            pool.inventory.discard(slot, "lifetime")
        elif spare and _longer(now - slot.used, config.idle_timeout):
            pool.inventory.discard(slot, "idle")
        elif _longer(now - slot.since, config.keepalive):
            pool.gate.repair(slot, now)
            pool.recycler.check(slot, "keepalive")


def _longer(age: float, limit: float | None) -> bool:
    return limit is not None and age > limit


def _is_for_nobody(db: ScopedConnection) -> bool:
    """Whether it is a GET or HEAD whose client has left."""
    if db.method not in ("GET", "HEAD") or not db.handling or db.task is None:
        return False
    return db.client is not None and client_gone(db.client)
