"""poolscope_faults: what goes wrong, really goes wrong, and is right again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.testing.faults import Faults
from aiohttp_poolscope.contrib.testing.rollback import Rollback
from tests.conftest import Database, Serve, Served, until

pytestmark = pytest.mark.slow

Services = Callable[..., contextlib.AbstractAsyncContextManager[tuple[Served, poolscope.PoolScope]]]

faults = Faults()


@pytest.fixture(params=[False, True], ids=["committed", "rolled-back"])
def service(request: pytest.FixtureRequest, dsn: str, serve: Serve) -> Services:
    """``async with service() as (served, scope)``: one route with one statement; with poolscope_rollback, too."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(await request["db"].fetchval("SELECT 42"))

    @contextlib.asynccontextmanager
    async def serving(**settings: Any) -> AsyncIterator[tuple[Served, poolscope.PoolScope]]:
        app = web.Application()
        app.router.add_get("/", answer)
        scope = poolscope.setup(app, dsn, **settings)
        with Rollback().armed() as rollback:
            if request.param:
                rollback(scope)
            async with serve(app) as served:
                yield served, scope
                assert await served.get() == (200, "42")
                assert scope._run is not None
                assert scope._run.pool.maintenance.before == []

    return serving


async def test_an_exhausted_pool(service: Services) -> None:
    """Requests get 503 after the time that the test gives them, and the pool is whole again afterwards."""
    async with service(maxsize=3) as (served, scope):
        async with faults.exhausted(scope, acquire_timeout=0.05):
            assert scope.stats().in_use == 3
            status, text = await served.get()
            assert (status, "pool-exhausted" in text) == (503, True)
        assert scope.stats().in_use == 0
        assert scope._run is not None
        assert scope._run.pool.acquire_timeout == 5.0


async def test_a_slow_database(service: Services) -> None:
    """A statement takes that much longer, on the server: its time-outs see it, transactions are not slower."""
    async with service(statement_timeout=0.3) as (served, scope):
        async with faults.slow(scope, 0.1):
            begun = time.monotonic()
            assert await served.get() == (200, "42")
            assert time.monotonic() - begun >= 0.1
            with pytest.raises(poolscope.QueryTimeout):
                async with scope.transaction() as tx:
                    await tx.fetchval("SELECT 1", timeout=0.05)
        async with faults.slow(scope, 60):
            assert await served.status() == 504
            assert await scope.trouble() is None


async def test_statements_that_time_out(service: Services) -> None:
    """As many statements as the test says run into the server's time-out, whose setting is then as before."""
    async with service(statement_timeout=7) as (served, scope):
        async with faults.statement_timeouts(scope, 2):
            assert [await served.status() for _ in range(3)] == [504, 504, 200]
        async with faults.statement_timeouts(scope), scope.acquire() as db:
            with pytest.raises(poolscope.QueryTimeout, match="statement timeout"):
                async with db.transaction() as tx:
                    await tx.execute("SELECT 1")
            assert await db.fetchval("SHOW statement_timeout") == "7s"
        assert scope.stats().errors["timeout"] == 3


async def test_an_event_tells_the_statement_that_was_asked_for(service: Services) -> None:
    """Whoever listens sees the handler's statement fail, not the one that was sent in its place."""
    async with service() as (served, scope):
        seen: list[Any] = []
        scope.on_event(seen.append, poolscope.events.StatementFailed)
        async with faults.statement_timeouts(scope):
            await served.get()
        assert [(event.statement, event.fault, event.route) for event in seen] == [("SELECT ?", "timeout", "/")]


async def test_dead_connections(service: Services, database: Database) -> None:
    """Who has a connection loses it, with 503; the next requests get new ones."""
    async with service() as (served, scope), scope.acquire() as db:
        await db.fetchval("SELECT 1")
        before = {pid for (pid,) in database.backends("pid")}
        async with faults.dead_connections(scope) as killed:
            assert killed == len(before) == 1
            assert not before & {pid for (pid,) in database.backends("pid")}
            with pytest.raises(poolscope.DatabaseUnavailable):
                await db.fetchval("SELECT 1")
            assert await served.get() == (200, "42")


async def test_a_database_that_is_away(service: Services, database: Database) -> None:
    """Connections end and new ones are refused; at the end of the block the pool serves at once."""
    async with service() as (served, scope):
        async with faults.database_away(scope):
            await until(lambda: database.backends() == [], "the end of the last session")
            status, text = await served.get()
            assert (status, "database-unavailable" in text) == (503, True)
            assert await scope.trouble() is not None
        assert await served.get() == (200, "42")


async def test_a_database_that_a_function_names_is_away(dsn: str, make_scope: Any) -> None:
    """Not even the function that is asked for the DSN at every connect leads back to it inside the block."""
    asked = 0

    async def where() -> str:
        nonlocal asked
        asked += 1
        return dsn

    async with make_scope(where) as scope:
        async with faults.database_away(scope):
            for _ in range(2):  # the first may meet the connection that has died
                with pytest.raises(poolscope.DatabaseUnavailable):
                    await scope.fetchval("SELECT 1")
        before = asked
        async with faults.dead_connections(scope):
            assert await scope.fetchval("SELECT 42") == 42
        assert asked > before


async def test_two_scopes_have_faults_of_their_own(make_scope: Any) -> None:
    """A fault of one scope is not one of another."""
    async with make_scope(key="a") as one, make_scope(key="b") as other, faults.statement_timeouts(one):
        assert await other.fetchval("SELECT 1") == 1
        async with faults.statement_timeouts(other):
            outcomes = await asyncio.gather(one.fetch("SELECT 1"), other.fetch("SELECT 1"), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [poolscope.QueryTimeout] * 2


@pytest.mark.parametrize("name", ["exhausted", "dead_connections", "database_away", "statement_timeouts"])
async def test_a_scope_that_does_not_run_is_refused(dsn: str, name: str) -> None:
    """The call and the state are named."""
    with pytest.raises(poolscope.ConfigError, match=rf"poolscope_faults\.{name}\(scope\): the scope is starting"):
        async with getattr(faults, name)(poolscope.PoolScope(dsn)):
            raise AssertionError


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
async def test_how_slow_must_be_a_time(make_scope: Any, seconds: float) -> None:
    """What is no number of seconds above 0 is refused."""
    async with make_scope() as scope:
        with pytest.raises(poolscope.ConfigError, match="number of seconds above 0"):
            async with faults.slow(scope, seconds):
                raise AssertionError
