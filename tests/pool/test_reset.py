"""What a lease leaves in its session, and that the next one does not meet it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from psycopg2 import sql

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Database

    Way = Callable[[poolscope.ScopedConnection, str], Awaitable[object]]

LEFT = """
SELECT current_setting('search_path') = 'elsewhere', current_user = 'pg_monitor',
       current_setting('app.tenant', true) = '7',
       to_regclass('pg_temp.left_behind') IS NOT NULL, EXISTS (SELECT FROM pg_listening_channels()),
       EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       EXISTS (SELECT FROM pg_prepared_statements), EXISTS (SELECT FROM pg_cursors)
"""
CHANGES = [
    "SET search_path = elsewhere",
    "SET ROLE pg_monitor",
    "SELECT set_config('app.tenant', '7', false)",
    "CREATE TEMP TABLE left_behind (a int)",
    "LISTEN left_behind",
    "SELECT pg_advisory_lock(7)",
    "PREPARE left_behind AS SELECT 1",
    "DO $$ BEGIN PERFORM pg_advisory_lock(7); END $$",
    "BEGIN; DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1; COMMIT",
]


async def by_execute(db: poolscope.ScopedConnection, text: str) -> None:
    await db.execute(text)


async def as_bytes(db: poolscope.ScopedConnection, text: str) -> None:
    await db.execute(text.encode())  # type: ignore[arg-type]


async def composed(db: poolscope.ScopedConnection, text: str) -> None:
    await db.execute(sql.Composed([sql.SQL(text)]))  # type: ignore[arg-type]


async def by_a_cursor(db: poolscope.ScopedConnection, text: str) -> None:
    async with db.cursor() as cursor:
        await cursor.execute(text)


async def by_raw(db: poolscope.ScopedConnection, text: str) -> None:
    async with db.raw.cursor() as cursor:
        await cursor.execute(text)


async def behind_others(db: poolscope.ScopedConnection, text: str) -> None:
    await db.execute("SELECT 1")
    await db.execute(f"SELECT 2; {text}")
    await db.fetch("SELECT 3")


WAYS: list[Way] = [by_execute, as_bytes, composed, by_a_cursor, by_raw, behind_others]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", CHANGES)
async def test_what_a_lease_leaves_is_gone(make_scope: Any, way: Way, text: str) -> None:
    """By default whatever a statement leaves in the session goes with its lease; the connection stays."""
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval("SELECT pg_backend_pid()")
            await way(db, text)
            assert any(await db.fetchrow(LEFT))
        async with scope.acquire() as db:
            assert not any(await db.fetchrow(LEFT)), text
            assert await db.fetchval("SELECT pg_backend_pid()") == pid
        assert scope.stats().reset.count == 1


async def by_a_stream(db: poolscope.ScopedConnection) -> None:
    assert [row async for row in db.stream("SELECT pg_try_advisory_lock(7)")] == [(True,)]


async def by_a_stream_left_early(db: poolscope.ScopedConnection) -> None:
    async for _ in db.stream("SELECT pg_try_advisory_lock(n) FROM generate_series(1, 9) AS n", size=2):
        break


async def by_callproc(db: poolscope.ScopedConnection) -> None:
    async with db.cursor() as cursor:
        await cursor.callproc("set_config", ["app.tenant", "7", False])


async def by_executemany(db: poolscope.ScopedConnection) -> None:
    await db.executemany("SELECT set_config(%s, %s, false)", [("app.tenant", "7")])


async def in_the_schema_of_temporary_tables(db: poolscope.ScopedConnection) -> None:
    await db.execute("CREATE TABLE pg_temp.left_behind (a int)")


@pytest.mark.parametrize(
    "way", [by_a_stream, by_a_stream_left_early, by_callproc, by_executemany, in_the_schema_of_temporary_tables]
)
async def test_whatever_runs_it(make_scope: Any, way: Callable[[poolscope.ScopedConnection], Awaitable[None]]) -> None:
    """So it is where the package has made the text that is sent."""
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            await way(db)
            assert any(await db.fetchrow(LEFT))
        assert not any(await scope.fetchrow(LEFT))


async def test_what_leaves_nothing_costs_nothing(make_scope: Any, database: Database) -> None:
    """Statements that leave nothing in the session, transactions among them, cause no reset and no task."""
    database.sql("CREATE TABLE t (a int)")
    async with make_scope(maxsize=1) as scope:
        for text in ("SELECT 1", "INSERT INTO t VALUES (1)", "WITH a AS (DELETE FROM t RETURNING a) SELECT a FROM a"):
            await scope.execute(text)
        async with scope.transaction("serializable") as tx:
            await tx.execute("SET LOCAL app.tenant = '7'")
            await tx.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)])
            assert await tx.fetchval("SELECT pg_try_advisory_xact_lock(7)")
        async with scope.acquire() as db:
            assert [row async for row in db.stream("SELECT a FROM t ORDER BY a")] == [(1,), (2,)]
        assert scope.stats().reset.count == 0


async def test_what_on_connect_sets_stays(make_scope: Any) -> None:
    """on_connect's own settings are no change, and are there again after a reset."""

    async def on_connect(db: poolscope.ScopedConnection) -> None:
        await db.execute("SET app.tenant = 'of on_connect'")

    async with make_scope(maxsize=1, on_connect=on_connect) as scope:
        assert await scope.fetchval("SHOW app.tenant") == "of on_connect"
        assert scope.stats().reset.count == 0
        await scope.execute("SET app.tenant = '7'")
        assert await scope.fetchval("SHOW app.tenant") == "of on_connect"
        assert (scope.stats().reset.count, scope.stats().opened) == (1, 1)


async def test_the_tag_of_a_request_is_no_change(make_scope: Any) -> None:
    """request_tag="application_name" names each session anew: nothing of it is left for a reset."""
    async with make_scope(maxsize=1, request_tag="application_name") as scope:
        for _ in range(3):
            await scope.execute("SELECT 1")
        assert scope.stats().reset.count == 0


async def test_rollback_alone(make_scope: Any) -> None:
    """reset="rollback" undoes transactions only, as it says."""
    async with make_scope(maxsize=1, reset="rollback") as scope:
        await scope.execute("SET app.tenant = '7'")
        assert await scope.fetchval("SHOW app.tenant") == "7"


async def test_a_reset_of_ones_own_is_tried_at_the_start(make_scope: Any) -> None:
    """A mistake in it fails the start, with what PostgreSQL says of it; it would cost each lease its connection."""
    with pytest.raises(poolscope.ConfigError, match=r"reset='RESET nowhere.at_all; SELEC 1' fails: .*syntax error"):
        async with make_scope(reset="RESET nowhere.at_all; SELEC 1"):
            pytest.fail("it started")
    async with make_scope(maxsize=1, reset="RESET search_path") as scope:
        await scope.execute("SET search_path = elsewhere")
        assert await scope.fetchval("SHOW search_path") != "elsewhere"
