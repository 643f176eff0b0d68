"""The database is away, under load: restarted, crashed, refused; and back (F1, B3)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import until
from tests.kit.load import load
from tests.kit.wire import wired_to

from .promises import DEAD, PATHS, kept, more, recovered, warm
from .servers import crash, restart

if TYPE_CHECKING:
    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

    from .conftest import Service


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_restarted(server: EmbeddedPostgres, service: Service, seed: int, mode: Any) -> None:
    """A restart costs those in flight a 503 at most, and nobody who comes after it anything."""
    async with service(server.dsn, maxsize=5) as running, load(running.url, paths=PATHS, seed=seed) as run:
        await warm(run)
        ready = await asyncio.to_thread(restart, server, mode)
        first = await recovered(run, ready, f"a restart ({mode})")
        await kept(run, running, first.end)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_crashed(server: EmbeddedPostgres, service: Service, seed: int, whole: bool) -> None:
    """A backend killed with SIGKILL takes the whole server through recovery; a crash of the server is no different."""
    async with service(server.dsn, maxsize=5) as running, load(running.url, paths=PATHS, seed=seed) as run:
        await warm(run)
        ready = await asyncio.to_thread(crash, server, whole=whole)
        first = await recovered(run, ready, "a crash of the server" if whole else "a crash of a backend")
        await kept(run, running, first.end)


async def test_stopped(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """Stopped, it is asked now and then, and everybody refused; started again, it is back within a second."""
    with wired_to(server.dsn) as wire:  # which takes connections all the same, and counts them
        async with (
            service(wire.dsn, direct=server.dsn, minsize=0, maxsize=5) as running,
            load(running.url, paths=PATHS, seed=seed) as run,
        ):
            await warm(run)
            await asyncio.to_thread(server.stop)
            stopped, before = time.monotonic(), wire.connects
            await until(lambda: running.scope.stats().breaker != "closed")
            await more(run, 50)
            elapsed, asked = time.monotonic() - stopped, wire.connects - before
            away = run.between(stopped, float("inf"))
            ready = await asyncio.to_thread(restart, server)
            assert {(result.status, result.code) for result in away} == {(503, DEAD)}
            assert asked <= 5 + elapsed / (0.75 * 0.5)  # five open the breaker, then pauses grow up to breaker_reset
            first = await recovered(run, ready, "a stop")
            await kept(run, running, first.end)


@pytest.mark.slow
async def test_refused(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """A port where nobody listens: likewise."""
    with wired_to(server.dsn) as wire:
        async with (
            service(wire.dsn, direct=server.dsn, maxsize=5) as running,
            load(running.url, paths=PATHS, seed=seed) as run,
        ):
            await warm(run)
            wire.refuse()
            wire.cut(fin=True)
            await until(lambda: running.scope.stats().breaker != "closed")
            opened = time.monotonic()
            await more(run, 25)
            assert {result.code for result in run.between(opened, time.monotonic())} == {DEAD}
            wire.accept()
            first = await recovered(run, time.monotonic(), "refused connections")
            await kept(run, running, first.end)


async def test_one_probe_at_a_time(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """While the breaker is open requests are refused without a look at the database: one probe after another is."""
    settings = {"maxsize": 5, "connect_timeout": 0.2, "breaker_failures": 2}
    with wired_to(server.dsn) as wire:
        async with (
            service(wire.dsn, direct=server.dsn, **settings) as running,
            load(running.url, paths=PATHS, seed=seed) as run,
        ):
            await warm(run)
            states, most, waiting = [running.scope.stats().breaker], 0, 0

            def look() -> None:
                nonlocal most, waiting
                stats = running.scope.stats()
                most = max(most, wire.connected)
                waiting = max(waiting, stats.waiting) if stats.breaker != "closed" else 0
                if stats.breaker != states[-1]:
                    states.append(stats.breaker)

            wire.hang = True
            wire.cut()
            await until(lambda: wire.connected < 2)
            await until(lambda: look() or states[-1] == "open")
            opened, before = time.monotonic(), wire.connects
            await until(lambda: look() or wire.connects >= before + 3)
            elapsed, probes = time.monotonic() - opened, wire.connects - before
            refused = run.between(opened, time.monotonic())
            assert {(result.status, result.code) for result in refused} == {(503, DEAD)}
            assert len(refused) > 5 * probes
            assert (most, probes <= 1 + elapsed / 0.2, waiting) == (1, True, 0)
            await until(lambda: look() or states[-1] == "half-open")
            wire.hang = False
            released = time.monotonic()
            await until(lambda: look() or states[-1] == "closed")
            assert states == ["closed", *["open", "half-open"] * ((len(states) - 2) // 2), "closed"]
            first = await recovered(run, released, "connects that hang")
            await kept(run, running, first.end)


@pytest.mark.slow
async def test_away_at_the_start(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """With connect_at_start off the application starts without its database, refuses, and serves once it is there."""
    with wired_to(server.dsn) as wire:
        wire.refuse()
        async with (
            service(wire.dsn, direct=server.dsn, maxsize=5, connect_at_start=False) as running,
            load(running.url, paths=PATHS, seed=seed) as run,
        ):
            await more(run, 25, status=503)
            wire.accept()
            assert set(run.statuses()) == {503}
            first = await recovered(run, time.monotonic(), "a start without database")
            await kept(run, running, first.end)
