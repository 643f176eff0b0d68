"""Pool: the asynchronous shell around the gate.

The gate decides, the pool acts: it lends and takes back, repairs and checks connections in tasks of its own, and has
an opener, a janitor and a drain. A borrower never waits inside the driver, and nothing it does while it is cancelled
touches a connection: either the connection is lent to it, or the gate still has it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from typing import TYPE_CHECKING, Any

from . import hooks
from .breaker import Breaker
from .budget import LIMITS, Limits, overdrawn
from .connection import ScopedConnection
from .drain import Drain
from .driver import IDLE, DatabaseError, Driver
from .errors import (
    ClientGone,
    ConfigError,
    ConnectionReleased,
    DatabaseUnavailable,
    PoolExhausted,
    PoolScopeError,
    QueueFull,
    ShuttingDown,
)
from .gate import Gate, Outcome, Slot, SlotState, Waiter
from .janitor import Janitor
from .leases import describe
from .opener import Opener
from .stats import Histogram, Lease, PoolStats

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .config import PoolConfig
    from .driver import Link

__all__ = ("Pool",)

logger = logging.getLogger("aiohttp_poolscope")

PING_LIMIT = 1.0
"""Seconds that a connection has to answer a ping; it is counted in the borrower's ``acquire_timeout``."""

REPAIR_LIMIT = 5.0
"""Seconds that a returned connection has to be rolled back and reset; longer than that, a new one is cheaper."""

CLOSE_LIMIT = 1.0
"""Seconds that aiopg has to end a pool without connections: it has nothing to wait for."""


