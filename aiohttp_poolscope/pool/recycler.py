"""Repairs: what happens to a connection between two leases, in tasks that the pool knows.

The gate has set the connection aside meanwhile: nobody is lent it, nobody waits for it, and its room stays taken.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiohttp_poolscope.driver import IDLE, DatabaseError, without_values
from aiohttp_poolscope.errors import ConnectionReleased, PoolScopeError
from aiohttp_poolscope.gate import SlotState

from . import hooks

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from aiohttp_poolscope.driver import Link
    from aiohttp_poolscope.events import CloseReason
    from aiohttp_poolscope.gate import Slot
    from aiohttp_poolscope.stats import Histogram

    from .pool import Pool

__all__ = ("PING_LIMIT", "Repairs")

PING_LIMIT = 1.0
"""Seconds that a connection has to answer a ping; it is counted in the borrower's ``acquire_timeout``."""

REPAIR_LIMIT = 5.0
"""Seconds that a returned connection has to be rolled back and reset; longer than that, a new one is cheaper."""


class Repairs:
    """Rolls back, resets and pings the connections of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._checks: set[asyncio.Task[bool]] = set()

    def begin(self, slot: Slot[Link]) -> None:
        """Make a returned connection as new, or close it."""
        self._pool.spawn(self._repair(slot), "repair")

    def check(self, slot: Slot[Link], name: str = "check") -> asyncio.Task[bool]:
        """Ping a connection that was idle. The task's result is whether it answered."""
        task = self._pool.spawn(self._check(slot), name)
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)
        return task

    async def probe(self) -> bool | None:
        """Ping the idle connection that was used last: whether it, or any other, answered. None: none is idle."""
        pool = self._pool
        asked = None
        for slot in reversed(pool.gate.idle_slots()):
            if slot.state is not SlotState.IDLE:
                continue
            if slot.link.closed:
                pool.bury(slot)
                continue
            pool.gate.repair(slot, time.monotonic())
            asked = False
            if await _any_answered({self.check(slot, "probe")}):
                return True
            # A firewall may have forgotten this one alone. Others have been asked because of it.
            if await _any_answered(self._checks):
                return True
        return asked

    async def _repair(self, slot: Slot[Link]) -> None:
        try:
            await self._restore(slot, self._mend(slot), REPAIR_LIMIT, self._pool.reset)
        finally:
            self._pool.attend()

    async def _check(self, slot: Slot[Link]) -> bool:
        pool, answered = self._pool, False
        try:
            answered = await self._restore(slot, slot.link.ping(), PING_LIMIT, pool.ping)
        finally:
            if not answered:
                # A network that is silent is silent for all: they are asked together, not one after the other.
                now = time.monotonic()
                for other in pool.gate.idle_slots():
                    if now - other.since > pool.config.check_after_idle:
                        pool.gate.repair(other, now)
                        self.check(other)
            pool.attend()
        return answered

    async def _restore(self, slot: Slot[Link], work: Coroutine[Any, Any, None], limit: float, took: Histogram) -> bool:
        """Do ``work`` on a connection; afterwards it is free again, or gone. Whether the work succeeded."""
        pool, done, said, begun = self._pool, False, None, time.monotonic()
        try:
            async with asyncio.timeout(limit):
                await work
            done = True
        except (DatabaseError, PoolScopeError, TimeoutError) as error:
            said = f"no answer within {limit:g} s" if isinstance(error, TimeoutError) else without_values(error)
        finally:
            now = time.monotonic()
            if done and slot.link.clean and now < slot.expires and not pool.gate.closed:
                pool.gate.give(slot, now)
            else:
                pool.drop(slot, "failed" if said else self._reason(slot, now), said)
            took.record(now - begun)
        return done

    def _reason(self, slot: Slot[Link], now: float) -> CloseReason:
        if self._pool.gate.closed:
            return "shutdown"
        if slot.link.closed:
            return "dead"
        if now < slot.expires:
            return "failed"
        return "lifetime" if slot.expires > float("-inf") else "expired"

    async def _mend(self, slot: Slot[Link]) -> None:
        """Whatever a returned connection needs to be as new. It is left as it is where that is not worth it."""
        pool, link = self._pool, slot.link
        if link.busy:  # somebody the lease was not known to still waits for a statement
            pool.abandoned += 1
            link.fail(ConnectionReleased("the request ended while a statement of a task it left behind was running"))
        if link.closed or time.monotonic() >= slot.expires:
            pool.dead += link.closed
            return
        if not link.clean:
            if link.status != IDLE or link.cancelling is not None:
                pool.repaired += 1
            if link.raw.isexecuting():
                pool.abandoned += 1
            await link.settle()
            if not link.closed and link.status != IDLE:
                await link.run(link.cursor(), "ROLLBACK")
        await self._reset(slot)

    async def _reset(self, slot: Slot[Link]) -> None:
        config, link = self._pool.config, slot.link
        if config.on_release is not None:
            await hooks.run(self._pool, config.on_release, slot)
        if config.reset != "rollback" and not link.closed:
            await link.run(link.cursor(), "DISCARD ALL" if config.reset == "full" else config.reset)
            if config.reset == "full" and config.on_connect is not None:
                await hooks.run(self._pool, config.on_connect, slot)


async def _any_answered(checks: set[asyncio.Task[bool]]) -> bool:
    # Whoever asks may be cancelled; the pings go on, and give their connections back.
    done, _ = await asyncio.wait(tuple(checks)) if checks else ((), ())
    return any(not task.cancelled() and task.result() for task in done)
