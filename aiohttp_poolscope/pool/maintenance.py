"""Maintenance: what is done to one connection. When it is done is for the opener and the recycler to say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp_poolscope.driver import IDLE, DatabaseError, without_values
from aiohttp_poolscope.errors import DatabaseUnavailable, PoolScopeError

from . import hooks

if TYPE_CHECKING:
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.connection import Lender
    from aiohttp_poolscope.driver import BeforeStatement, Connector, OpenConnection, StatementObserver

__all__ = ("Maintenance",)


class Maintenance:
    """Creates, pings and restores connections. It knows no gate, and needs no pool but as the lender that hooks see.

    ``before``: what is awaited before each statement of the connections; it may be changed at any time.
    """

    def __init__(self, config: PoolConfig, driver: Connector, lender: Lender, observer: StatementObserver) -> None:
        self.before: list[BeforeStatement] = []
        self._told: dict[str, str] = {}
        self._config = config
        self._driver = driver
        self._lender = lender
        self._observer = observer

    async def create(self) -> OpenConnection:
        """Open a connection and run ``on_connect`` with it. Closed again if that fails, with DatabaseUnavailable."""
        link = await self._driver.open()
        try:
            link.observer, link.slow_after, link.before = self._observer, self._config.slow_threshold, self.before
            link.pool = self._config.key
            if self._config.on_connect is not None:
                await self._run_on_connect(link)
            link.watch_session = self._config.reset == "auto" and not self._config.pgbouncer
        except BaseException:
            link.close()
            raise
        return link

    async def ping(self, link: OpenConnection) -> None:
        """One round trip."""
        await link.ping()

    async def restore(self, link: OpenConnection) -> None:
        """Make a returned connection as new: no transaction, no statement in flight, the session as configured."""
        config = self._config
        if not link.clean:
            await link.cancel_and_wait()
            if not link.closed and link.status != IDLE:
                await link.run(link.cursor(), "ROLLBACK")
        if config.on_release is not None:
            await hooks.run(self._lender, config.on_release, link)
        if link.closed:
            return
        if config.reset == "full" or link.session_changed:
            await link.reset("DISCARD ALL")
            if config.on_connect is not None:
                await hooks.run(self._lender, config.on_connect, link, keep_settings=True)
        elif config.reset not in {"auto", "rollback"}:
            await link.reset(config.reset)
        link.session_changed = False

    async def _run_on_connect(self, link: OpenConnection) -> None:
        limit = self._config.connect_timeout
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                await hooks.run(self._lender, self._config.on_connect, link, self._told, keep_settings=True)
        except DatabaseUnavailable:
            raise
        except (DatabaseError, PoolScopeError, TimeoutError) as error:
            late = isinstance(error, TimeoutError) and timer.expired()
            said = f"not done within {limit:g} s" if late else without_values(error)
            raise DatabaseUnavailable(f"on_connect failed: {said}") from error
