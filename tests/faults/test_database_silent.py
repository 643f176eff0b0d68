"""The database does not answer, or slowly, and nobody says why (F2)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import BUSY, until
from tests.kit.load import load
from tests.kit.wire import wired_to

from .promises import PATHS, SHED, kept, more, recovered, warm

if TYPE_CHECKING:
    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

    from .conftest import Service

SILENT = 0.4 + 1.0 + 0.5
"""Seconds until silence is noticed: statement_timeout, the margin for the network, and a slow machine's turn."""


async def test_connections_gone_silent(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """Connections that a firewall forgot cost their statements a 504, one time; new ones take their place."""
    # No transfers: the server goes on to hold the locks of a transaction that has gone silent.
    paths = {"/read": 5.0, "/write": 3.0, "/slow/0.02": 1.0}
    settings = {"maxsize": 4, "statement_timeout": 0.4, "connect_timeout": 0.5}
    with wired_to(server.dsn) as wire:
        async with (
            service(wire.dsn, direct=server.dsn, **settings) as running,
            load(running.url, paths=paths, seed=seed) as run,
        ):
            await warm(run)
            wire.freeze()
            silent = time.monotonic()
            lost = await until(lambda: run.statuses(start=silent - 0.5)[504])
            assert 0 < lost <= 4
            await kept(run, running, silent + SILENT)
            assert run.statuses()[504] <= 4
            wire.thaw()  # the server hears that these have ended


async def test_a_silent_network(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """Nothing passes at all: a limit for everyone in flight, a refusal for everyone after, and back within a second."""
    settings = {"maxsize": 4, "statement_timeout": 0.4, "connect_timeout": 0.3, "breaker_failures": 2}
    with wired_to(server.dsn) as wire:
        async with (
            service(wire.dsn, direct=server.dsn, **settings) as running,
            load(running.url, paths=PATHS, seed=seed) as run,
        ):
            await warm(run)
            wire.frozen = True
            await until(lambda: running.scope.stats().breaker != "closed")
            await more(run, 25, status=503)
            wire.frozen = False
            back = time.monotonic()
            limits = [result for result in run.results if result.status == 504]
            assert len(limits) <= 4
            assert all(result.took < SILENT + BUSY for result in limits)
            first = await recovered(run, back, "a silent network")
            await kept(run, running, first.end)


async def test_a_connect_that_hangs_delays_nobody(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """Whoever can be served by a return is served at once, while a connection for others is waited for."""
    with wired_to(server.dsn) as wire:
        async with service(wire.dsn, direct=server.dsn, minsize=2, maxsize=4) as running:
            await until(lambda: running.scope.stats().idle == 2)
            wire.hang = True
            async with load(running.url, paths={"/read": 9, "/hold/0.05": 1}, seed=seed) as run:
                await until(lambda: running.scope.stats().opening == 1)
                await more(run, 60, status=200)
                stats = running.scope.stats()
                assert (stats.opening, stats.size, stats.breaker) == (1, 3, "closed")
                assert wire.connects == 3
                wire.hang = False
                await kept(run, running, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"delay": 0.03}, {"throttle": 1500}], ids=["delay", "throttle"])
async def test_slow(server: EmbeddedPostgres, service: Service, seed: int, fault: dict[str, Any]) -> None:
    """A line too slow for the load is an overload: what cannot be served in time is shed, and nothing else happens."""
    with wired_to(server.dsn) as wire:
        async with (
            service(wire.dsn, direct=server.dsn, maxsize=8) as running,
            load(running.url, paths=PATHS, seed=seed) as run,
        ):
            await warm(run)
            slow = time.monotonic()
            for name, value in fault.items():
                setattr(wire, name, value)
            await more(run, 20, status=200, after=slow)
            await more(run, 20, status=503, after=slow)
            wire.delay, wire.throttle = 0.0, None
            normal = time.monotonic()
            await recovered(run, normal, f"a slow line ({next(iter(fault))})")
            await kept(run, running, normal + 1.0)
            assert {result.code for result in run.results} == {None, SHED}
