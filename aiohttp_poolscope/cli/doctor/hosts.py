"""What the doctor asks each of several hosts: whether it answers, what it is, and how far behind a standby is."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp_poolscope.capacity.limits import LIMITS, Limits
from aiohttp_poolscope.driver import DatabaseError
from aiohttp_poolscope.errors import PoolScopeError

from .server import alone, as_it_must_be, running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.config.dsn import Host

__all__ = ("Answer", "Looked", "fitting", "primaries", "survey")

ROUND_TRIPS = 15
PATIENCE = 1.0
"""Seconds that a standby has to replay what its primary had when it was asked."""

STEP = 0.02
ROLES = {"primary": False, "standby": True}
"""The targets that only one role will do for: whether that is a standby."""

HOST = """
SELECT pg_is_in_recovery() AS standby, current_setting('server_version_num')::int / 10000 AS major,
       (SELECT system_identifier FROM pg_control_system()) AS cluster, pg_postmaster_start_time()::text AS started,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END,
                       '0/0')::int8 AS position,
       EXISTS (SELECT FROM pg_stat_wal_receiver) AS receiving
"""
REPLAYED = "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a host says of itself. Times are seconds, ``position`` and ``behind`` bytes of WAL."""

    standby: bool
    major: int
    cluster: int
    """PostgreSQL's system identifier: the same for a server and all that were copied from it."""
    started: str
    position: int
    receiving: bool
    """Whether it is a standby that has a connection to the server it follows."""
    limits: Limits
    connect: float
    round_trip: float
    level_after: float | None = None
    """How long it took to replay what its primary had; None: it has not, it is one itself, or there is none."""
    behind: int | None = None
    """How much of it was not replayed when the time for it was over."""

    @property
    def role(self) -> str:
        """In a word."""
        return "standby" if self.standby else "primary"

    @property
    def identity(self) -> tuple[int, str]:
        """The same for two names of one server, and for no other two."""
        return self.cluster, self.started


@dataclass(frozen=True, slots=True)
class Looked:
    """One host: its answer, or what is wrong with it."""

    name: str
    answer: Answer | None
    problem: str = ""


def fitting(hosts: Sequence[Looked], target: str) -> list[Looked]:
    """Those that a pool with this target would use."""
    wanted = ROLES.get(target)
    return [each for each in hosts if each.answer is not None and wanted in (None, each.answer.standby)]


def primaries(hosts: Sequence[Looked]) -> list[Answer]:
    """Each server that takes writes, once however many names it has."""
    found = {each.answer.identity: each.answer for each in hosts if each.answer is not None}
    return [answer for answer in found.values() if not answer.standby]


async def survey(config: PoolConfig) -> list[Looked]:
    """Look at every host at once, whatever its role, in the order of the DSN."""
    configs = [dataclasses.replace(alone(config), hosts=(host,), target="any") for host in config.hosts]
    one_by_one = asyncio.Lock()
    hosts = await asyncio.gather(*(_look(each, one_by_one) for each in configs))
    if len(leaders := primaries(hosts)) != 1:
        return hosts
    pairs = zip(hosts, configs, strict=True)
    return await asyncio.gather(*(_compared(looked, its, leaders[0]) for looked, its in pairs))


async def _look(config: PoolConfig, one_by_one: asyncio.Lock) -> Looked:
    (host,) = config.hosts
    name = _name(host)
    try:
        return Looked(name, await as_it_must_be(config, lambda its: _ask(its, one_by_one)))
    except (PoolScopeError, DatabaseError, OSError, UnicodeError) as error:
        said = " ".join(str(error).split())
        return Looked(name, None, said.partition(f"{name}: ")[2] or said or repr(error))


async def _ask(config: PoolConfig, one_by_one: asyncio.Lock) -> Answer:
    # They connect at the same time, since one that is away takes long. But what is measured is measured alone.
    async with running(dataclasses.replace(config, rows="dict")) as scope, one_by_one, scope.acquire() as db:
        said = await db.fetchrow(HOST)
        limits = Limits(*(await db.fetchrow(LIMITS)).values())
        round_trips = []
        for _ in range(ROUND_TRIPS):
            begun = time.perf_counter()
            await db.fetchval("SELECT 1")
            round_trips.append(time.perf_counter() - begun)
        connect = scope.stats().connect.sum
        return Answer(**said, limits=limits, connect=connect, round_trip=statistics.median(round_trips))


async def _compared(looked: Looked, config: PoolConfig, primary: Answer) -> Looked:
    """A standby with how far it is behind its primary; others as they are."""
    answer = looked.answer
    if answer is None or not answer.standby or answer.cluster != primary.cluster:
        return looked
    try:
        level_after, behind = await as_it_must_be(config, lambda its: _level(its, primary.position))
    except (PoolScopeError, DatabaseError, OSError):
        return looked  # it has gone meanwhile; that it was there is what we know
    return dataclasses.replace(looked, answer=dataclasses.replace(answer, level_after=level_after, behind=behind))


async def _level(config: PoolConfig, position: int) -> tuple[float | None, int]:
    """When a standby had replayed up to a position, and what was missing at the end."""
    async with running(config) as scope, scope.acquire() as db:
        begun = time.monotonic()
        while (missing := position - (await db.fetchval(REPLAYED) or 0)) > 0:
            if time.monotonic() - begun > PATIENCE:
                return None, missing
            await asyncio.sleep(STEP)
        return time.monotonic() - begun, 0


def _name(host: Host) -> str:
    return f"{host.host or host.hostaddr or 'local socket'}:{host.port}"
