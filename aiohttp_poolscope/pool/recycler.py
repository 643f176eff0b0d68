"""Recycler: what happens to a connection between two leases, in tasks that the pool knows.

The gate has set the connection aside meanwhile: nobody is lent it, nobody waits for it, and its room stays taken.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp_poolscope.driver import IDLE, DatabaseError, without_values
from aiohttp_poolscope.errors import ConnectionReleased, PoolScopeError
from aiohttp_poolscope.gate import SlotState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.events import CloseReason
    from aiohttp_poolscope.gate import Gate, Slot
    from aiohttp_poolscope.stats import Histogram

    from .inventory import Inventory
    from .maintenance import Maintenance
    from .reporter import Reporter
    from .tasks import Tasks

__all__ = ("PING_LIMIT", "Recycler")

PING_LIMIT = 1.0
"""Seconds that a connection has to answer a ping; it is counted in the borrower's ``acquire_timeout``."""

RESTORE_LIMIT = 5.0
"""Seconds that a returned connection has to be rolled back and reset; longer than that, a new one is cheaper."""


class Recycler:
    """Restores returned connections and pings idle ones.

    ``repaired`` counts those that came back in a transaction, ``abandoned`` the statements that nobody waited for.
    ``changed`` is called whenever a connection is free again, or gone.
    """

    def __init__(
        self,
        config: PoolConfig,
        gate: Gate[OpenConnection],
        maintenance: Maintenance,
        inventory: Inventory,
        tasks: Tasks,
        *,
        reporter: Reporter,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self.ping = reporter.histogram("ping")
        self.reset = reporter.histogram("reset")
        self.repaired = self.abandoned = 0
        self._check_after_idle = config.check_after_idle
        self._gate = gate
        self._maintenance = maintenance
        self._inventory = inventory
        self._tasks = tasks
        self._now = clock.monotonic
        self._changed = changed
        self._checks: set[asyncio.Task[bool]] = set()

    def recycle(self, slot: Slot[OpenConnection]) -> None:
        """Make a returned connection as new, or close it."""
        self._tasks.spawn(self._recycle(slot), "recycle")

    def check(self, slot: Slot[OpenConnection], name: str = "check") -> asyncio.Task[bool]:
        """Ping a connection that was idle. The task's result is whether it answered."""
        task = self._tasks.spawn(self._check(slot), name)
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)
        return task

    async def probe(self) -> bool | None:
        """Ping the idle connection that was used last: whether it, or any other, answered. None: none is idle."""
        asked = None
        for slot in reversed(self._gate.idle_slots()):
            if slot.state is not SlotState.IDLE:
                continue
            if slot.link.closed:
                self._inventory.discard_dead(slot)
                continue
            self._gate.repair(slot, self._now())
            asked = False
            if await _any_answered({self.check(slot, "probe")}):
                return True
            # A firewall may have forgotten this one alone. Others have been asked because of it.
            if await _any_answered(self._checks):
                return True
        return asked

    async def _recycle(self, slot: Slot[OpenConnection]) -> None:
        try:
            await self._settle(slot, self._restore(slot), RESTORE_LIMIT, self.reset)
        finally:
            self._changed()

    async def _check(self, slot: Slot[OpenConnection]) -> bool:
        answered = False
        try:
            answered = await self._settle(slot, self._maintenance.ping(slot.link), PING_LIMIT, self.ping)
        finally:
            if not answered:
                # A network that is silent is silent for all: they are asked together, not one after the other.
                now = self._now()
                for other in self._gate.idle_slots():
                    if now - other.since > self._check_after_idle:
                        self._gate.repair(other, now)
                        self.check(other)
            self._changed()
        return answered

    async def _settle(
        self, slot: Slot[OpenConnection], work: Coroutine[Any, Any, None], limit: float, took: Histogram
    ) -> bool:
        """Do ``work`` on a connection; afterwards it is free again, or gone. Whether the work succeeded."""
        done, said, begun = False, None, self._now()
        try:
            async with asyncio.timeout(limit):
                await work
            done = True
        except (DatabaseError, PoolScopeError, TimeoutError) as error:
            said = f"no answer within {limit:g} s" if isinstance(error, TimeoutError) else without_values(error)
        finally:
            now = self._now()
            if done and slot.link.clean and now < slot.expires and not self._gate.closed:
                self._gate.give(slot, now)
            else:
                self._inventory.discard(slot, "failed" if said else self._reason(slot, now), said)
            took.record(now - begun)
        return done

    def _reason(self, slot: Slot[OpenConnection], now: float) -> CloseReason:
        if self._gate.closed:
            return "shutdown"
        if slot.link.closed:
            return "dead"
        if now < slot.expires:
            return "failed"
        return "lifetime" if slot.expires > float("-inf") else "expired"

    async def _restore(self, slot: Slot[OpenConnection]) -> None:
        """Make a returned connection as new. It is left as it is where that is not worth it."""
        link = slot.link
        if link.busy:  # somebody the lease was not known to still waits for a statement
            self.abandoned += 1
            link.fail(ConnectionReleased("the request ended while a statement of a task it left behind was running"))
        if link.closed or self._now() >= slot.expires:
            return
        self.repaired += link.status != IDLE or link.cancelling is not None
        self.abandoned += link.executing
        await self._maintenance.restore(link)


async def _any_answered(checks: set[asyncio.Task[bool]]) -> bool:
    # Whoever asks may be cancelled; the pings go on, and give their connections back.
    done, _ = await asyncio.wait(tuple(checks)) if checks else ((), ())
    return any(not task.cancelled() and task.result() for task in done)
