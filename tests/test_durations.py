"""Durations for whoever keeps histograms of their own: the same ones that the pool counts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, get_args

import pytest

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import events as ev
from aiohttp_poolscope import logs
from aiohttp_poolscope.stats import Duration

from .conftest import until


async def test_durations_are_those_of_the_histograms(dsn: str) -> None:
    """on_duration tells each duration of a kind, asked for before the start or after, as often as it is counted."""
    told: dict[Any, list[float]] = {of: [] for of in get_args(Duration)}
    scope = poolscope.PoolScope(dsn, maxsize=1, check_after_idle=0.0)
    for of, seconds in told.items():
        scope.on_duration(seconds.append, of)
    async with scope.running():
        late: list[float] = []
        async with scope.acquire() as db:
            second = asyncio.create_task(scope.fetchval("SELECT 1"))
            await until(lambda: scope.stats().waiting == 1, "the second borrow")
            await db.execute("BEGIN")
        await second
        scope.on_duration(late.append, "lease")
        await scope.fetchval("SELECT 1")
        stats = scope.stats()
    for of, seconds in told.items():
        counted = getattr(stats, of)
        assert (len(seconds), sum(seconds)) == (counted.count, pytest.approx(counted.sum)), of
        assert seconds, of
    assert late == told["lease"][-1:]


async def test_a_duration_for_nothing_at_all(make_scope: Any) -> None:
    """A borrow that finds an idle connection has waited 0.0 seconds."""
    async with make_scope() as scope:
        waits: list[float] = []
        scope.on_duration(waits.append, "wait")
        await scope.fetchval("SELECT 1")
    assert waits == [0.0]


async def test_a_duration_callback_that_raises(
    make_scope: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody notices but the log, and the next callback is told."""
    monkeypatch.setattr(logs, "_limiter", logs.LogLimiter())
    async with make_scope() as scope:
        held: list[float] = []
        scope.on_duration(lambda _: 1 / 0, "lease")
        scope.on_duration(held.append, "lease")
        assert await scope.fetchval("SELECT 1") == 1
    assert len(held) == 1
    [said] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert said.getMessage() == "pool 'db': a callback failed at 'lease'"
    assert said.exc_info is not None
    assert said.exc_info[0] is ZeroDivisionError


async def test_a_connection_that_dies_on_its_way(make_scope: Any) -> None:
    """A borrow whose connection died between the hand-over and its waking is counted once, with all of its wait."""
    async with make_scope(minsize=1, maxsize=1) as scope:
        waits: list[float] = []
        scope.on_duration(waits.append, "wait")
        holder = await scope.acquire()
        waiting = asyncio.create_task(scope.fetchval("SELECT 1"))
        await until(lambda: scope.stats().waiting == 1, "the second borrow")
        [slot] = scope._run.pool.gate.slots
        holder.release()  # handed over, and cut before the other task runs
        slot.link.close()
        assert await waiting == 1
        stats = scope.stats()
        assert (stats.lent, stats.wait.count, stats.dead, len(waits)) == (2, 2, 1, 2)


async def test_statements_of_on_connect_are_watched(make_scope: Any) -> None:
    """One that is slow, or fails, is told of as any other."""
    told: list[ev.StatementEvent] = []

    async def on_connect(db: Any) -> None:
        await db.execute("SELECT pg_sleep(0.35)")
        with contextlib.suppress(Exception):
            await db.execute("SELECT 1 / 0")

    async with make_scope(on_connect=on_connect, slow_threshold=0.3) as scope:
        scope.on_event(told.append, ev.StatementEvent)
        scope.expire()
        await scope.fetchval("SELECT 1")
        assert scope.stats().errors["statement"] == 2
    assert [(event.kind, event.statement) for event in told] == [
        ("slow", "SELECT pg_sleep(?)"),
        ("error", "SELECT ? / ?"),
    ]


def test_what_is_no_duration() -> None:
    """It is refused where it is given."""
    scope = poolscope.PoolScope("postgresql://localhost/app")
    with pytest.raises(poolscope.ConfigError, match=r"on_duration\(None\)"):
        scope.on_duration(None, "wait")  # type: ignore[arg-type]

    async def later(seconds: float) -> None: ...

    with pytest.raises(poolscope.ConfigError, match="plain function"):
        scope.on_duration(later, "wait")
    with pytest.raises(poolscope.ConfigError, match=r"'leases'.*'wait', 'lease', 'connect', 'ping', 'reset'"):
        scope.on_duration(print, "leases")  # type: ignore[arg-type]


@pytest.mark.parametrize("of", ["lease", "connect", "ping", "reset"])
async def test_what_a_callback_sees(make_scope: Any, of: Duration) -> None:
    """When it is called the state has changed already: nothing that it raises, not even GracefulExit, is in its way."""
    seen: list[tuple[int, int]] = []

    def look(_: float) -> None:
        stats = scope.stats()
        seen.append((stats.in_use, len(scope.leases())) if of == "lease" else (stats.opening, stats.repairing))

    async with make_scope(maxsize=1, check_after_idle=0.0, acquire_timeout=5) as scope:
        scope.on_duration(look, of)
        async with scope.acquire() as db:
            await db.execute("BEGIN")
        await scope.fetchval("SELECT 1")
        scope.expire()
        await scope.fetchval("SELECT 1")
    assert seen
    assert set(seen) == {(0, 0)}
