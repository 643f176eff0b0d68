"""This side of the wire: messages, type casters and ``raw`` end with their lease, where no statement reaches them."""

from __future__ import annotations

import asyncio
import json
import weakref
from typing import TYPE_CHECKING, Any

import psycopg2.extensions
import psycopg2.extras
import pytest

from aiohttp_poolscope.errors import ConnectionReleased
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Database

PID = "SELECT pg_backend_pid()"
NOTICE = "DO $$ BEGIN RAISE NOTICE 'secret'; END $$"
RESETS = pytest.mark.parametrize("reset", ["rollback", "auto", "full"])


async def pid_of(scope: Any) -> Any:
    return await scope.fetchval(PID)


@RESETS
async def test_an_unread_notification(make_scope: Any, database: Database, reset: str) -> None:
    """Who listens next on the connection does not get what was sent to the request before."""
    async with make_scope(maxsize=1, reset=reset) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            await db.execute("LISTEN orders")
            kept = db.raw.notifies
            database.sql("NOTIFY orders, 'unread'")
            await until(lambda: kept.qsize() == 1)
        async with scope.acquire() as db:
            assert await db.fetchval(PID) == pid
            assert db.raw.notifies.empty()
            assert db.raw.raw.notifies == []
        assert kept.qsize() == 1  # it is the other one's


async def test_who_waits_for_a_notification_is_told(make_scope: Any) -> None:
    """A task that waits on the queue of a lease that ends gets ConnectionReleased, and no later message."""
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            await db.execute("LISTEN orders")
            waiting = asyncio.ensure_future(db.raw.notifies.get())
            await asyncio.sleep(0)
        await scope.execute("NOTIFY orders, 'secret'")
        with pytest.raises(ConnectionReleased):
            await waiting


@pytest.mark.parametrize("looks", [True, False], ids=["raw was used", "raw was not used"])
async def test_a_forgotten_listen_piles_up_nothing(make_scope: Any, database: Database, *, looks: bool) -> None:
    """What a LISTEN that was left behind receives is let go of with each lease, and while nobody has the connection."""
    async with make_scope(maxsize=1, minsize=1, reset="rollback") as scope:
        async with scope.acquire() as db:
            await db.execute("LISTEN orders")
            if looks:
                _ = db.raw.notifies
        [link] = [slot.link for slot in scope._run.pool.gate.slots]
        for sent in range(5):
            database.sql("SELECT pg_notify('orders', %s || repeat('x', 7000)) FROM generate_series(1, 200)", str(sent))
            async with scope.acquire() as db:  # and some of it comes during a lease
                await db.fetch("SELECT pg_notify('orders', n::text) FROM generate_series(1, 200) AS n")
                await db.fetch("SELECT 1")
                assert 0 < link.aio._notifies.qsize() < 1200
            assert link.aio._notifies.empty()
            assert scope.stats().idle == 1  # at once, without a repair


@RESETS
async def test_notices(make_scope: Any, reset: str) -> None:
    """What the server told one request beside its answers is not there for the next."""
    async with make_scope(maxsize=1, reset=reset) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            await db.execute(NOTICE)
            assert "secret" in db.raw.notices[0]
            kept = db.raw.notices
        async with scope.acquire() as db:  # without raw: nobody has looked
            await db.execute(NOTICE)
        await scope.execute("SELECT 1")
        async with scope.acquire() as db:
            assert await db.fetchval(PID) == pid
            assert db.raw.notices == db.raw.raw.notices == []
        assert len(kept) == 1


def shouting(value: Any, _: Any) -> Any:
    return value and value.upper()


@RESETS
@pytest.mark.parametrize("way", ["raw", "cursor", "aiopg's cursor"])
async def test_type_casters(make_scope: Any, reset: str, way: str) -> None:
    """Those that a lease has registered end with it; those of on_connect, and of JSON, stay."""
    text = psycopg2.extensions.new_type((25,), "SHOUTING", shouting)

    async def on_connect(db: Any) -> None:
        numbers = psycopg2.extensions.new_type((21,), "HEX", lambda value, _: value and hex(int(value)))
        psycopg2.extensions.register_type(numbers, db.raw.raw)
        psycopg2.extras.register_default_jsonb(db.raw.raw, loads=lambda value: ("own", json.loads(value)))

    look = "SELECT 'a'::text, 255::int2, '{\"b\": 1}'::json, '[2]'::jsonb"
    as_it_was = ("a", "0xff", {"b": 1}, ("own", [2]))
    async with make_scope(maxsize=1, reset=reset, on_connect=on_connect) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            if way == "raw":
                psycopg2.extensions.register_type(text, db.raw.raw)
                psycopg2.extras.register_default_jsonb(db.raw.raw, loads=str)
                db.raw.raw.cursor_factory = psycopg2.extras.RealDictCursor
                changed = await db.fetchrow(look)
                assert (changed[0], changed[3]) == ("A", "[2]")
            elif way == "cursor":
                async with db.cursor() as cursor:
                    psycopg2.extensions.register_type(text, cursor.raw.connection)
            else:
                async with db.raw.cursor() as cursor:
                    psycopg2.extensions.register_type(text, cursor.raw.connection)
        for _ in range(3):
            async with scope.acquire() as db:
                assert await db.fetchrow(look) == as_it_was
                async with db.raw.cursor() as cursor:
                    await cursor.execute(look)
                    assert await cursor.fetchone() == as_it_was
        assert await pid_of(scope) == pid


