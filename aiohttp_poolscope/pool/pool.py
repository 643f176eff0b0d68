"""Pool: the asynchronous shell around the gate.

The gate decides, the pool acts: it lends and takes back. Opener, recycler, roles and queue do one job each, and own
its numbers. A borrower never waits inside the driver: whenever it is cancelled, a connection is either lent to it, or
still with the gate.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiohttp_poolscope.driver import FAILED, IN_TRANSACTION
from aiohttp_poolscope.errors import PoolScopeError
from aiohttp_poolscope.events import Acquired, Released, ReturnedDirty
from aiohttp_poolscope.gate import Gate, Overload

from . import hooks
from .holders import holders
from .inventory import Inventory
from .maintenance import Maintenance
from .opener import Opener
from .queue import Queue
from .recycler import PING_LIMIT, Recycler
from .reporter import Reporter
from .roles import Roles
from .tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.connection import ScopedConnection
    from aiohttp_poolscope.driver import Connector, OpenConnection
    from aiohttp_poolscope.events import Events
    from aiohttp_poolscope.gate import Slot

__all__ = ("SILENCE_MARGIN", "Pool")

logger = logging.getLogger("aiohttp_poolscope")

IN_ANY_TRANSACTION = (IN_TRANSACTION, FAILED)

STALLED = 60.0
"""Seconds without any connection coming back that are suspicious where statements have no limit."""

SILENCE_MARGIN = 1.0
"""Seconds beyond statement_timeout after which it is the network that is silent, not the server that is slow."""

CLOSE_LIMIT = 1.0
"""Seconds that tasks, and aiopg's pools without connections, have to end: they have nothing to wait for."""


