"""LISTEN on a connection: aiopg's queue of notifications."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.driver import DatabaseError

if TYPE_CHECKING:
    from .conftest import Database


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