USES: dict[str, Callable[[Any], Any]] = {
    "cursor": lambda raw: raw.cursor(),
    "close": lambda raw: raw.close(),
    "closed": lambda raw: raw.closed,
    "raw": lambda raw: raw.raw,
    "notifies": lambda raw: raw.notifies,
    "notices": lambda raw: raw.notices,
    "get_backend_pid": lambda raw: raw.get_backend_pid(),
    "isexecuting": lambda raw: raw.isexecuting(),
}


@pytest.mark.parametrize("use", USES)
async def test_raw_beyond_its_lease(make_scope: Any, database: Database, use: str) -> None:
    """Kept, it raises ConnectionReleased whatever it is used for; the next lease, and its transaction, never know."""
    database.sql("CREATE TABLE IF NOT EXISTS things (n int); TRUNCATE things")
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            kept, pid = db.raw, await db.fetchval(PID)
            assert kept is db.raw
            assert not kept.closed
            USES[use](weakref.proxy(kept)) if use in ("raw", "notices") else None
        for _ in range(2):
            with pytest.raises(ConnectionReleased, match=r"scope\.acquire\(\)"):
                await USES[use](kept)
            async with scope.acquire() as db, db.transaction():
                assert await db.fetchval(PID) == pid
                assert db.raw is not kept
                with pytest.raises(ConnectionReleased):
                    await USES[use](kept)
        assert "ended" in repr(kept)


async def test_what_was_made_of_raw(make_scope: Any, database: Database) -> None:
    """Cursors of aiopg, psycopg2's below them, aiopg's transactions, and a method that was looked up before."""
    database.sql("CREATE TABLE kept (n int)")
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            cursor = await db.raw.cursor()
            await cursor.execute("SELECT generate_series(1, 3)")
            below, own = cursor.raw, (await db.cursor()).raw
            blocks = await db.raw.cursor()
            block = await blocks.begin()
            opening, coming = db.raw.cursor, db.raw.cursor()
        insert = "INSERT INTO kept VALUES (1)"
        async with scope.acquire() as db, db.transaction():
            assert await db.fetchval(PID) == pid
            await db.execute("INSERT INTO kept VALUES (2)")
            for use in (
                lambda: cursor.fetchone(),  # noqa: PLW0108
                lambda: cursor.execute(insert),
                block.commit,
                opening,
            ):
                with pytest.raises(ConnectionReleased):
                    await use()
            with pytest.raises(ConnectionReleased):
                await coming
            for each in (below, own):
                with pytest.raises(psycopg2.InterfaceError):
                    each.execute(insert)
            assert db.in_transaction
            cursor.close()
            assert cursor.closed
            assert "ended" in repr(cursor)
        block._is_begin = False  # else aiopg warns of it, rightly
    assert database.sql("SELECT n FROM kept") == [(2,)]


async def test_psycopg2s_connection_that_is_kept(make_scope: Any) -> None:
    """Nothing can be put before it: it is closed, and the next lease gets another connection."""
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            assert db.raw.raw.get_backend_pid() == pid
        assert await pid_of(scope) == pid  # nobody has it
        async with scope.acquire() as db:
            kept = db.raw.raw
        assert await pid_of(scope) != pid
        with pytest.raises(psycopg2.InterfaceError, match="closed"):
            kept.cursor()


async def test_raw_in_the_hooks(make_scope: Any) -> None:
    """A hook's raw ends with the hook, or with the lease that on_acquire is for."""
    kept: dict[str, Any] = {}

    def keeper(name: str) -> Any:
        async def hook(db: Any) -> None:
            await db.execute("LISTEN orders; NOTIFY orders, 'hook'")
            kept[name] = db.raw

        return hook

    hooks = {name: keeper(name) for name in ("on_connect", "on_acquire", "on_release")}
    async with make_scope(maxsize=1, **hooks) as scope:
        async with scope.acquire() as db:
            assert kept["on_acquire"] is db.raw
            with pytest.raises(ConnectionReleased):
                _ = kept["on_connect"].raw
        await until(lambda: "on_release" in kept and scope.stats().idle == 1)
        for each in kept.values():
            with pytest.raises(ConnectionReleased):
                _ = each.raw


async def test_weak_references(make_scope: Any) -> None:
    """aiopg.sa has weak references to the cursors that it opens, by ``await connection.cursor()``."""
    async with make_scope() as scope, scope.acquire() as db:
        cursors: weakref.WeakSet[Any] = weakref.WeakSet()
        for connection in (db, db.raw):
            cursor = await connection.cursor()
            cursors.add(cursor)
            await cursor.execute("SELECT 1")
            assert await cursor.fetchall() == [(1,)]
            cursors.remove(cursor)
            cursor.close()
