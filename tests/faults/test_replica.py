"""A replica beside a primary: reads go there while it answers, and to the primary while it does not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psycopg2
import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.pool import housekeeper, roles
from tests.kit.load import load
from tests.kit.wire import wired_to

from .promises import SHED
from .replication import Pair
from .service import Running, application

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.conftest import Serve

LOAD: dict[str, Any] = {"rate": 100, "paths": {"/read": 3, "/write": 1}, "patience": 12.0}
PORT = "SELECT inet_server_port()"
PATIENCE = 20.0


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    """A primary and its standby, whatever the test before has left."""
    _pair.mend()
    return _pair


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby is looked for more often than every five seconds."""
    monkeypatch.setattr(housekeeper, "CALM", 0.1)
    monkeypatch.setattr(roles, "SEEK_EVERY", 0.2)


@dataclass
class Both:
    """An application with a scope for writing and one for reading."""

    scope: poolscope.PoolScope
    replica: poolscope.PoolScope
    served: Any

    async def ask(self, method: str, path: str) -> tuple[int, str]:
        """Status and text."""
        async with self.served.client.request(method, self.served.url.joinpath(path.lstrip("/"))) as response:
            return response.status, await response.text()

    async def reads_come_to(self, port: int) -> None:
        """Wait until the server at this port answers what only reads."""
        async with asyncio.timeout(PATIENCE):
            while await self.ask("GET", "/where") != (200, str(port)):
                pass

    def running(self, scope: poolscope.PoolScope, direct: str) -> Running:
        """To audit one of the two."""
        return Running(scope, self.served.runner, self.served.url, self.served.client, direct)


async def where(request: web.Request) -> web.Response:
    return web.Response(text=str(await request["db"].fetchval(PORT)))


async def insert(request: web.Request) -> web.Response:
    try:
        await request["db"].execute("INSERT INTO writes VALUES (1)")
    except psycopg2.errors.ReadOnlySqlTransaction:
        raise web.HTTPConflict from None
    return web.Response()


@contextlib.asynccontextmanager
async def both(pair: Pair, serve: Serve, dsn: str | None = None, **settings: Any) -> AsyncIterator[Both]:
    """The application of service.py, with more routes and a replica; both pools are audited at the end."""
    scope = poolscope.PoolScope(pair.dsn(target="primary"), maxsize=5, application_name="replica-test-db")
    settings = {"maxsize": 5, "acquire": "lazy", "application_name": "replica-test-replica"} | settings
    replica = poolscope.PoolScope(dsn or pair.dsn(), key="replica", readonly=True, **settings)
    app = application(scope)
    replica.setup(app)
    scope.read_from(replica, when=lambda request: request.method in ("GET", "HEAD") and request.path != "/write")
    app.router.add_get("/where", where)
    app.router.add_get("/insert", insert)
    app.router.add_post("/where", where)
    app.router.add_post("/insert", insert)
    for mark in (poolscope.replica, poolscope.eager, poolscope.transactional):
        app.router.add_post(f"/{mark.__name__}", mark(functools.partial(where)))
    async with serve(app, access_log=None) as served:
        running = Both(scope, replica, served)
        yield running
        for each in (scope, replica):
            if each.state == "serving":
                await running.running(each, pair.direct).audit()


