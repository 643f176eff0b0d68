"""What is left in a session that PgBouncer lends to others: nothing by this package; what a user would is refused."""

from __future__ import annotations

import asyncio
import configparser
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from aiohttp_poolscope.errors import DatabaseUnavailable, PoolScopeError, QueryTimeout
from aiohttp_poolscope.sql.session import needs_session
from tests.conftest import Database, Serve, until
from tests.kit.bouncer import PgBouncer, needed

if TYPE_CHECKING:
    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

pytestmark = needed

PID = "SELECT pg_backend_pid()"

LEFT = """
SELECT array(SELECT name::text FROM pg_settings WHERE source = 'session' AND name <> ALL (%s)),
    (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors WHERE is_holdable),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()), current_setting('app.tenant', true)
"""
"""What can be left in a session."""

NOTHING = ([], 0, 0, 0, 0, 0)

FOLLOWED = ["TimeZone", "DateStyle", "client_encoding", "standard_conforming_strings", "application_name"]
"""What PgBouncer sets anew for each client."""


def left(cursor: Any) -> Any:
    cursor.execute(LEFT, (FOLLOWED,))
    *counts, tenant = cursor.fetchone()
    assert not tenant
    return tuple(counts)


async def test_what_others_leave_is_seen(make_scope: Any, database: Database) -> None:
    """What another program SETs is seen by ours, except for what PgBouncer keeps for each client."""
    with PgBouncer(database.dsn, default_pool_size=1) as bouncer, bouncer.client() as other:
        other.execute("SET app.tenant = 'theirs'")
        other.execute("SET TIME ZONE 'Asia/Tokyo'")
        async with make_scope(bouncer.dsn, pgbouncer=True) as scope:
            assert await scope.fetchval("SELECT current_setting('app.tenant')") == "theirs"
            assert await scope.fetchval("SHOW TimeZone") != "Asia/Tokyo"


async def test_nothing_of_ours_is_left(make_scope: Any, database: Database) -> None:
    """Whatever is done with a connection, the next client of its server connection finds nothing of it."""
    database.sql("CREATE TABLE things (n int)")
    with PgBouncer(database.dsn, default_pool_size=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, minsize=2, maxsize=2, hstore=True) as scope:
            pid = await scope.fetchval(PID)
            async with scope.acquire() as db:
                await db.executemany("INSERT INTO things VALUES (%s)", [(n,) for n in range(250)])
                async with db.transaction(isolation="serializable", readonly=True) as tx:
                    await tx.execute("SET LOCAL statement_timeout = 1234")
                    await tx.execute("SELECT set_config('app.tenant', '1', true), pg_advisory_xact_lock(1)")
                async with db.transaction() as tx:
                    await tx.execute("CREATE TEMPORARY TABLE scratch (n int) ON COMMIT DROP")
                async for _ in db.stream("SELECT n FROM things", size=10):
                    break
                with pytest.raises(QueryTimeout):
                    await db.execute("SELECT pg_sleep(30)", timeout=0.05)
                with pytest.raises(psycopg2.Error):
                    await db.execute("SELECT 1 / 0")
                await db.execute("BEGIN")  # for the release to roll back
            await until(lambda: scope.stats().idle == 2)
            with bouncer.client() as other:
                other.execute(PID)
                assert other.fetchone() == (pid,)
                assert left(other) == NOTHING


async def sort_of(scope: Any, how: str, sql: str) -> None:
    """Run a statement in one of the ways there are."""
    async with scope.acquire() as db:
        if how == "cursor":
            async with db.cursor() as cursor:
                await cursor.execute(sql)
        elif how == "transaction":
            async with db.transaction() as tx:
                await tx.fetch(sql)
        elif how == "bytes":
            await db.execute(sql.encode())
        else:
            await getattr(db, how)(sql)


REFUSED = [
    "LISTEN news",
    "PREPARE one AS SELECT 1",
    "SET statement_timeout = 1234",
    "set session role postgres",
    "RESET ALL",
    "DISCARD ALL",
    "LOAD 'plpgsql'",
    "CREATE TEMP TABLE scratch (n int)",
    "DECLARE kept CURSOR WITH HOLD FOR SELECT 1",
    "SELECT pg_advisory_lock(1)",
    "SELECT set_config('app.tenant', 'mine', false)",
]


