"""The budget: what all processes want against what the server has."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.capacity.limits import Limits, overdrawn

if TYPE_CHECKING:
    from tests.conftest import Database


def test_a_budget_that_fits_says_nothing() -> None:
    """processes * maxsize within the share is fine, to the last connection."""
    assert overdrawn(Limits(100, 3, 0, -1, -1), processes=7, maxsize=11, budget=0.8) is None


@pytest.mark.parametrize(
    ("limits", "available"),
    [
        (Limits(100, 3, 0, -1, -1), 97),
        (Limits(100, 3, 7, -1, -1), 90),
        (Limits(100, 3, 0, 20, -1), 20),
        (Limits(100, 3, 0, 20, 10), 10),
        (Limits(5, 3, 3, -1, -1), 0),
    ],
)
def test_the_tightest_limit_counts(limits: Limits, available: int) -> None:
    """Reserved slots, the role's limit and the database's limit all take from max_connections."""
    assert limits.available == available


def test_the_warning_has_the_numbers() -> None:
    """Whoever reads it knows what was counted and which maxsize fits."""
    said = overdrawn(Limits(100, 3, 0, 50, -1), processes=4, maxsize=20, budget=0.8)
    assert said is not None
    for number in ("4 processes", "maxsize 20", "80 connections", "50 to give", "80% of that is 40", "maxsize to 10"):
        assert number in said


async def test_the_start_warns(make_scope: Any, caplog: pytest.LogCaptureFixture) -> None:
    """At start the server is asked for its limits, and too large a pool is a warning."""
    with caplog.at_level(logging.WARNING, "aiohttp_poolscope"):
        async with make_scope(maxsize=60, processes=10):
            pass
    assert "600 connections" in caplog.text


async def test_the_start_is_quiet_when_all_fits(make_scope: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No warning without a reason."""
    with caplog.at_level(logging.WARNING, "aiohttp_poolscope"):
        async with make_scope(maxsize=2, processes=2):
            pass
    assert caplog.text == ""


async def test_a_role_limit_is_seen(make_scope: Any, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """The limit of the role that connects counts, read from the real server."""
    database.sql("CREATE ROLE poolscope_limited LOGIN SUPERUSER CONNECTION LIMIT 3")
    try:
        async with make_scope(user="poolscope_limited", maxsize=10, processes=1):
            pass
    finally:
        database.sql("DROP ROLE poolscope_limited")
    assert "3 to give" in caplog.text


async def test_strict_refuses_to_start(make_scope: Any) -> None:
    """budget_strict=True turns the warning into a start that fails, with nothing left behind."""
    with pytest.raises(poolscope.ConfigError, match="budget_strict"):
        async with make_scope(maxsize=60, processes=10, budget_strict=True):
            pass


async def test_what_others_use_counts(make_scope: Any, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """Connections of other roles or databases are not there to be had; those of our own may be ours."""
    others = [psycopg2.connect(dsn, dbname="postgres") for _ in range(3)]
    ours = psycopg2.connect(dsn)
    try:
        async with make_scope(maxsize=10, processes=1000):
            pass
    finally:
        for each in (*others, ours):
            each.close()
    (said,) = [record.getMessage() for record in caplog.records if "in use by others" in record.getMessage()]
    in_use = int(re.search(r"(\d+) in use by others", said)[1])
    available = int(re.search(r"the server has (\d+) to give", said)[1])
    total, reserved = map(int, re.search(r"max_connections (\d+), (\d+) of them", said).groups())
    assert in_use >= 3
    assert available == total - reserved - in_use
