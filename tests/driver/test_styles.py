"""Styles of dates and intervals: psycopg2 reads ISO and postgres, whatever the database prefers."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

READ = "SELECT '2026-02-13'::date, '2026-02-13 10:00+00'::timestamptz, '1 day 02:03:04'::interval"
DAY = dt.date(2026, 2, 13)
MOMENT = dt.datetime(2026, 2, 13, 10, tzinfo=dt.UTC)
LONG = dt.timedelta(days=1, hours=2, minutes=3, seconds=4)


@pytest.fixture
def strange(database: Database) -> Iterator[None]:
    """A database with other styles than PostgreSQL's own."""
    [(name,)] = database.sql("SELECT current_database()")
    database.sql(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")
    database.sql(f"ALTER DATABASE {name} SET intervalstyle = 'sql_standard'")
    yield
    database.sql(f"ALTER DATABASE {name} RESET ALL")


@pytest.mark.usefixtures("strange")
@pytest.mark.parametrize("reset", ["rollback", "auto", "full", "RESET ALL", "DISCARD ALL"])
async def test_every_lease_reads_dates_and_intervals(make_scope: Any, reset: str) -> None:
    """The first one and those after a reset, with on_connect and without; the order of day and month stays."""
    seen = []

    async def on_connect(db: Any) -> None:
        seen.append(await db.fetchrow(READ))

    async with make_scope(maxsize=1, reset=reset, on_connect=on_connect) as scope:
        for _ in range(3):
            assert await scope.fetchrow(READ) == (DAY, MOMENT, LONG)
            assert await scope.fetchval("SELECT '13/02/2026'::date") == DAY
            assert await scope.fetchval("SHOW datestyle") == "ISO, DMY"
        assert scope.stats().opened == 1
    assert set(seen) == {(DAY, MOMENT, LONG)}


@pytest.mark.parametrize("reset", ["auto", "full", "RESET ALL"])
async def test_what_a_lease_has_set_goes_with_it(make_scope: Any, reset: str) -> None:
    """A style that one request asked for is not the next one's."""
    async with make_scope(maxsize=1, reset=reset) as scope:
        async with scope.acquire() as db:
            await db.execute("SET datestyle = 'German'; SET intervalstyle = 'iso_8601'")
        assert await scope.fetchrow(READ) == (DAY, MOMENT, LONG)