@pytest.mark.parametrize("how", ["execute", "fetch", "fetchval", "cursor", "transaction", "bytes"])
async def test_what_needs_a_session_is_refused(make_scope: Any, database: Database, how: str) -> None:
    """What would be left in the session is refused before it is sent, in words; the connection is as good as before."""
    with PgBouncer(database.dsn, default_pool_size=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, maxsize=1) as scope:
            for sql in REFUSED:
                said = needs_session(sql)
                assert said is not None
                with pytest.raises(PoolScopeError, match=re.escape(said)):
                    await sort_of(scope, how, sql)
                assert await scope.fetchval("SELECT 1") == 1
            assert (scope.stats().opened, scope.stats().closed) == (1, 0)
            with bouncer.client() as other:
                assert left(other) == NOTHING


async def test_hooks_are_told_too(make_scope: Any, database: Database) -> None:
    """A hook that SETs fails as any hook does: on_connect at the start, on_acquire at its borrower."""

    async def hook(db: Any) -> None:
        await db.execute("SET search_path = tenant")

    with PgBouncer(database.dsn, default_pool_size=1) as bouncer:
        with pytest.raises(DatabaseUnavailable, match=r"on_connect failed: .*SET LOCAL"):
            async with make_scope(bouncer.dsn, pgbouncer=True, on_connect=hook):
                pass
        async with make_scope(bouncer.dsn, pgbouncer=True, on_acquire=hook) as scope:
            with pytest.raises(PoolScopeError, match="SET LOCAL"):
                await scope.fetchval("SELECT 1")


@pytest.mark.parametrize(
    "sql",
    [
        "SET TIME ZONE 'Asia/Tokyo'",
        "SET DateStyle = 'German'",
        "SET standard_conforming_strings = off",
        "SELECT set_config('TimeZone', 'Asia/Tokyo', false)",
        "NOTIFY news, 'SET'",
        "SELECT 'LISTEN', pg_advisory_xact_lock(1) -- pg_advisory_lock(1)",
    ],
)
async def test_what_needs_none_is_not(make_scope: Any, database: Database, sql: str) -> None:
    """What ends with its transaction, or PgBouncer keeps for each client, is not refused; and others are left alone."""
    with PgBouncer(database.dsn, default_pool_size=1) as bouncer, bouncer.client() as other:
        asked = "SELECT current_setting('TimeZone'), current_setting('DateStyle'), '\\a'::text"
        other.execute(asked)
        before = other.fetchone()
        async with make_scope(bouncer.dsn, pgbouncer=True) as scope:
            await scope.execute(sql)
            other.execute(asked)
            assert other.fetchone() == before
            assert left(other) == NOTHING


async def test_without_pgbouncer_nothing_is_refused(make_scope: Any) -> None:
    """A session of one's own may be used as one likes."""
    async with make_scope(maxsize=1) as scope, scope.acquire() as db:
        for sql in REFUSED:
            await db.execute(f"BEGIN; {sql}" if sql.startswith("DECLARE") else sql)
            await db.execute("ROLLBACK")
        await db.execute("SELECT pg_advisory_unlock_all()")


EXAMPLE = Path(__file__).parents[2] / "examples" / "pgbouncer"


async def test_the_example(server: EmbeddedPostgres, serve: Serve) -> None:
    """The example's configuration is one, and its service keeps tenants apart and reports one at a time."""
    written = configparser.ConfigParser()
    written.read_string((EXAMPLE / "pgbouncer.ini").read_text())
    ours = {"listen_port", "auth_file"}
    settings = {name: value for name, value in written["pgbouncer"].items() if name not in ours}
    service = runpy.run_path(str(EXAMPLE / "service.py"))
    with PgBouncer(server, **settings) as bouncer:
        async with serve(service["make_app"](bouncer.dsn)) as served:

            async def report(tenant: str) -> int:
                async with served.client.post(served.url / tenant / "report") as response:
                    return response.status

            names = [f"tenant-{n}" for n in range(30)]
            assert await asyncio.gather(*(served.get(f"/{name}/whoami") for name in names)) == [
                (200, f"{name}\n") for name in names
            ]
            statuses = await asyncio.gather(*(report("ann") for _ in range(3)), report("bob"))
            assert (sorted(statuses[:3]), statuses[3]) == ([200, 409, 409], 200)
            assert await report("ann") == 200
