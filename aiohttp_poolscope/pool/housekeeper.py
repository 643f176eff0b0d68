"""Janitor: one task that looks at everything which no event announces.

It sweeps every 50 ms while anyone waits, every second otherwise. Who waits too long has its timer from a sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.driver.search import SEEK_EVERY
from aiohttp_poolscope.errors import QueryTimeout
from aiohttp_poolscope.gate import SlotState

if TYPE_CHECKING:
    from aiohttp_poolscope.connection import ScopedConnection
    from aiohttp_poolscope.driver import Link
    from aiohttp_poolscope.gate import Slot

    from .pool import Pool

__all__ = ("Janitor",)

logger = logging.getLogger("aiohttp_poolscope")

BUSY, CALM = 0.05, 1.0
"""Seconds between sweeps. One sweep over 2,000 waiters costs about half a millisecond."""

SILENCE_MARGIN = 1.0
"""Seconds beyond statement_timeout after which it is the network that is silent, not the server that is slow."""


class Janitor:
    """Sweeps the queue, the leases and the idle connections of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._rush = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._housekept_at = 0.0
        self._seeking: asyncio.Task[None] | None = None
        self._sought_at = 0.0
        self._cancelled: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def start(self) -> None:
        """Begin."""
        self._task = self._pool.spawn(self._run(), "janitor")

    def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()

    def hurry(self) -> None:
        """Somebody waits, and only a sweep sets its timer."""
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
                if time.monotonic() - self._housekept_at < CALM:  # else those who wait only now and then starve it
                    continue
            try:
                self.sweep(time.monotonic())
            except Exception:  # what it does for everyone must not end with one mistake
                logger.exception("pool %r: a sweep failed", self._pool.key)

    def sweep(self, now: float) -> None:
        """Look at everything once."""
        pool = self._pool
        pool.set_timers(now)
        pool.gate.sweep(now)
        for slot, db in pool.holders():
            self._look_at_lease(slot, db, now)
        if now - self._housekept_at >= CALM:
            self._housekept_at = now
            for slot in pool.gate.idle_slots():
                self._look_at_idle(slot, now)
            self._look_for_role(now)
        pool.attend()

    def _look_for_role(self, now: float) -> None:
        """While a connection is to a server of another role than wanted: look for a better one now and then."""
        pool = self._pool
        if self._seeking is not None and not self._seeking.done():
            self._sought_at = now
        elif now - self._sought_at >= SEEK_EVERY and not all(slot.link.in_role for slot in pool.gate.slots):
            self._sought_at = now
            self._seeking = pool.spawn(pool.seek(), "seek")

    def _look_at_lease(self, slot: Slot[Link], db: ScopedConnection, now: float) -> None:
        pool, config = self._pool, self._pool.config
        held = now - slot.since
        if config.leak_threshold is not None and held > config.leak_threshold and not db.reported:
            db.reported = True
            pool.leaked += 1
            pool.watch.leaked(db, held)
        if config.max_lease is not None and held > config.max_lease:
            db._revoke(f"it was held for more than max_lease ({config.max_lease:g} s)")
        # Once: a second one would interrupt the handler's own cleaning up.
        elif config.cancel_abandoned and _client_left(db) and db.task not in self._cancelled:
            self._cancelled.add(db.task)
            db.task.cancel("the client has left")
        self._look_at_statement(slot.link, now)

    def _look_at_statement(self, link: Link, now: float) -> None:
        limit, since = self._pool.config.statement_timeout, link.running_since
        if limit is None or since is None:
            return
        if now - since > limit + SILENCE_MARGIN:
            link.fail(QueryTimeout(f"the server has not answered within statement_timeout ({limit:g} s), nor since"))
        elif now - since > limit and self._pool.config.pgbouncer:
            link.time_out(limit)  # the server has not been told of the limit

    def _look_at_idle(self, slot: Slot[Link], now: float) -> None:
        pool, config = self._pool, self._pool.config
        if slot.state is not SlotState.IDLE:  # somebody who was told of another's end has taken or closed it
            return
        spare = len(pool.gate.slots) > config.minsize
        if slot.link.closed:
            pool.bury(slot)
        elif now >= slot.expires:
            pool.drop(slot, "lifetime")
        elif spare and _longer(now - slot.used, config.idle_timeout):
            pool.drop(slot, "idle")
        elif _longer(now - slot.since, config.keepalive):
            pool.gate.repair(slot, now)
            pool.repairs.check(slot, "keepalive")


def _longer(age: float, limit: float | None) -> bool:
    return limit is not None and age > limit


def _client_left(db: ScopedConnection) -> bool:
    """Whether it is a GET or HEAD that nobody waits for any more."""
    if db.method not in ("GET", "HEAD") or not db.handling or db.task is None:
        return False
    return db.client is not None and db.client.transport is None