class Place(Waiter["Link"]):
    """A place in the queue: a future, and the client it is for."""

    __slots__ = ("client", "future")

    def __init__(self, future: asyncio.Future[None], db: ScopedConnection) -> None:
        super().__init__(running=db.running)
        self.future = future
        self.client = db.client

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

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.key = config.key
        self.gate: Gate[Link] = Gate(
            maxsize=config.maxsize,
            minsize=config.minsize,
            max_waiting=config.max_waiting,
            queue_target=config.queue_target,
            check_after_idle=config.check_after_idle,
        )
        self.breaker = Breaker(config.breaker_failures, config.breaker_reset)
        name = config.application_name or config.default_application_name(socket.gethostname(), os.getpid())
        self.driver = Driver(config, name)
        self.opener = Opener(self)
        self.janitor = Janitor(self)
        self.drain = Drain(self)
        self.wait = Histogram()
        self.lease = Histogram()
        self.connect = Histogram()
        self.opened = self.closed = self.dead = self.repaired = self.abandoned = self.leaked = 0
        self.attached = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        # What every returned connection gets, so that none can go straight to the next.
        self.expired_at = float("-inf")
        self.owner = asyncio.current_task()
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
            self.drop(slot)
        try:
            await self.driver.close(CLOSE_LIMIT)
        except TimeoutError:
            logger.warning("pool %r: aiopg still counts connections that nobody has", self.key)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` in a task that ``stop`` knows of."""
        task = self._loop.create_task(work, name=f"poolscope {self.key}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def lend(self, db: ScopedConnection) -> bool:
        """Lend an idle and fresh connection, at once. False: there is none, ``borrow`` has to be awaited."""
        while True:
            slot = self.gate.ask(time.monotonic())
            if slot is None:
                return False
            if not slot.link.raw.closed:
                db._hold(slot)
                self.wait.record_zero()
                return True
            self.gate.undo(slot)
            self.bury(slot)

    async def borrow(self, db: ScopedConnection, timeout: float | None = None) -> None:
        """Lend a connection to ``db``, waiting for it if need be; or one of the errors of ``_refusal``."""
        hook = self.config.on_acquire
        limit = self.config.acquire_timeout if timeout is None else timeout
        end = time.monotonic() + limit
        if not self.lend(db):
            db._hold(await self._queue(db, limit))
        if hook is not None and db._slot is not None:
            await hooks.prepare(self, hook, db, db._slot, end - time.monotonic())

    async def _queue(self, db: ScopedConnection, timeout: float) -> Slot[Link]:
        gate = self.gate
        begun = time.monotonic()
        place = Place(self._loop.create_future(), db)
        gate.join(place, begun)
        if place.outcome is None and self.unreachable:
            gate.withdraw(place, Outcome.FAILED, begun)
        if place.outcome is None:
            self.attend()
            self.janitor.hurry()
            timer = self._loop.call_later(timeout, self._time_out, place)
            try:
                await place.future
            except asyncio.CancelledError:
                gate.withdraw(place, Outcome.CANCELLED, time.monotonic())
                raise
            finally:
                timer.cancel()
        now = time.monotonic()
        if place.outcome is Outcome.LENT and place.gone():
            gate.withdraw(place, Outcome.CLIENT_GONE, now)
        if place.outcome is not Outcome.LENT:
            raise self._refusal(place, now - begun)
        slot = gate.take(place)
        self.wait.record(now - begun)
        if slot.link.closed:  # it died between the hand-over and now
            if slot in gate.slots:
                gate.undo(slot)
            self.bury(slot)
            return await self._queue(db, max(0.0, timeout - (now - begun)))
        return slot

    def _time_out(self, place: Place) -> None:
        if place.outcome is None:
            self.gate.withdraw(place, Outcome.TIMED_OUT, time.monotonic())
            place.wake()

    def _refusal(self, place: Place, waited: float) -> PoolScopeError:
        gate = self.gate
        numbers = f"{gate.lent}/{gate.maxsize} in use, {gate.waiting} waiting, waited {waited:.1f} s"
        match place.outcome:
            case Outcome.CLIENT_GONE:
                return ClientGone(f"pool {self.key!r}: the client left while its request waited ({numbers})")
            case Outcome.FAILED:
                return DatabaseUnavailable(f"pool {self.key!r}: {self.opener.problem} ({numbers})")
            case Outcome.REFUSED if gate.draining:
                return ShuttingDown(f"pool {self.key!r} is shutting down")
            case Outcome.REFUSED:
                return QueueFull(
                    f"pool {self.key!r}: the queue is full ({numbers}). max_waiting is {self.config.max_waiting}"
                )
            case Outcome.SHED:
                return PoolExhausted(
                    f"pool {self.key!r}: more requests come than can be served, the longest waiting are refused "
                    f"({numbers}). Shorten the leases, raise maxsize, or see queue_target"
                )
        trouble = f" {self.opener.problem}." if self.opener.problem else ""
        return PoolExhausted(
            f"pool {self.key!r}: no connection within acquire_timeout ({numbers}).{trouble} "
            "scope.leases() tells who holds them"
        )

    @property
    def unreachable(self) -> bool:
        """Whether waiting is pointless: the breaker is open and no connection is left."""
        return not self.breaker.closed and not self.gate.slots

    def take_back(self, slot: Slot[Link]) -> None:
        """A lease has ended. A clean and young connection is free at once; a task sees to any other."""
        now = time.monotonic()
        self.lease.record(now - slot.since)
        slot.holder = None
        if slot.link.clean and now < slot.expires and not self._always_repair:
            self.gate.give(slot, now)
        else:
            self.gate.repair(slot, now)
            self.spawn(self._repair(slot), "repair")

    async def _repair(self, slot: Slot[Link]) -> None:
        await self._restore(slot, self._mend(slot), REPAIR_LIMIT)

    async def check(self, slot: Slot[Link]) -> None:
        """Ping a connection that was idle; the gate has set it aside."""
        await self._restore(slot, slot.link.ping(), PING_LIMIT)
        if slot.state is SlotState.GONE:
            # A network that is silent is silent for all: they are asked together, not one after the other.
            now = time.monotonic()
            for other in self.gate.idle_slots():
                if now - other.since > self.config.check_after_idle:
                    self.gate.repair(other, now)
                    self.spawn(self.check(other), "check")
            self.attend()

    async def _restore(self, slot: Slot[Link], work: Coroutine[Any, Any, None], limit: float) -> None:
        """Do ``work`` on a connection that the gate has set aside; afterwards it is free again, or gone."""
        sound = False
        try:
            async with asyncio.timeout(limit):
                await work
            sound = slot.link.clean and time.monotonic() < slot.expires
        except (DatabaseError, PoolScopeError, TimeoutError) as error:
            logger.info("pool %r: a connection is closed: %s", self.key, error)
        finally:
            if sound and not self.gate.closed:
                self.gate.give(slot, time.monotonic())
            else:
                self.drop(slot)
            self.attend()

    async def _mend(self, slot: Slot[Link]) -> None:
        """Whatever a returned connection needs to be as new. It is left as it is where that is not worth it."""
        link = slot.link
        if link.busy:  # somebody the lease was not known to still waits for a statement
            self.abandoned += 1
            link.fail(ConnectionReleased("the request ended while a statement of a task it left behind was running"))
        if link.closed or time.monotonic() >= slot.expires:
            self.dead += link.closed
            return
        if not link.clean:
            if link.status != IDLE or link.cancelling is not None:
                self.repaired += 1
            if link.raw.isexecuting():
                self.abandoned += 1
            await link.settle()
            if not link.closed and link.status != IDLE:
                await link.run(link.cursor(), "ROLLBACK")
        await self._reset(slot)

    async def _reset(self, slot: Slot[Link]) -> None:
        config, link = self.config, slot.link
        if config.on_release is not None:
            await hooks.run(self, config.on_release, slot)
        if config.reset != "rollback" and not link.closed:
            await link.run(link.cursor(), "DISCARD ALL" if config.reset == "full" else config.reset)
            if config.reset == "full" and config.on_connect is not None:
                await hooks.run(self, config.on_connect, slot)

    def drop(self, slot: Slot[Link]) -> None:
        """Close a connection and free its room. Harmless when it is gone already."""
        if slot not in self.gate.slots:
            return
        slot.link.close()
        self.gate.lost(slot, time.monotonic())
        self.closed += 1
        self.driver.forget_empty()

    def bury(self, slot: Slot[Link]) -> None:
        """Drop a connection that was found dead."""
        self.dead += 1
        self.drop(slot)

    def attend(self) -> None:
        """See to those who wait: check idle connections for them, open new ones. After whatever may call for it."""
        if self.gate.closed:
            return
        while (slot := self.gate.next_check(time.monotonic())) is not None:
            if slot.link.closed:
                self.bury(slot)
            else:
                self.spawn(self.check(slot), "check")
        self.opener.attend()

    def expire(self) -> None:
        """Replace every connection as it comes back."""
        self.expired_at = time.monotonic()
        for slot in self.gate.slots:
            slot.expires = float("-inf")
        for slot in self.gate.idle_slots():
            self.drop(slot)
        self.attend()

    def lifetime_end(self, begun: float) -> float:
        """When a connection is too old: ``max_lifetime``, up to 10 % less so that not all end at once."""
        lifetime, now = self.config.max_lifetime, begun
        if begun <= self.expired_at:  # expire() was called while it was being opened
            return float("-inf")
        return float("inf") if lifetime is None else now + lifetime * (1 - 0.1 * random.random())  # noqa: S311

    def holders(self) -> list[tuple[Slot[Link], ScopedConnection]]:
        """The leases there are."""
        return [(slot, slot.holder) for slot in self.gate.slots if isinstance(slot.holder, ScopedConnection)]

    def leases(self) -> tuple[Lease, ...]:
        """Who holds what, longest first."""
        now = time.monotonic()
        found = [describe(db, now - slot.since) for slot, db in self.holders()]
        return tuple(sorted(found, key=lambda lease: -lease.held))

    def stats(self) -> PoolStats:
        """The numbers of this moment."""
        gate = self.gate
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
            breaker=str(self.breaker.state),
            wait=self.wait.snapshot(),
            lease=self.lease.snapshot(),
            connect=self.connect.snapshot(),
        )
