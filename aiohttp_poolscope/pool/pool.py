"""Pool: the asynchronous shell around the gate.

The gate decides, the pool acts: it lends and takes back. Repairs, opener, janitor and drain run in tasks of their own.
A borrower never waits inside the driver: whenever it is cancelled, a connection is either lent to it, or still with the
gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import random
import socket
import time
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp_poolscope.capacity.limits import LIMITS, Limits, overdrawn
from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.driver import Driver
from aiohttp_poolscope.errors import ConfigError, PoolScopeError
from aiohttp_poolscope.events import Acquired, Released
from aiohttp_poolscope.gate import Breaker, Gate, Outcome, Overload, Slot, SlotState, Waiter
from aiohttp_poolscope.stats import Histogram, Lease, PoolStats

from . import hooks
from .drain import Drain
from .holders import describe
from .housekeeper import SILENCE_MARGIN, Janitor
from .opener import Opener
from .recycler import Repairs
from .reporter import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.driver import Link
    from aiohttp_poolscope.events import CloseReason, Events

__all__ = ("Pool",)

T = TypeVar("T")

logger = logging.getLogger("aiohttp_poolscope")

DEMOTION_PAUSE = 0.25
"""Seconds before a standby's connections are replaced once more because of a write."""

STALLED = 60.0
"""Seconds without any connection coming back that are suspicious where statements have no limit."""

SOON = 0.1
"""Seconds, two sweeps: whose time ends sooner might not be seen by another one before."""

CLOSE_LIMIT = 1.0
"""Seconds that aiopg has to end a pool without connections: it has nothing to wait for."""


