"""The cursor: reads as aiopg's does, and is nobody's but its connection's."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg2
import pytest

from aiohttp_poolscope.errors import ConnectionBusy, DatabaseUnavailable, QueryTimeout
from tests.conftest import Database, until


async def test_cursor_reads(make_scope: Any) -> None:
    """A cursor reads its result in every way that aiopg's does."""
    async with make_scope() as scope, scope.acquire() as db, db.cursor() as cursor:
        await cursor.execute("SELECT n FROM generate_series(1, %s) n", (10,))
        assert cursor.rowcount == 10
        assert [column.name for column in cursor.description] == ["n"]
        assert await cursor.fetchone() == (1,)
        cursor.arraysize = 2
        assert await cursor.fetchmany() == [(2,), (3,)]
        assert await cursor.fetchmany(1) == [(4,)]
        assert cursor.rownumber == 4
        await cursor.scroll(2)
        assert [row async for row in cursor] == [(7,), (8,), (9,), (10,)]
        await cursor.scroll(8, mode="absolute")
        assert await cursor.fetchall() == [(9,), (10,)]
        assert await cursor.fetchone() is None
        assert cursor.statusmessage == "SELECT 10"
        assert cursor.query == b"SELECT n FROM generate_series(1, 10) n"
        assert cursor.mogrify("SELECT %s", ("x'",)) == b"SELECT 'x'''"
        assert cursor.connection is db


async def test_cursor_calls_a_function(make_scope: Any) -> None:
    """callproc() quotes the name and passes the arguments."""
    async with make_scope() as scope, scope.acquire() as db, db.cursor() as cursor:
        await cursor.callproc("pg_catalog.upper", ["abc"])
        assert await cursor.fetchone() == ("ABC",)
        await cursor.callproc("version")
        assert "PostgreSQL" in (await cursor.fetchone())[0]
        with pytest.raises(psycopg2.errors.UndefinedFunction):
            await cursor.callproc('x"; DROP TABLE y; --')


async def test_cursor_calls_a_function_by_names(make_scope: Any, database: Database) -> None:
    """callproc() takes a mapping for named arguments, as psycopg2's does, whatever the names look like."""
    database.sql(
        """CREATE FUNCTION greet(who text, "5 %s"""
        '""'
        """x" text DEFAULT '!') RETURNS text LANGUAGE sql AS $$
        SELECT 'hello ' || $1 || $2 $$"""
    )
    database.sql("""CREATE FUNCTION "50%"() RETURNS int LANGUAGE sql AS 'SELECT 50'""")
    database.sql("""CREATE FUNCTION "51%"(n int) RETURNS int LANGUAGE sql AS 'SELECT 51'""")
    async with make_scope() as scope, scope.acquire() as db, db.cursor() as cursor:
        for given, said in [
            ({"who": "bob"}, "hello bob!"),
            ({'5 %s"x': "?", "who": "bob"}, "hello bob?"),
            (["bob"], "hello bob!"),
            (("bob", "?"), "hello bob?"),
        ]:
            await cursor.callproc("greet", given)
            assert await cursor.fetchone() == (said,)
        for name, given in [("50%", None), ("50%", {}), ("51%", [1]), ("51%", {"n": 1})]:
            await cursor.callproc(name, given)
            assert await cursor.fetchone() == (int(name[:2]),)
        with pytest.raises(psycopg2.errors.UndefinedFunction):
            await cursor.callproc("greet", {"whom": "bob"})


async def test_cursor_closes(make_scope: Any) -> None:
    """A cursor is closed at the end of its block, or by close(); repeated closing is harmless."""
    async with make_scope() as scope, scope.acquire() as db:
        async with db.cursor() as cursor:
            assert not cursor.closed
        assert cursor.closed
        cursor.close()
        cursor = await db.cursor()
        async with cursor:
            await cursor.execute("SELECT 1")
        assert cursor.closed


async def test_cursors_side_by_side(make_scope: Any) -> None:
    """Results stay apart: two cursors and the statements of the connection."""
    async with make_scope() as scope, scope.acquire() as db, db.cursor() as one, db.cursor() as two:
        await one.execute("SELECT 1")
        await two.execute("SELECT 2")
        assert await db.fetchval("SELECT 3") == 3
        assert (await one.fetchone(), await two.fetchone()) == ((1,), (2,))


async def test_fetch_beside_a_statement(make_scope: Any, database: Database) -> None:
    """Fetching while another task runs a statement is refused, and no row is lost (C12)."""
    async with make_scope() as scope, scope.acquire() as db, db.cursor() as cursor:
        await cursor.execute("SELECT n FROM generate_series(1, 3) n")
        database.sql("SELECT pg_advisory_lock(12)")
        try:
            other = asyncio.ensure_future(db.execute("SELECT pg_advisory_xact_lock(12)"))  # for as long as it takes
            await until(lambda: db._link.running_since)
            with pytest.raises(ConnectionBusy):
                await cursor.fetchone()
        finally:
            database.sql("SELECT pg_advisory_unlock(12)")
        await other
        assert await cursor.fetchall() == [(1,), (2,), (3,)]


async def test_cursor_time_out(make_scope: Any) -> None:
    """A cursor's statement has its own timeout."""
    async with make_scope() as scope, scope.acquire() as db, db.cursor() as cursor:
        with pytest.raises(QueryTimeout):
            await cursor.execute("SELECT pg_sleep(30)", timeout=0.03)
        with pytest.raises(QueryTimeout):
            await cursor.callproc("pg_sleep", [30], timeout=0.03)
        await cursor.execute("SELECT 1")
        assert await cursor.fetchone() == (1,)


async def test_cursor_on_a_dead_connection(make_scope: Any, database: Database) -> None:
    """Rows of a connection that died meanwhile are DatabaseUnavailable (C18)."""
    async with make_scope() as scope, scope.acquire() as db, db.cursor() as cursor:
        await cursor.execute("SELECT n FROM generate_series(1, 3) n")
        database.kill()
        await until(lambda: db.closed)
        for use in (cursor.fetchone, cursor.fetchall, db.cursor().__aenter__):
            with pytest.raises(DatabaseUnavailable):
                await use()