class Pool:
    """The connections of one scope in one run of an application.

    ``queued`` is called when a borrow has joined the queue. ``attached`` is the number of requests that may still ask
    for a connection; the middleware counts them. ``acquire_timeout``: seconds that a borrow waits, unless it says.
    """

    def __init__(
        self, config: PoolConfig, events: Events, driver: Connector, *, clock: Clock, queued: Callable[[], None]
    ) -> None:
        self.config = config
        self.key = config.key
        self.stacks = config.stacks
        self.acquire_timeout = config.acquire_timeout
        self.attached = 0
        self.clock = clock
        self.gate: Gate[OpenConnection] = Gate(
            maxsize=config.maxsize,
            minsize=config.minsize,
            max_waiting=config.max_waiting,
            check_after_idle=config.check_after_idle,
            overload=Overload(config.queue_target),
        )
        self.driver = driver
        self.tasks = Tasks(config.key)
        self.reporter = reporter = Reporter(config.key, events, self.gate, clock)
        self.wait = reporter.histogram("wait")
        self.lease = reporter.histogram("lease")
        self.inventory = Inventory(self.gate, driver, reporter, clock)
        self.maintenance = maintenance = Maintenance(config, driver, self, reporter)
        self.opener = Opener(config, self.gate, maintenance, self.tasks, reporter=reporter, clock=clock)
        self.recycler = Recycler(
            config,
            self.gate,
            maintenance,
            self.inventory,
            self.tasks,
            reporter=reporter,
            clock=clock,
            changed=self.replenish,
        )
        self.roles = Roles(config, self.gate, driver, self.inventory, self.tasks, clock=clock, changed=self.replenish)
        self.queue = Queue(
            config, self.gate, self.opener, self.tasks, reporter=reporter, clock=clock, queued=self._on_queued
        )
        self.on_acquire = hooks.before_lending(config)
        self._queued = queued
        self._now = clock.monotonic
        self._subscribed = events.subscribed
        # Every connection that comes back gets something first, so that none can go straight to the next.
        self._always_restore = config.reset not in {"auto", "rollback"} or config.on_release is not None

    def check_loop(self) -> None:
        """Raise PoolScopeError unless called in the event loop that the pool was made in."""
        loop = asyncio._get_running_loop()
        if loop is not self.tasks.loop:
            where = "outside of any event loop" if loop is None else "in another event loop, or another thread"
            raise PoolScopeError(
                f"pool {self.key!r} was used {where}: it belongs to the loop of its application. "
                "Use asyncio.run_coroutine_threadsafe(..., loop) from there"
            )

    def lend(self, db: ScopedConnection) -> bool:
        """Lend an idle and fresh connection, at once. False: there is none, ``borrow`` has to be awaited."""
        while True:
            slot = self.gate.try_acquire(self._now())
            if slot is None:
                return False
            if not slot.link.raw.closed:
                db._attach(slot)
                self.wait.record_zero()
                if Acquired in self._subscribed:
                    self.reporter.lent(db, 0.0, queued=False)
                return True
            self.gate.cancel_lend(slot)
            self.inventory.discard_dead(slot)

    async def borrow(self, db: ScopedConnection, timeout: float | None = None) -> None:
        """Lend a connection to ``db``, waiting for it if need be; or raise why there is none.

        ``timeout`` in seconds, default ``acquire_timeout``.
        """
        hook = self.on_acquire
        begun = self._now()
        end = begun + (self.acquire_timeout if timeout is None else timeout)
        if not self.lend(db):
            if not db.running:
                self.gate.make_room()
            slot = await self.queue.wait(db, begun, end)
            while slot.link.closed:  # it died between the hand-over and now
                if slot in self.gate.slots:
                    self.gate.cancel_lend(slot)
                self.inventory.discard_dead(slot)
                slot = await self.queue.wait(db, begun, end)
            waited = self._now() - begun
            db._attach(slot)
            self.wait.record(waited)
            self.reporter.lent(db, waited, queued=True)
        if hook is not None and db._slot is not None:
            await hooks.prepare(self, hook, db, db._slot, end - self._now())

    def take_back(self, slot: Slot[OpenConnection]) -> None:
        """A lease has ended. A clean and young connection is free at once; a task restores any other."""
        now = self._now()
        held, holder, slot.holder = now - slot.since, slot.holder, None
        link = slot.link
        if link.touched and not link.end_lease():
            slot.expires = float("-inf")
        if link.clean and not link.session_changed and now < slot.expires and not self._always_restore:
            self.gate.give(slot, now)
        else:
            self.gate.repair(slot, now)
            self.recycler.recycle(slot)
            if ReturnedDirty in self._subscribed and slot.link.status in IN_ANY_TRANSACTION and holder._ended_well:
                self.reporter.returned_dirty(holder, held)
        self.lease.record(held)
        if Released in self._subscribed:
            self.reporter.returned(holder, held)
        if holder.reported:
            holder.reported = False
            self.reporter.returned_late(holder, held)

    def replenish(self) -> None:
        """Start work for queued borrowers: ping stale idle connections, open new ones.

        To be called after anything that frees capacity or adds demand.
        """
        if self.gate.closed or self.gate.busy:
            return
        while (slot := self.gate.next_check(self._now())) is not None:
            if slot.link.closed:
                self.inventory.discard_dead(slot)
            else:
                self.recycler.check(slot)
        self.opener.replenish()

    def expire(self) -> None:
        """Replace every connection as it comes back."""
        self.opener.expire()
        self.inventory.retire(lambda _: True)
        self.replenish()

    async def close(self) -> None:
        """Close everything now, by force where it must be."""
        self.gate.close()
        for _, db in holders(self.gate):
            db._revoke("the application has stopped")
        await self.tasks.cancel(CLOSE_LIMIT)  # what is being restored now would otherwise go on without a pool
        for slot in list(self.gate.slots):
            self.inventory.discard(slot, "shutdown")
        try:
            await self.driver.close(CLOSE_LIMIT)
        except TimeoutError:
            logger.warning("pool %r: aiopg still counts connections that nobody has", self.key)

    async def trouble(self) -> str | None:
        """Why the pool cannot serve now: "breaker open", "no answer" or "stalled"; None if it can.

        See ``PoolScope.trouble``.
        """
        if self.opener.unreachable:
            return "breaker open"
        gate = self.gate
        answered = await self.recycler.probe()
        if answered is None and gate.slots and not self._stalled():
            return None
        if not answered and len(gate.slots) < gate.maxsize:
            answered = await self.opener.reaches(PING_LIMIT)
        if answered:
            return None
        return "no answer" if len(gate.slots) < gate.maxsize else "stalled"

    def _stalled(self) -> bool:
        """Whether all connections are where they are for longer than a statement may take."""
        limit = self.config.statement_timeout or STALLED
        last = max((slot.since for slot in self.gate.slots), default=float("-inf"))
        return self._now() - last > limit + SILENCE_MARGIN

    def _on_queued(self) -> None:
        self.replenish()
        self._queued()