class Place(Waiter["Link"]):
    """A place in the queue until ``end``: a future, and the client it is for."""

    __slots__ = ("client", "end", "future", "timer")

    def __init__(self, future: asyncio.Future[None], db: ScopedConnection, end: float) -> None:
        super().__init__(running=db.running)
        self.future = future
        self.client = db.client
        self.end = end
        self.timer: asyncio.TimerHandle | None = None

    def gone(self) -> bool:
        # A borrow inside a running handler ignores the transport: half-done work is not aborted by it.
        if self.running or self.client is None:
            return False
        transport = self.client.transport
        return transport is None or transport.is_closing()

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Pool:
    """The connections of one scope in one run of an application."""

    def __init__(self, config: PoolConfig, events: Events) -> None:
        self.config = config
        self.key = config.key
        self.watch = Watch(self, events)
        self.heard = events.heard
        self.gate: Gate[Link] = Gate(
            maxsize=config.maxsize,
            minsize=config.minsize,
            max_waiting=config.max_waiting,
            check_after_idle=config.check_after_idle,
            overload=Overload(config.queue_target),
        )
        self.breaker = Breaker(config.breaker_failures, config.breaker_reset)
        name = config.application_name or config.default_application_name(socket.gethostname(), os.getpid())
        self.driver = Driver(config, name, self._demoted)
        self.opener = Opener(self)
        self.repairs = Repairs(self)
        self.janitor = Janitor(self)
        self.drain = Drain(self)
        self.wait = Histogram(events.durations["wait"])
        self.lease = Histogram(events.durations["lease"])
        self.connect = Histogram(events.durations["connect"])
        self.ping = Histogram(events.durations["ping"])
        self.reset = Histogram(events.durations["reset"])
        self.connect_failed = self.opened = self.closed = self.dead = self.repaired = self.abandoned = self.leaked = 0
        self.attached = 0  # requests that may still ask for a connection of this pool
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self.expired_at = float("-inf")
        self._demoted_at = float("-inf")
        self.owner = asyncio.current_task()
        self.on_acquire = hooks.before_lending(config)
        # Every connection that comes back gets something first, so that none can go straight to the next.
        self._always_repair = config.reset != "rollback" or config.on_release is not None

    async def start(self) -> None:
        """Open ``minsize`` connections (at least one) unless ``connect_at_start`` is off."""
        try:
            if self.config.connect_at_start:
                await self.opener.fill(max(1, self.config.minsize))
                await self._check_budget()
        except BaseException:
            await self.stop()
            raise
        self.janitor.start()
        self.attend()

    async def _check_budget(self) -> None:
        config = self.config
        if config.pgbouncer:  # it is PgBouncer's limits that count, and these cannot be asked for
            return
        # Nobody else is here yet: without a lease no hook runs and nothing is counted.
        link = self.gate.idle_slots()[0].link
        cursor = link.cursor()
        await link.run(cursor, LIMITS)
        row = link.read_first(cursor)
        limits = Limits(*(row.values() if isinstance(row, dict) else row))
        said = overdrawn(limits, processes=config.processes, maxsize=config.maxsize, budget=config.budget)
        if said is not None:
            if config.budget_strict:
                raise ConfigError(f"pool {self.key!r}: {said} (budget_strict)")
            logger.warning("pool %r: %s", self.key, said)

    async def stop(self) -> None:
        """Close everything now, by force where it must be."""
        self.gate.close()
        for slot in list(self.gate.slots):
            if isinstance(slot.holder, ScopedConnection):
                slot.holder._revoke("the application has stopped")
        self.janitor.stop()
        self.opener.stop()
        for task in self._tasks:  # what is being repaired now would otherwise go on without a pool
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_LIMIT)
            for task in late:  # a hook of the user's that holds on to its cancellation
                logger.warning("pool %r: %s does not end", self.key, task.get_name())
        for slot in list(self.gate.slots):
            self.drop(slot, "shutdown")
        try:
            await self.driver.close(CLOSE_LIMIT)
        except TimeoutError:
            logger.warning("pool %r: aiopg still counts connections that nobody has", self.key)

    def check_loop(self) -> None:
        """Raise PoolScopeError unless called in the event loop that the pool was made in."""
        loop = asyncio._get_running_loop()
        if loop is not self._loop:
            where = "outside of any event loop" if loop is None else "in another event loop, or another thread"
            raise PoolScopeError(
                f"pool {self.key!r} was used {where}: it belongs to the loop of its application. "
                "Use asyncio.run_coroutine_threadsafe(..., loop) from there"
            )

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run ``work`` in a task that ``stop`` knows of, and that knows nothing of the request which called for it."""
        context = self._context.copy()
        task = self._loop.create_task(work, name=f"poolscope {self.key}: {name}", context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def lend(self, db: ScopedConnection) -> bool:
        """Lend an idle and fresh connection, at once. False: there is none, ``borrow`` has to be awaited."""
        while True:
            slot = self.gate.try_acquire(time.monotonic())
            if slot is None:
                return False
            if not slot.link.raw.closed:
                db._hold(slot)
                self.wait.record_zero()
                if Acquired in self.heard:
                    self.watch.lent(db, 0.0, queued=False)
                return True
            self.gate.cancel_lend(slot)
            self.bury(slot)

    async def borrow(self, db: ScopedConnection, timeout: float | None = None) -> None:
        """Lend a connection to ``db``, waiting for it if need be; or one of the errors of ``Watch.unserved``."""
        hook = self.on_acquire
        begun = time.monotonic()
        end = begun + (self.config.acquire_timeout if timeout is None else timeout)
        if not self.lend(db):
            if not db.running:
                self.gate.make_room()
            slot = await self._queue(db, begun, end)
            while slot.link.closed:  # it died between the hand-over and now
                if slot in self.gate.slots:
                    self.gate.cancel_lend(slot)
                self.bury(slot)
                slot = await self._queue(db, begun, end)
            waited = time.monotonic() - begun
            db._hold(slot)
            self.wait.record(waited)
            self.watch.lent(db, waited, queued=True)
        if hook is not None and db._slot is not None:
            await hooks.prepare(self, hook, db, db._slot, end - time.monotonic())

    async def _queue(self, db: ScopedConnection, begun: float, end: float) -> Slot[Link]:
        gate = self.gate
        joined = time.monotonic()
        place = Place(self._loop.create_future(), db, end)
        gate.join(place, joined)
        if place.outcome is None and self.unreachable:
            gate.withdraw(place, Outcome.FAILED, joined)
        if place.outcome is None:
            self.attend()
            self.janitor.hurry()
            if end - joined < SOON:
                self._set_timer(place, joined)
            try:
                await place.future
            except BaseException:  # whatever it is, no place may be left behind: the next connection would go to it
                gate.withdraw(place, Outcome.CANCELLED, time.monotonic())
                self.watch.ended(db, place.outcome, time.monotonic() - begun)
                raise
            finally:
                if place.timer is not None:
                    place.timer.cancel()
        now = time.monotonic()
        if place.outcome is Outcome.LENT and place.gone():
            gate.withdraw(place, Outcome.CLIENT_GONE, now)
        if place.outcome is not Outcome.LENT:
            raise self.watch.unserved(db, place.outcome, now - begun)
        return gate.claim(place)

    def set_timers(self, now: float) -> None:
        """Give a timer to those whose time is nearly over: nearly all are served before."""
        for place in self.gate.waiters():
            if isinstance(place, Place) and place.end - now < SOON and place.timer is None:
                self._set_timer(place, now)

    def _set_timer(self, place: Place, now: float) -> None:
        place.timer = self._loop.call_later(place.end - now, self._time_out, place, context=self._context)

    def _time_out(self, place: Place) -> None:
        if place.outcome is None:
            self.gate.withdraw(place, Outcome.TIMED_OUT, time.monotonic())
            place.wake()

    @property
    def unreachable(self) -> bool:
        """Whether waiting is pointless: the breaker is open and no connection is left."""
        return not self.gate.slots and not self.breaker.closed

    def take_back(self, slot: Slot[Link]) -> None:
        """A lease has ended. A clean and young connection is free at once; a task sees to any other."""
        now = time.monotonic()
        held, holder, slot.holder = now - slot.since, slot.holder, None
        if slot.link.clean and now < slot.expires and not self._always_repair:
            self.gate.give(slot, now)
        else:
            self.gate.repair(slot, now)
            self.repairs.begin(slot)
        self.lease.record(held)
        if Released in self.heard:
            self.watch.returned(holder, held)

    def came_late(self, db: ScopedConnection, since: float) -> None:
        """A lease that was reported as a leak has ended after all."""
        self.watch.came_late(db, time.monotonic() - since)

    def drop(self, slot: Slot[Link], reason: CloseReason, cause: str | None = None) -> None:
        """Close a connection and free its room. Harmless when it is gone already."""
        if slot not in self.gate.slots:
            return
        try:
            slot.link.close()
        finally:  # whatever the driver, or the loop, has against it: it is lent to nobody again
            self.gate.lost(slot, time.monotonic())
            self.closed += 1
            self.driver.forget_empty()
            self.watch.closed(slot, reason, cause)

    def bury(self, slot: Slot[Link]) -> None:
        """Drop a connection that was found dead."""
        self.dead += 1
        self.drop(slot, "dead")

    def attend(self) -> None:
        """See to those who wait: check idle connections for them, open new ones. After whatever may call for it."""
        if self.gate.closed or self.gate.busy:
            return
        while (slot := self.gate.next_check(time.monotonic())) is not None:
            if slot.link.closed:
                self.bury(slot)
            else:
                self.repairs.check(slot)
        self.opener.attend()

    def expire(self) -> None:
        """Replace every connection as it comes back."""
        self.expired_at = time.monotonic()
        self._replace(lambda _: True)

    def _replace(self, chosen: Callable[[Link], bool]) -> None:
        for slot in [slot for slot in self.gate.slots if chosen(slot.link)]:
            slot.expires = float("-inf")
            if slot.state is SlotState.IDLE:
                self.drop(slot, "expired")
        self.attend()

    def _demoted(self, link: Link) -> None:
        """A write was refused as read-only: see whether its server has become a standby."""
        now = time.monotonic()
        # Where only a standby is left, each write would have its connections replaced.
        if now - self._demoted_at >= DEMOTION_PAUSE:
            self._demoted_at = now
            self.spawn(self._leave_standby(link), "role")

    async def _leave_standby(self, link: Link) -> None:
        """Replace every connection to a server that has become a standby, and try its host last."""
        with contextlib.suppress(PoolScopeError, OSError):
            if await self.driver.is_standby(link):
                logger.warning("pool %r: %s is a standby now; its connections are replaced", self.key, link.target)
                self.driver.avoid(link.target)
                self._replace(lambda other: other.target == link.target)

    async def seek(self) -> None:
        """Go back to servers of the role that is looked for, if there are any."""
        if await self.driver.finds_role():
            logger.info("pool %r: there is a %s again", self.key, self.config.target.removeprefix("prefer-"))
            # All of a server's: a connection hears of a promotion only when it is used.
            wrong = {slot.link.target for slot in self.gate.slots if not slot.link.in_role}
            self._replace(lambda link: link.target in wrong)

    def stalled(self) -> bool:
        """Whether all connections are where they are for longer than a statement may take."""
        limit = self.config.statement_timeout or STALLED
        last = max((slot.since for slot in self.gate.slots), default=float("-inf"))
        return time.monotonic() - last > limit + SILENCE_MARGIN

    def lifetime_end(self, begun: float) -> float:
        """When a connection is too old: ``max_lifetime``, up to 10 % less so that not all end at once."""
        lifetime = self.config.max_lifetime
        if begun <= self.expired_at:  # expire() was called while it was being opened
            return float("-inf")
        return float("inf") if lifetime is None else begun + lifetime * (1 - 0.1 * random.random())  # noqa: S311

    def holders(self) -> list[tuple[Slot[Link], ScopedConnection]]:
        """The leases there are."""
        return [(slot, slot.holder) for slot in tuple(self.gate.slots) if isinstance(slot.holder, ScopedConnection)]

    def leases(self) -> tuple[Lease, ...]:
        """Who holds what, longest first."""
        now = time.monotonic()
        found = [describe(db, now - slot.since) for slot, db in self.holders()]
        return tuple(sorted(found, key=lambda lease: -lease.held))

    def stats(self) -> PoolStats:
        """The numbers of this moment. An exporter's thread may ask: what changes meanwhile is copied at one go."""
        gate, now = self.gate, time.monotonic()
        slots = tuple(gate.slots)
        ended = {outcome.value: count for outcome, count in gate.ended.items()}
        return PoolStats(
            size=gate.size,
            idle=gate.idle,
            in_use=gate.lent,
            opening=gate.opening,
            repairing=gate.repairing,
            waiting=gate.waiting,
            minsize=gate.minsize,
            maxsize=gate.maxsize,
            borrows=gate.borrows - gate.waiting - gate.handed,
            lent=gate.taken,
            **ended,
            opened=self.opened,
            closed=self.closed,
            dead=self.dead,
            repaired=self.repaired,
            abandoned=self.abandoned,
            leaked=self.leaked,
            connect_failed=self.connect_failed,
            errors=dict(self.watch.errors),
            oldest_wait=max((now - waiter.since for waiter in gate.waiters()), default=0.0),
            oldest_lease=max((now - slot.since for slot in slots if slot.state is SlotState.LENT), default=0.0),
            breaker=str(self.breaker.state),
            wait=self.wait.snapshot(),
            lease=self.lease.snapshot(),
            connect=self.connect.snapshot(),
            ping=self.ping.snapshot(),
            reset=self.reset.snapshot(),
        )
