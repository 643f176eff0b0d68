"""Roles: leaves a server that has become a standby, and goes back to a server of the wanted role."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from aiohttp_poolscope.errors import PoolScopeError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.driver import Connector, OpenConnection
    from aiohttp_poolscope.gate import Gate

    from .inventory import Inventory
    from .tasks import Tasks

__all__ = ("SEEK_EVERY", "Roles")

logger = logging.getLogger("aiohttp_poolscope")

DEMOTION_PAUSE = 0.25
"""Seconds before a standby's connections are replaced once more because of a write."""

SEEK_EVERY = 5.0
"""Seconds between looks for a server of the wanted role, while there are connections to another one."""


class Roles:
    """Replaces connections to servers of the wrong role. ``changed`` is called when some have been closed."""

    def __init__(
        self,
        config: PoolConfig,
        gate: Gate[OpenConnection],
        driver: Connector,
        inventory: Inventory,
        tasks: Tasks,
        *,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        driver.on_read_only_error = self.on_read_only_error
        self._key = config.key
        self._wanted = config.target.removeprefix("prefer-")
        self._gate = gate
        self._driver = driver
        self._inventory = inventory
        self._tasks = tasks
        self._now = clock.monotonic
        self._changed = changed
        self._demoted_at = float("-inf")
        self._sought_at = 0.0
        self._seeking: asyncio.Task[None] | None = None

    def on_read_only_error(self, link: OpenConnection) -> None:
        """A write was refused as read-only: see whether its server has become a standby."""
        now = self._now()
        # Where only a standby is left, each write would have its connections replaced.
        if now - self._demoted_at >= DEMOTION_PAUSE:
            self._demoted_at = now
            self._tasks.spawn(self._leave_standby(link), "role")

    def look(self, now: float) -> None:
        """While a connection is to a server of another role than wanted: look for a better one now and then."""
        if self._seeking is not None and not self._seeking.done():
            self._sought_at = now
        elif now - self._sought_at >= SEEK_EVERY and not all(slot.link.in_role for slot in self._gate.slots):
            self._sought_at = now
            self._seeking = self._tasks.spawn(self._find_better_role(), "seek")

    async def _leave_standby(self, link: OpenConnection) -> None:
        """Replace every connection to a server that has become a standby, and try its host last."""
        with contextlib.suppress(PoolScopeError, OSError):
            if await self._driver.is_standby(link):
                logger.warning("pool %r: %s is a standby now; its connections are replaced", self._key, link.target)
                self._driver.avoid(link.target)
                self._replace(lambda other: other.target == link.target)

    async def _find_better_role(self) -> None:
        """Go back to servers of the wanted role, if there are any."""
        if await self._driver.finds_role():
            logger.info("pool %r: there is a %s again", self._key, self._wanted)
            # All of a server's: a connection hears of a promotion only when it is used.
            wrong = {slot.link.target for slot in self._gate.slots if not slot.link.in_role}
            self._replace(lambda link: link.target in wrong)

    def _replace(self, chosen: Callable[[OpenConnection], bool]) -> None:
        self._inventory.retire(chosen)
        self._changed()
