"""Opener: connections for the pool, one at a time, in the background.

It works for the pool and not for a waiter, so a connect that hangs delays nobody who can be served by a return. It
lives only while there is something to open, and it alone keeps asking a database that is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING

from aiohttp_poolscope.driver import DatabaseError, without_values
from aiohttp_poolscope.errors import DatabaseUnavailable, PoolScopeError
from aiohttp_poolscope.events import BreakerClosed, BreakerOpened, ConnectFailed, Opened
from aiohttp_poolscope.gate import Slot

from . import hooks

if TYPE_CHECKING:
    from aiohttp_poolscope.driver import Link

    from .pool import Pool

__all__ = ("Opener",)


class Opener:
    """Opens while the gate wants it. ``problem`` is why the last attempt failed; empty if it did not."""

    def __init__(self, pool: Pool) -> None:
        self.problem = ""
        self._broken_since = 0.0
        self._pool = pool
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        self._attempted = asyncio.Event()

    def attend(self) -> None:
        """Start opening, if something is to be opened."""
        if self._wanted() and (self._task is None or self._task.done()):
            self._task = self._pool.spawn(self._run(), "opener")

    def stop(self) -> None:
        """Stop at once; what is half open is closed."""
        if self._task is not None:
            self._task.cancel()

    async def fill(self, count: int) -> None:
        """Open ``count`` connections, now; the first attempt that fails raises DatabaseUnavailable."""
        while len(self._pool.gate.slots) < count:
            await self._open()

    async def reaches(self, limit: float) -> bool:
        """Whether the next attempt to connect succeeds within ``limit`` seconds."""
        self._asked = True
        self.attend()
        opened = self._pool.opened
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._attempted.wait()
        return self._pool.opened > opened

    def _wanted(self) -> bool:
        gate = self._pool.gate
        if gate.wants_opening():
            return True
        # While the breaker is open somebody has to find out when the database is back, also with nobody waiting.
        looking = self._asked or not self._pool.breaker.closed
        return looking and not (gate.opening or gate.draining) and len(gate.slots) < gate.maxsize

    async def _run(self) -> None:
        pool = self._pool
        while self._wanted():
            try:
                await self._open()
            except Exception as error:  # noqa: BLE001 - also what the user's password and on_connect raise: it must go on trying
                self._failed(error)
                self._attempt_ended()
                await asyncio.sleep(pool.breaker.pause(random.random()))  # noqa: S311

    async def _open(self) -> None:
        """One attempt. Whatever happens in it, the room it takes is free again or has a connection in it."""
        pool = self._pool
        begun = time.monotonic()
        pool.breaker.probe()
        room = pool.gate.reserve()
        slot: Slot[Link] | None = None
        try:
            slot = Slot(await pool.driver.open())
            slot.link.watch, slot.link.slow_after = pool.watch, pool.config.slow_threshold
            if pool.config.on_connect is not None:
                await self._run_connect_hook(slot)
            if pool.gate.closed:  # the user's code swallowed its cancellation: nobody would close this connection
                raise asyncio.CancelledError
        except BaseException:
            if slot is not None:
                slot.link.close()
            room.free()
            raise
        now = time.monotonic()
        pool.opened += 1
        self.problem = ""
        recovered = pool.breaker.succeeded()
        slot.expires = pool.lifetime_end(begun)
        room.fill(slot, now)
        self._attempt_ended()
        pool.connect.record(now - begun)
        pool.watch.tell(Opened, duration=now - begun)
        if recovered:
            pool.watch.tell(BreakerClosed, duration=now - self._broken_since)

    def _attempt_ended(self) -> None:
        self._asked = False
        self._attempted.set()
        self._attempted = asyncio.Event()

    async def _run_connect_hook(self, slot: Slot[Link]) -> None:
        limit = self._pool.config.connect_timeout
        try:
            async with asyncio.timeout(limit):
                await hooks.run(self._pool, self._pool.config.on_connect, slot)
        except DatabaseUnavailable:
            raise
        except (DatabaseError, PoolScopeError, TimeoutError) as error:
            said = f"not done within {limit:g} s" if isinstance(error, TimeoutError) else without_values(error)
            raise DatabaseUnavailable(f"on_connect failed: {said}") from error

    def _failed(self, error: Exception) -> None:
        pool = self._pool
        self.problem = " ".join(str(error).split()) or type(error).__name__
        pool.connect_failed += 1
        opens, attempt = pool.breaker.failed(), pool.breaker.failures
        pool.watch.tell(ConnectFailed, cause=self.problem, attempt=attempt, error=error)
        if opens:
            self._broken_since = time.monotonic()
            pool.watch.tell(BreakerOpened, cause=self.problem, attempt=attempt)
        if pool.unreachable:
            pool.gate.fail()
