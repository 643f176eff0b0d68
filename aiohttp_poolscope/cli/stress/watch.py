"""The database's view of the service under `stress`: its sessions, seen from a connection of our own."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ("Left", "Watch", "watching")

EVERY = 0.1
SESSIONS = """
SELECT count(*)::int, count(*) FILTER (WHERE state LIKE 'idle in transaction%')::int,
       count(*) FILTER (WHERE state = 'active')::int, count(*) FILTER (WHERE state IS NULL)::int
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
LEFT = """
SELECT count(*) FILTER (WHERE state LIKE 'idle in transaction%%')::int, count(*) FILTER (WHERE state = 'active')::int
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
  AND state_change BETWEEN %s AND %s
"""


@dataclass(frozen=True, slots=True)
class Left:
    """Sessions that are still at what the clients who left had begun, when all of them have been gone for a while."""

    idle_in_transaction: int
    active: int


class Watch:
    """The most that was seen, and what is left. All sessions of the database count, but for this one."""

    def __init__(self, scope: poolscope.PoolScope) -> None:
        self._scope = scope
        self._begun: Any = None
        self._ended: Any = None
        self.before = self.most = self.most_idle_in_transaction = self.most_active = self.after = self.hidden = 0
        self.left: Left | None = None

    async def begin(self) -> None:
        """Before anything is sent."""
        self._begun = await self._scope.fetchval("SELECT clock_timestamp()")
        self.before, *_ = await self._scope.fetchrow(SESSIONS)

    async def run(self) -> None:
        """Look, again and again."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Look once."""
        self.after, idle, active, self.hidden = await self._scope.fetchrow(SESSIONS)
        self.most = max(self.most, self.after)
        self.most_idle_in_transaction = max(self.most_idle_in_transaction, idle)
        self.most_active = max(self.most_active, active)

    async def all_gone(self) -> None:
        """The last client has left."""
        self._ended = await self._scope.fetchval("SELECT clock_timestamp()")

    async def look_for_leftovers(self) -> None:
        """After the pause, before anything else is sent."""
        self.left = Left(*await self._scope.fetchrow(LEFT, (self._begun, self._ended)))


@contextlib.asynccontextmanager
async def watching(dsn: str) -> AsyncIterator[Watch]:
    """Connect, beside the service."""
    async with poolscope.open(dsn, key="stress", minsize=1, maxsize=1, processes=1, rows="tuple") as scope:
        watch = Watch(scope)
        await watch.begin()
        yield watch
