"""Driver: opens links, and owns the aiopg pools behind them."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import socket
from typing import TYPE_CHECKING, Any, Final

import aiopg
import psycopg2
import psycopg2.extras

from aiohttp_poolscope.clock import SYSTEM
from aiohttp_poolscope.errors import ConfigError, DatabaseUnavailable

from .errors import in_words
from .fork import let_go_in_children
from .link import Link
from .search import Search

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig

    from .address import Target
    from .port import OpenConnection

__all__ = ("Driver",)

CHECK_INTERVAL = "client_connection_check_interval"

PGBOUNCER = "unsupported startup parameter"
"""How PgBouncer refuses options; PostgreSQL has other words."""

ROWS: Final[dict[str, Any]] = {
    "tuple": None,
    "dict": psycopg2.extras.RealDictCursor,
    "namedtuple": psycopg2.extras.NamedTupleCursor,
}


class Driver:
    """Opens links, one attempt at a time, and owns the aiopg pools behind them.

    aiopg fixes a pool's connection parameters when it is made, so there is one pool for each address, TLS mode and
    password in use, and for each DSN that a DSN function has named. Nobody ever waits inside one: they are unbounded,
    hold no idle connection, and are closed when the last link has gone.

    ``config`` says where it connects to; ``name`` is what the server shows of its sessions.
    """

    def __init__(self, config: PoolConfig, application_name: str | None = None, clock: Clock = SYSTEM) -> None:
        self.on_read_only_error: Callable[[OpenConnection], None] | None = None
        self.config = config
        self.name = application_name or config.application_name or _default_name(config)
        self._clock = clock
        self._search = Search(config, clock)
        self._generation = 0
        self._pools: dict[tuple[object, ...], aiopg.Pool] = {}
        self._check_interval = config.abandon_interval is not None
        self._rows = ROWS[config.rows] if isinstance(config.rows, str) else config.rows
        self.use(config)

    def use(self, config: PoolConfig) -> None:
        """Connect to where this says from now on. Links that are open stay."""
        before, self.config = self.config, config
        if (before.hosts, before.target, before.params) != (config.hosts, config.target, config.params):
            self._search = Search(config, self._clock)
            self._generation += 1
        self._params = dict(config.params)
        # What could make libpq change to a second socket, which aiopg would never see.
        self._params.pop("fallback_application_name", None)
        self._params.setdefault("gssencmode", "disable")
        self._params["target_session_attrs"] = "any"
        # Told that a parameter in the options is unknown, libpq suspects application_name and connects again without
        # it. So that one stands in the options, too, unless libpq would find another one by itself.
        if config.pgbouncer or "PGAPPNAME" in os.environ:
            self._params["application_name"] = self.name

    async def open(self) -> Link:
        """Connect to the first host that answers and has the wanted role, or raise DatabaseUnavailable."""
        await self._follow()
        try:
            return await self._search.open(self._connect)
        finally:
            self.forget_empty()

    async def finds_role(self) -> bool:
        """Whether a server of the role that is looked for can be reached."""
        try:
            await self._follow()
            (await self._search.open(self._connect, lenient=False)).close()
        except DatabaseUnavailable:
            return False
        finally:
            self.forget_empty()
        return True

    async def is_standby(self, link: Any) -> bool:
        """Whether the server behind a link is a standby, asked on a connection of its own if it does not say."""
        told: bool | None = link.in_standby
        if told is None and link.generation != self._generation:
            return False  # it ends by itself, and what we know now is not for where it leads
        if told is None:
            async with asyncio.timeout(self.config.connect_timeout):
                other = await self._search.again(self._connect, link.target)
                try:
                    told = await other.is_standby()
                finally:
                    other.close()
                    self.forget_empty()
        return told

    def avoid(self, target: Target) -> None:
        """Try this one last from now on."""
        self._search.failed(target)

    async def close(self, timeout: float) -> None:
        """Close every aiopg pool. Their links must be closed first, or this gives up after ``timeout`` seconds."""
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()
        async with asyncio.timeout(timeout):
            for pool in pools:
                await pool.wait_closed()

    def forget_empty(self) -> None:
        """Close the aiopg pools that have lost their last connection."""
        for key, pool in list(self._pools.items()):
            if pool.size == 0:
                pool.close()
                del self._pools[key]

    async def _connect(self, target: Target, mode: str) -> Link:
        password = await self._password()
        try:
            try:
                return await self._acquire(target, mode, password)
            except psycopg2.Error as error:
                if not (self._check_interval and CHECK_INTERVAL in str(error)):
                    raise
                self._check_interval = False  # before PostgreSQL 14, or a platform that cannot watch a socket
                return await self._acquire(target, mode, password)
        except (psycopg2.Error, RuntimeError, AssertionError) as error:  # aiopg asserts that it did not die at once
            hint = " (is this PgBouncer? then set pgbouncer=True)" if PGBOUNCER in str(error) else ""
            raise DatabaseUnavailable(in_words(error) + hint) from error

    async def _follow(self) -> None:
        """Ask the function that knows where the database is, if there is one."""
        config = self.config
        if config.source is not None:
            dsn = await _asked(config.source, "DSN", config.connect_timeout)
            try:
                now = config.at(dsn)
            except ConfigError as error:
                raise DatabaseUnavailable(str(error)) from error
            if (now.hosts, now.params, now.password, now.target) != (
                config.hosts, config.params, config.password, config.target
            ):  # fmt: skip
                self.use(now)

    async def _password(self) -> str | None:
        config = self.config
        given = config.password
        return await _asked(given, "password", config.connect_timeout) if callable(given) else given

    async def _acquire(self, target: Target, mode: str, password: str | None) -> Link:
        generation = self._generation  # of the parameters below, whatever they are when it is connected
        key = (target, mode, password, self._check_interval, generation)
        pool = self._pools.get(key)
        if pool is None:
            params: dict[str, Any] = {**self._params, **target.parameters(), "sslmode": mode}
            # else wait_for: a timer for each statement, and lost cancellations on 3.11
            params["timeout"] = None
            if password is not None:
                params["password"] = password
            if options := self._options():
                params["options"] = options
            pool = self._pools[key] = await aiopg.create_pool(
                None,
                minsize=0,
                maxsize=0,
                enable_hstore=self.config.hstore,
                **params,
            )
        link = Link(await pool.acquire(), pool, target, self._rows, pgbouncer=self.config.pgbouncer, clock=self._clock)
        let_go_in_children(link.raw)
        link.generation = generation
        # Of a standby that was looked for, or in sessions that are read-only anyway, nobody expects to write.
        if not self.config.readonly and self.config.target in ("any", "primary"):
            link.on_read_only_error = self.on_read_only_error
        return link

    def _options(self) -> str:
        """What the session starts with. DISCARD ALL returns to it, unlike to a SET."""
        config = self.config
        given = self._params.get("options", "")
        if config.pgbouncer:
            return given
        limits = {
            "statement_timeout": config.statement_timeout,
            "idle_in_transaction_session_timeout": config.idle_in_transaction_timeout,
            CHECK_INTERVAL: config.abandon_interval if self._check_interval else None,
        }
        ours = [f"-c {name}={max(1, round(limit * 1000))}" for name, limit in limits.items() if limit is not None]
        # psycopg2 reads intervals of any other style wrongly, in silence.
        ours.append("-c intervalstyle=postgres")
        if config.readonly:
            ours.append("-c default_transaction_read_only=on")
        ours.append("-c application_name=" + re.sub(r"([\\\s])", r"\\\1", self.name))
        return " ".join([*ours, given]).strip()


def _default_name(config: PoolConfig) -> str:
    return config.default_application_name(socket.gethostname(), os.getpid())


async def _asked(function: Callable[[], Any], what: str, limit: float) -> Any:
    """What the user's function says within ``limit`` seconds; it may be async."""
    try:
        async with asyncio.timeout(limit):
            said = function()
            return await said if inspect.isawaitable(said) else said
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise DatabaseUnavailable(f"the {what} function was cancelled, by itself") from error
    except Exception as error:  # somebody else's code: a connect that failed, like any other
        raise DatabaseUnavailable(f"the {what} function failed: {error!r}") from error
