"""The doctor's questions to a server. It asks them through a pool, as a service would."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import statistics
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp_poolscope.capacity.limits import LIMITS, Limits
from aiohttp_poolscope.driver import DatabaseError
from aiohttp_poolscope.errors import DatabaseUnavailable, PoolScopeError
from aiohttp_poolscope.web.outside import Outside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from aiohttp_poolscope.config import PoolConfig

__all__ = ("Facts", "Setting", "alone", "as_it_must_be", "examine", "idle_lost", "running", "through_pooler")

T = TypeVar("T")

ROUND_TRIPS = 15
ANSWER_LIMIT = 5.0
"""Seconds that a connection which was idle has for its answer."""

SERVER = """
SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
       current_user::text, current_database()::text, pg_backend_pid(), r.rolsuper, getdatabaseencoding()::text,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())::int,
       (SELECT count(*) FROM pg_stat_activity
         WHERE state LIKE 'idle in transaction%' AND state_change < now() - interval '60 s')::int
  FROM pg_roles AS r WHERE r.rolname = current_user
"""
SETTINGS = """
SELECT name, setting, coalesce(unit, ''), source FROM pg_settings WHERE name IN (
    'statement_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout', 'transaction_timeout',
    'idle_session_timeout', 'client_connection_check_interval', 'tcp_keepalives_idle', 'tcp_user_timeout',
    'default_transaction_read_only', 'client_encoding', 'TimeZone')
"""
UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a session: its value, in seconds where it is a duration, and its source."""

    value: str | float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A server's account of itself, and what could be seen of the way to it."""

    host: str
    port: int
    tls: bool
    sslmode: str
    version_number: int
    version: str
    standby: bool
    user: str
    database: str
    superuser: bool
    encoding: str
    sessions: int
    """Of all clients, the doctor's left out."""
    stuck: int
    """Transactions that have been idle for longer than a minute."""
    pooler: bool
    """Whether something like PgBouncer is in between: it makes up the backend's number."""
    refuses_options: bool
    connect: float
    """Seconds that the connect took."""
    round_trips: tuple[float, ...]
    limits: Limits
    with_ours: Mapping[str, Setting]
    """In a session as the pool opens it."""
    without: Mapping[str, Setting]
    """In a session for which the pool asks for nothing."""

    @property
    def round_trip(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.round_trips)

    @property
    def local(self) -> bool:
        """Whether the way there is a Unix socket or this machine's loopback."""
        if self.host.startswith(("/", "@")) or self.host in ("", "localhost"):
            return True
        with contextlib.suppress(ValueError):
            return ip_address(self.host).is_loopback
        return False


async def examine(config: PoolConfig) -> Facts:
    """Connect as a pool with these settings would, and ask.

    Raises DatabaseUnavailable where nothing answers, and whatever PostgreSQL says to a question.
    """
    refuses_options = False
    own = alone(config)
    try:
        asked = await _ask(own)
    except DatabaseUnavailable as error:
        if not _refused(config, error):
            raise
        refuses_options = True
        own = through_pooler(own)
        asked = await _ask(own)
    nothing = dataclasses.replace(
        own, statement_timeout=None, idle_in_transaction_timeout=None, abandon_interval=None, readonly=False
    )
    async with running(nothing) as scope:
        without = _settings(await scope.fetch(SETTINGS))
    return Facts(**asked, refuses_options=refuses_options, without=without)


async def idle_lost(config: PoolConfig, seconds: float) -> str | None:
    """Hold a connection idle for so long. Returns how it was lost, or None if it still answers."""
    async with running(dataclasses.replace(alone(config), keepalive=None)) as scope, scope.acquire() as db:
        await db.fetchval("SELECT 1")
        await asyncio.sleep(seconds)
        try:
            await db.fetchval("SELECT 1", timeout=ANSWER_LIMIT)
        except (PoolScopeError, DatabaseError) as error:
            return f"{error}".strip()
    return None


async def as_it_must_be(config: PoolConfig, ask: Callable[[PoolConfig], Awaitable[T]]) -> T:
    """Ask as the pool would; through a PgBouncer that refuses some of the settings, without these."""
    try:
        return await ask(config)
    except DatabaseUnavailable as error:
        if not _refused(config, error):
            raise
    return await ask(through_pooler(config))


def _refused(config: PoolConfig, error: DatabaseUnavailable) -> bool:
    return not config.pgbouncer and "pgbouncer=True" in str(error)


def through_pooler(config: PoolConfig) -> PoolConfig:
    """The same settings without what a PgBouncer refuses."""
    return dataclasses.replace(config, pgbouncer=True, readonly=False, reset="rollback")


def alone(config: PoolConfig) -> PoolConfig:
    """For one connection of the doctor's own, without the application's hooks."""
    return dataclasses.replace(
        config, minsize=0, maxsize=1, processes=1, budget_strict=False, budget=1.0, connect_at_start=True,
        on_connect=None, on_acquire=None, on_release=None, rows="tuple", leak_threshold=None, max_lease=None,
        request_tag="off", slow_threshold=None,
    )  # fmt: skip


def running(config: PoolConfig) -> AbstractAsyncContextManager[Outside]:
    """A pool with exactly these settings, for as long as the block runs."""
    return Outside(config).running()


async def _ask(config: PoolConfig) -> dict[str, Any]:
    async with running(config) as scope, scope.acquire() as db:
        number, version, standby, user, database, pid, superuser, encoding, sessions, stuck = await db.fetchrow(SERVER)
        limits = Limits(*await db.fetchrow(LIMITS))
        settings = _settings(await db.fetch(SETTINGS))
        round_trips = []
        for _ in range(ROUND_TRIPS):
            begun = time.perf_counter()
            await db.fetchval("SELECT 1")
            round_trips.append(time.perf_counter() - begun)
        way = db.raw.raw.info
        return {
            "host": way.host, "port": way.port, "tls": bool(way.ssl_in_use),
            "sslmode": config.params.get("sslmode", "prefer"), "pooler": way.backend_pid != pid,
            "version_number": number, "version": version, "standby": standby, "user": user, "database": database,
            "superuser": superuser, "encoding": encoding, "sessions": sessions, "stuck": stuck, "limits": limits,
            "connect": scope.stats().connect.sum, "round_trips": tuple(round_trips), "with_ours": settings,
        }  # fmt: skip


def _settings(rows: list[tuple[str, str, str, str]]) -> dict[str, Setting]:
    return {
        name: Setting(float(value) * UNITS[unit] if unit in UNITS else value, source)
        for name, value, unit, source in rows
    }
