"""LISTEN on a connection: aiopg's queue of notifications."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.driver import DatabaseError
from aiohttp_poolscope.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from tests.conftest import Database


async def test_notifications_survive_an_sql_error(make_scope: Any, database: Database) -> None:
    """After a failed statement raw.notifies still delivers; aiopg would call it closed for ever."""
    async with make_scope(reset="full") as scope, scope.acquire() as db:
        await db.execute("LISTEN poolscope_test")
        with contextlib.suppress(DatabaseError):
            await db.fetch("SELECT 1/0")
        database.sql("NOTIFY poolscope_test, 'hello'")
        async with asyncio.timeout(5):
            notification = await db.raw.notifies.get()
        assert notification.payload == "hello"


@pytest.mark.parametrize("when", ["before", "while it waits"])
async def test_one_that_comes_with_an_answer(make_scope: Any, when: str) -> None:
    """A notification that arrives together with the answer to a statement is delivered, and not with the next one."""
    async with make_scope() as scope, scope.acquire() as db:
        together = "LISTEN poolscope_test; NOTIFY poolscope_test, 'hello'"
        if when == "before":
            await db.execute(together)
            waiting = asyncio.ensure_future(db.raw.notifies.get())
        else:
            waiting = asyncio.ensure_future(db.raw.notifies.get())
            await asyncio.sleep(0)
            await db.execute(together)
        async with asyncio.timeout(5):
            notification = await waiting
        assert notification.payload == "hello"


async def test_raw_of_a_connection_that_has_died(make_scope: Any, database: Database) -> None:
    """It can be asked for, and says itself that it is closed."""
    async with make_scope() as scope, scope.acquire() as db:
        await db.execute("SELECT 1")
        database.kill()
        with contextlib.suppress(DatabaseError, DatabaseUnavailable):
            await db.execute("SELECT 1")
        assert db.raw.closed
