"""Failover: the primary goes, its standby takes over, and a service under load goes with it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal

import pytest

from aiohttp_poolscope.pool import roles
from tests.conftest import until
from tests.kit.load import load
from tests.kit.wire import wired_to

from .promises import kept
from .replication import Pair, through

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kit.load import Run

    from .conftest import Service
    from .service import Running

LOAD: dict[str, Any] = {"rate": 100, "paths": {"/write": 2, "/transfer": 1, "/read": 1}, "patience": 12.0}

TAKE_OVER = 5.0
"""Seconds in which the new primary is used: breaker_reset is 0.5, the rest is for a busy machine."""


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    """A primary and its standby, whatever the test before has left. What is committed, both have."""
    _pair.mend()
    _pair.synchronous()
    return _pair


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """While only a standby is left a write may have its connections replaced more often than every second."""
    monkeypatch.setattr(roles, "DEMOTION_PAUSE", 0.3)


async def first_write(run: Run, after: float) -> float:
    """When the first write was answered 200 that was asked for after a moment at which none could be served."""
    await run.success_after(after, "/write")
    return min(one.end for one in run.results if (one.path, one.status) == ("/write", 200) and one.at > after)


async def led_away(running: Running) -> float:
    """When none of the pool's connections was to a standby any more."""
    gate = running.pool.gate

    def away() -> bool:
        return not gate.opening and {slot.link.in_standby for slot in gate.slots} == {False}

    await until(away, "connections to the primary only", TAKE_OVER)
    return time.monotonic()


def assert_level(pair: Pair) -> None:
    """No write is on one of the servers only."""
    pair.catch_up()
    ids = "SELECT count(*), sum(id), min(id), max(id) FROM writes"
    assert pair.primary.sql(ids) == pair.standby.sql(ids)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_failover_under_load(
    pair: Pair, service: Service, seed: int, mode: Literal["fast", "immediate"]
) -> None:
    """What is in flight is a 503 or 504, the new primary is used as soon as it is one, and no write is lost."""
    dsn = pair.dsn(target="primary")
    async with service(dsn, direct=pair.direct, maxsize=5) as running, load(running.url, seed=seed, **LOAD) as run:
        await run.success_after(time.monotonic(), "/write")
        stopping = time.monotonic()
        await asyncio.to_thread(pair.primary.stop, mode)
        stopped = time.monotonic()
        if mode == "immediate":  # nobody expected it: it takes a while until somebody promotes the standby
            await until(lambda: running.scope.stats().breaker != "closed", "an open breaker")
        promoted = await asyncio.to_thread(pair.promote)
        served = await first_write(run, stopped)
        print(f"FAILOVER {mode}: from promotion {served - promoted:.3f} s, from stop {served - stopping:.3f} s")
        assert served - promoted < TAKE_OVER
        await asyncio.to_thread(pair.rejoin, copied=mode == "immediate")
        await kept(run, running, served)
    await asyncio.to_thread(assert_level, pair)


@pytest.mark.slow
async def test_a_primary_that_falls_silent(pair: Pair, service: Service, seed: int) -> None:
    """A primary that only stops to answer costs statement_timeout and connect_timeout; then the other is used."""
    with wired_to(pair.primary.dsn) as wire, wired_to(pair.standby.dsn) as other:
        dsn = through(wire, other) + "&target=primary"
        settings = {"statement_timeout": 0.5, "connect_timeout": 0.5, "maxsize": 5}
        async with service(dsn, direct=pair.direct, **settings) as running, load(running.url, seed=seed, **LOAD) as run:
            await run.success_after(time.monotonic(), "/write")
            silent = time.monotonic()
            wire.frozen = wire.hang = True
            await asyncio.to_thread(pair.primary.stop, "immediate")  # as whoever promotes the other one has to see to
            promoted = await asyncio.to_thread(pair.promote)
            served = await first_write(run, promoted)
            print(f"FAILOVER silent: from promotion {served - promoted:.3f} s, from silence {served - silent:.3f} s")
            assert served - promoted < 2.0 + TAKE_OVER
            await kept(run, running, served)
        wire.frozen = wire.hang = False


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
async def test_the_old_primary_is_back_first(pair: Pair, service: Service, seed: int) -> None:
    """With target="any" a pool may find the old primary again, a standby now: a write leads it to the new one."""
    with wired_to(pair.primary.dsn) as old, wired_to(pair.standby.dsn) as new:
        async with (
            service(through(old, new), direct=pair.direct, maxsize=5) as running,
            load(running.url, seed=seed, **LOAD) as run,
        ):
            await run.success_after(time.monotonic(), "/write")
            new.refuse()
            switched = await asyncio.to_thread(pair.switch_over)
            await run.success_after(switched, "/read")
            new.accept()
            accepted = time.monotonic()
            served = await first_write(run, switched)
            away = await led_away(running)
            print(f"FAILOVER stale order: {served - accepted:.3f} s, all connections {away - accepted:.3f} s")
            assert accepted < served < accepted + TAKE_OVER
            await kept(run, running, away)
    await asyncio.to_thread(assert_level, pair)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
async def test_connections_that_survive_a_switch_over(pair: Pair, service: Service, seed: int) -> None:
    """A proxy that is late leaves the pool connected to a standby: the first write after its turn leads it away."""
    with wired_to(pair.primary.dsn) as proxy:
        async with (
            service(proxy.dsn, direct=pair.direct, maxsize=5) as running,
            load(running.url, seed=seed, **LOAD) as run,
        ):
            await run.success_after(time.monotonic(), "/write")
            switched = await asyncio.to_thread(pair.switch_over)
            await run.success_after(switched, "/read")
            turned = time.monotonic()
            proxy._info.port = pair.primary.port
            served = await first_write(run, switched)
            away = await led_away(running)
            print(f"FAILOVER late proxy: {served - turned:.3f} s, all connections {away - turned:.3f} s")
            assert turned < served < turned + TAKE_OVER
            await kept(run, running, away)
    await asyncio.to_thread(assert_level, pair)