async def test_each_request_goes_where_it_belongs(pair: Pair, serve: Serve) -> None:
    """GET, HEAD and what is marked go to the standby, the rest to the primary, each with one connection."""
    async with both(pair, serve, target="standby", maxsize=1) as running:
        primary, standby = str(pair.primary.port), str(pair.standby.port)
        assert await running.ask("GET", "/where") == (200, standby)
        assert (await running.ask("HEAD", "/where"))[0] == 200
        assert await running.ask("POST", "/replica") == (200, standby)
        assert (running.replica.stats().lent, running.scope.stats().lent) == (3, 0)
        assert await running.ask("POST", "/where") == (200, primary)
        assert (running.replica.stats().lent, running.scope.stats().lent) == (3, 1)
        assert (await running.ask("GET", "/insert"))[0] == 409
        assert (await running.ask("POST", "/insert"))[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(("target", "mode"), [("standby", "immediate"), ("prefer-standby", "fast")])
async def test_the_standby_goes_and_comes_back(
    pair: Pair, serve: Serve, seed: int, target: str, mode: Literal["fast", "immediate"]
) -> None:
    """Under load a standby that stops costs what it was just doing; the primary reads on, until it is back."""
    async with both(pair, serve, target=target) as running, load(running.served.url, seed=seed, **LOAD) as run:
        await running.reads_come_to(pair.standby.port)
        await run.success_after(time.monotonic(), "/read")
        await asyncio.to_thread(pair.standby.stop, mode)
        stopped = time.monotonic()
        await running.reads_come_to(pair.primary.port)
        await run.success_after(time.monotonic() + 0.2, "/read")
        await asyncio.to_thread(pair.standby.start)
        await running.reads_come_to(pair.standby.port)
        await run.success_after(time.monotonic() + 0.2, "/read")
        await run.stop()
        assert set(run.statuses()) <= {200, 503}
        # A machine with other work to do may shed some.
        assert [one for one in run.between(stopped, time.monotonic()) if one.status != 200 and one.code != SHED] == []
        assert {one.status for one in run.results if one.path == "/write" and one.code != SHED} == {200}
        assert await running.running(running.scope, pair.direct).writes_lost(run) == []


async def test_the_hook_of_the_pool_that_serves(pair: Pair, serve: Serve) -> None:
    """A connection of the replica gets the replica's on_acquire, which may be what keeps tenants apart."""
    seen = []

    async def on_acquire(db: poolscope.ScopedConnection) -> None:
        seen.append(int(await db.fetchval(PORT)))

    async with both(pair, serve, target="standby", on_acquire=on_acquire) as running:
        for method in ("GET", "POST"):
            assert (await running.ask(method, "/where"))[0] == 200
        assert seen == [pair.standby.port]


async def test_without_a_standby_from_the_start(pair: Pair, serve: Serve) -> None:
    """A replica that is not there when the service starts is done without, from the first request on."""
    await asyncio.to_thread(pair.standby.stop)
    async with both(pair, serve, target="standby", connect_at_start=False) as running:
        assert await running.ask("GET", "/where") == (200, str(pair.primary.port))
        await asyncio.to_thread(pair.standby.start)
        await running.reads_come_to(pair.standby.port)


async def test_no_write_needs_the_replica(pair: Pair, serve: Serve) -> None:
    """What goes to the primary takes nothing from the replica, whatever its marks, and needs it not."""
    async with both(pair, serve, target="standby") as running:
        primary = (200, str(pair.primary.port))
        lent = running.replica.stats().lent
        for path in ("/where", "/eager", "/transactional"):
            assert await running.ask("POST", path) == primary
        assert running.replica.stats().lent == lent
        await asyncio.to_thread(pair.standby.stop)
        await running.reads_come_to(pair.primary.port)
        for path in ("/where", "/eager", "/transactional"):
            assert await running.ask("POST", path) == primary
        await asyncio.to_thread(pair.standby.start)
        await running.reads_come_to(pair.standby.port)


async def test_who_asks_the_replica_by_name(pair: Pair, serve: Serve) -> None:
    """Only requests are led to the primary: execute() on a replica that is away fails, and writes nowhere."""
    async with both(pair, serve, target="standby", acquire_timeout=1.0) as running:
        assert await running.ask("GET", "/where") == (200, str(pair.standby.port))
        await asyncio.to_thread(pair.standby.stop)
        await running.reads_come_to(pair.primary.port)
        with pytest.raises((poolscope.DatabaseUnavailable, poolscope.PoolExhausted)):
            await running.replica.execute("CREATE TABLE written_to_the_primary (n int)")
        await asyncio.to_thread(pair.standby.start)
        await running.reads_come_to(pair.standby.port)


async def test_a_replica_that_is_drained(pair: Pair, serve: Serve) -> None:
    """Once the replica is closed by hand, before an upgrade of its server perhaps, the primary serves the reads."""
    async with both(pair, serve, target="standby") as running:
        assert await running.ask("GET", "/where") == (200, str(pair.standby.port))
        running.replica.begin_drain()
        for method in ("GET", "POST"):
            assert await running.ask(method, "/where") == (200, str(pair.primary.port))


@pytest.mark.slow
async def test_a_standby_that_falls_silent(pair: Pair, serve: Serve, seed: int) -> None:
    """A standby that only stops to answer is done without after a few limits, and used again when it answers."""
    with wired_to(pair.standby.dsn) as wire:
        limits = {"statement_timeout": 0.5, "connect_timeout": 0.5, "acquire_timeout": 1.0, "breaker_failures": 2}
        async with (
            both(pair, serve, wire.dsn, **limits) as running,
            load(running.served.url, seed=seed, **LOAD) as run,
        ):
            await run.success_after(time.monotonic(), "/read")
            silent = time.monotonic()
            wire.frozen = wire.hang = True
            await running.reads_come_to(pair.primary.port)
            print(f"REPLICA silent: {time.monotonic() - silent:.3f} s")
            await run.success_after(time.monotonic(), "/read")
            wire.frozen = wire.hang = False
            await running.reads_come_to(pair.standby.port)
            await run.stop()
            assert set(run.statuses()) <= {200, 503, 504}
            assert {one.status for one in run.results if one.path == "/write" and one.code != SHED} == {200}
