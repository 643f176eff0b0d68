"""PgBouncer, or the server behind it, is away, paused, full or slow; and back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.errors import DatabaseUnavailable, QueryTimeout
from tests.conftest import BUSY, Database, until
from tests.kit.bouncer import PgBouncer, needed
from tests.kit.load import load

from .promises import PATHS, kept, recovered, warm
from .servers import restart

if TYPE_CHECKING:
    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

    from .conftest import Service

pytestmark = needed

LOADED = {"default_pool_size": 3, "server_idle_timeout": 1}
"""Server connections end with the application here: the audit at its end wants none of them left."""


async def test_restarted(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """A restart of PgBouncer costs those in flight a 503 at most, and nobody who comes after it anything."""
    with PgBouncer(server, **LOADED) as bouncer:
        through = service(bouncer.dsn, direct=server.dsn, pgbouncer=True, maxsize=6)
        async with through as running, load(running.url, rate=100, paths=PATHS, seed=seed) as run:
            await warm(run)
            await asyncio.to_thread(bouncer.restart)
            first = await recovered(run, time.monotonic(), "a restart of PgBouncer")
            await kept(run, running, first.end)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_the_server_is_restarted(server: EmbeddedPostgres, service: Service, seed: int, mode: Any) -> None:
    """So does a restart of the server behind it, which PgBouncer asks again after server_login_retry."""
    with PgBouncer(server, **LOADED) as bouncer:
        through = service(bouncer.dsn, direct=server.dsn, pgbouncer=True, maxsize=6)
        async with through as running, load(running.url, rate=100, paths=PATHS, seed=seed) as run:
            await warm(run)
            ready = await asyncio.to_thread(restart, server, mode)
            first = await recovered(run, ready, f"a restart of the server ({mode})")
            await kept(run, running, first.end)


async def test_the_server_is_away(server: EmbeddedPostgres, make_scope: Any) -> None:
    """While the server is away PgBouncer holds on to who asks, for query_wait_timeout: DatabaseUnavailable (503)."""
    with PgBouncer(server, query_wait_timeout=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, maxsize=3) as scope:
            await asyncio.to_thread(server.stop)
            try:
                for _ in range(3):
                    begun = time.monotonic()
                    with pytest.raises(DatabaseUnavailable):
                        await scope.fetchval("SELECT 1")
                    assert time.monotonic() - begun < 1.0 + BUSY
            finally:
                await asyncio.to_thread(server.start)
            begun = time.monotonic()
            while True:
                with contextlib.suppress(DatabaseUnavailable):
                    assert await scope.fetchval("SELECT 1") == 1
                    break
            assert time.monotonic() - begun < 1.0 + BUSY


async def test_paused(make_scope: Any, database: Database) -> None:
    """PAUSE waits for what runs, and what comes then waits for RESUME, but not longer than statement_timeout."""
    with PgBouncer(database.dsn) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, maxsize=2, statement_timeout=1.0) as scope:
            running = asyncio.ensure_future(scope.fetchval("SELECT 1 FROM pg_sleep(0.2)"))
            await until(lambda: database.backends("state") == [("active",)])
            await asyncio.to_thread(bouncer.console, "PAUSE")
            assert database.backends("state") != [("active",)]
            assert await running == 1
            waiting = asyncio.ensure_future(scope.fetchval("SELECT 2"))
            await until(lambda: bouncer.waiting() == 1)
            bouncer.console("RESUME")
            assert await waiting == 2
            with bouncer.paused(), pytest.raises(QueryTimeout):
                await scope.execute("SELECT 3")
            assert await scope.fetchval("SELECT 4") == 4


async def test_reloaded(make_scope: Any, database: Database) -> None:
    """RELOAD changes the number of server connections under a pool that notices nothing else."""
    with PgBouncer(database.dsn, default_pool_size=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, minsize=3, maxsize=3) as scope:
            async with scope.transaction() as tx:
                await tx.execute("SELECT 1")
                waiting = asyncio.ensure_future(scope.fetchval("SELECT 2"))
                await until(lambda: bouncer.waiting() == 1)
                bouncer.reload(default_pool_size=2)
                assert await waiting == 2
                assert await tx.fetchval("SELECT 3") == 3
            assert scope.stats().closed == 0


async def test_query_wait_timeout(make_scope: Any, database: Database) -> None:
    """Who waits longer than PgBouncer's query_wait_timeout is refused by it: DatabaseUnavailable (503)."""
    with PgBouncer(database.dsn, default_pool_size=1, query_wait_timeout=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, maxsize=2) as scope:
            async with scope.transaction() as tx:
                await tx.execute("SELECT 1")
                with pytest.raises(DatabaseUnavailable, match="query_wait_timeout"):
                    await scope.execute("SELECT 2")
                assert await tx.fetchval("SELECT 3") == 3
            assert await scope.fetchval("SELECT 4") == 4


async def test_a_full_pgbouncer(make_scope: Any, database: Database) -> None:
    """When PgBouncer takes no more clients the pool goes on with what it has, and its time-outs still cancel."""
    with PgBouncer(database.dsn) as bouncer, contextlib.ExitStack() as others:
        others.enter_context(bouncer.client())
        async with make_scope(bouncer.dsn, pgbouncer=True, maxsize=4) as scope:
            bouncer.reload(max_client_conn=2)
            asked = [scope.fetchval("SELECT 1 FROM pg_sleep(0.02)") for _ in range(8)]
            assert await asyncio.gather(*asked) == [1] * 8
            with pytest.raises(QueryTimeout):
                await scope.execute("SELECT pg_sleep(30)", timeout=0.2)
            assert (scope.stats().opened, scope.stats().closed) == (1, 0)
            others.close()
            asked = [asyncio.ensure_future(scope.execute("SELECT pg_sleep(0.3)")) for _ in range(4)]
            await until(lambda: scope.stats().opened > 1, "a second connection")
            await asyncio.gather(*asked)


async def test_a_full_pgbouncer_at_the_start(make_scope: Any, database: Database) -> None:
    """When PgBouncer takes no client at all the start fails, and says why."""
    with PgBouncer(database.dsn) as bouncer, bouncer.client():
        bouncer.reload(max_client_conn=1)
        with pytest.raises(DatabaseUnavailable, match="max_client_conn"):
            async with make_scope(bouncer.dsn, pgbouncer=True):
                pass
