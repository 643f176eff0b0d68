"""The pool when connections and the database go away, and come back (F1, B3)."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from aiohttp_poolscope.driver import patches
from aiohttp_poolscope.errors import ConnectionReleased, DatabaseUnavailable, PoolExhausted
from tests.conftest import BUSY, Audit, Database, until
from tests.kit.wire import wired

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

PID = "SELECT pg_backend_pid()"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, to be stopped and started."""
    with EmbeddedPostgres(tcp=True) as server:
        yield server


async def test_dead_idle_connections_reach_nobody(make_scope: Any, database: Database) -> None:
    """After every idle backend was killed each borrower gets a living connection."""
    async with make_scope(minsize=3, maxsize=3) as scope:
        for _ in range(3):
            await until(lambda: scope.stats().idle == 3)
            database.kill()
            gate = scope._run.pool.gate
            await until(lambda gate=gate: all(slot.link.closed for slot in gate.idle_slots()), "reading the farewells")
            assert await asyncio.gather(*(scope.fetchval("SELECT 1") for _ in range(10))) == [1] * 10
        stats = scope.stats()
        assert stats.dead >= 3
        assert stats.borrows == stats.lent == 30  # whatever was met on the way to it, each is one


async def test_a_frozen_idle_connection_reaches_nobody(make_scope: Any, database: Database) -> None:
    """A connection gone silent without a word fails its ping, and the borrower gets another one (C10, F2)."""
    with wired(database) as silent:
        async with make_scope(silent.dsn, maxsize=2, check_after_idle=0.0, connect_timeout=0.2) as scope:
            pid = await scope.fetchval(PID)
            silent.freeze()
            async with asyncio.timeout(10):
                assert await scope.fetchval(PID) != pid
            silent.frozen = False


async def test_a_kill_mid_query(make_scope: Any, database: Database) -> None:
    """A backend killed under a statement is DatabaseUnavailable for that one, and the pool goes on."""
    async with make_scope(maxsize=2) as scope:
        async with scope.acquire() as db:
            statement = asyncio.ensure_future(db.fetchval("SELECT pg_sleep(30)"))
            await until(lambda: ("active",) in database.backends("state"))
            database.kill()
            with pytest.raises(DatabaseUnavailable):
                await statement
        assert await asyncio.gather(*(scope.fetchval("SELECT 1") for _ in range(5))) == [1] * 5
        assert scope.stats().in_use == 0


async def test_handed_over_and_dead(make_scope: Any, database: Database) -> None:
    """A connection that dies between its hand-over and its waiter's waking is replaced by a living one."""
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        pid = await db.fetchval(PID)
        waiting = asyncio.ensure_future(scope.fetchval(PID))
        await until(lambda: scope.stats().waiting)
        link = db._link
        db.release()
        link.fail(ConnectionReleased("the test"))
        assert await waiting not in (pid, None)


async def test_repair_is_ours(make_scope: Any, database: Database) -> None:
    """A dirty connection is repaired in a task that the pool knows; the one who returned it does not wait."""
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        await db.execute("BEGIN")
        db.release()
        pool = scope._open_pool()
        assert [task.get_name() for task in pool.tasks if "recycle" in task.get_name()] == ["poolscope db: recycle"]
        assert scope.stats().repairing == 1
        await until(lambda: scope.stats().idle == 1)
        await until(lambda: not [task for task in pool.tasks if "recycle" in task.get_name()])


async def test_closed_while_it_repairs(make_scope: Any, database: Database, audit: Audit) -> None:
    """A pool that is closed while connections are being repaired leaves none of them open (P6)."""
    with wired(database) as wire:
        async with make_scope(wire.dsn, maxsize=2, drain_grace=0.05, drain_timeout=0.1) as scope:
            for db in [await scope.acquire(), await scope.acquire()]:
                await db.execute("BEGIN")
                wire.frozen = True
                db.release()
                wire.frozen = False
            wire.frozen = True
        assert scope.state == "closed"
        wire.frozen = False


async def test_a_descriptor_that_is_a_strangers_at_once(
    dsn: str, database: Database, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq closes a dead connection's socket by itself. A thread may have its number at once, a client soon after."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2)
    app.router.add_get("/", answer)
    async with serve(app) as served:
        (slot,) = scope._run.pool.gate.slots
        number, look = slot.link.aio._fileno, patches.PollingSelect.select
        files: list[int] = []

        def later(*arguments: Any) -> Any:
            while number not in files:
                files.append(os.open(os.devnull, os.O_RDONLY))
            return look(*arguments)

        monkeypatch.setattr(patches.PollingSelect, "select", later)
        database.kill(waiting=False)
        await until(lambda: number in files)
        for each in files:
            os.close(each)
        assert await asyncio.gather(*(served.get() for _ in range(4))) == [(200, "42")] * 4
        assert stat.S_ISSOCK(os.fstat(number).st_mode)
        assert scope.stats().dead == 1


async def test_a_connection_that_cannot_be_closed(make_scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the driver or the loop has against the closing of a connection, it is lent to nobody afterwards."""

    def never() -> None:
        asyncio.get_running_loop().remove_reader(link.aio._fileno)
        raise RuntimeError("not today")

    async with make_scope(maxsize=1) as scope:
        assert await scope.fetchval("SELECT 1") == 1
        (link,) = [slot.link for slot in scope._run.pool.gate.slots]
        monkeypatch.setattr(link.aio, "close", never)
        with pytest.raises(RuntimeError, match="not today"):
            scope.expire()
        assert link.closed
        assert scope.stats().closed == 1
        assert await scope.fetchval("SELECT 1") == 1
        (new,) = [slot.link for slot in scope._run.pool.gate.slots]
        assert new.aio is not link.aio


async def test_no_database_at_start(make_scope: Any, server: EmbeddedPostgres) -> None:
    """A wrong address fails the start, unless connect_at_start is off."""
    wrong = server.dsn_for("nowhere")
    with pytest.raises(DatabaseUnavailable, match="nowhere"):
        async with make_scope(wrong):
            pass
    async with make_scope(wrong, connect_at_start=False) as scope:
        assert scope.state == "serving"


async def test_breaker(make_scope: Any, server: EmbeddedPostgres) -> None:
    """While the database is away borrowers are refused at once; it is back within about a second (B3, F1)."""
    async with make_scope(server.dsn, maxsize=3, minsize=1, breaker_failures=3) as scope:
        await asyncio.to_thread(server.stop)
        try:
            await until(lambda: scope.stats().breaker != "closed")
            attempts = scope._run.pool.opener.breaker.failures
            begun = time.monotonic()
            for _ in range(50):
                with pytest.raises(DatabaseUnavailable, match="Connection refused"):
                    await scope.fetchval("SELECT 1")
            assert time.monotonic() - begun < BUSY
            assert scope._run.pool.opener.breaker.failures - attempts < 10
        finally:
            await asyncio.to_thread(server.start)
        back = time.monotonic()
        await until(lambda: scope.stats().breaker == "closed")
        assert await scope.fetchval("SELECT 1") == 1
        assert time.monotonic() - back < 1.0 + BUSY


async def test_a_short_restart_is_waited_out(make_scope: Any, server: EmbeddedPostgres) -> None:
    """While the breaker is closed those who come during a restart wait for it, and are served (F1)."""
    async with make_scope(server.dsn, breaker_failures=1000, acquire_timeout=10) as scope:
        await asyncio.to_thread(server.stop, "immediate")
        waiting = [asyncio.ensure_future(scope.fetchval("SELECT 1")) for _ in range(5)]
        await until(lambda: scope.stats().waiting == 5)
        await asyncio.to_thread(server.start)
        assert await asyncio.gather(*waiting) == [1] * 5


async def test_a_slow_connect_delays_nobody(make_scope: Any, database: Database) -> None:
    """While a connect hangs, whoever can be served by a return is served (P4)."""
    with wired(database) as wire:
        async with make_scope(wire.dsn, maxsize=2, connect_timeout=60) as scope:
            db = await scope.acquire()
            wire.hang = True
            waiting = [asyncio.ensure_future(scope.fetchval("SELECT 1")) for _ in range(3)]
            await until(lambda: scope.stats().opening and scope.stats().waiting == 3)
            db.release()
            async with asyncio.timeout(5):
                assert await asyncio.gather(*waiting) == [1] * 3
            assert scope.stats().opening == 1
            wire.hang = False


async def test_the_breaker_closes_with_nobody_waiting(make_scope: Any, database: Database) -> None:
    """Opened by attempts to add a connection, it closes when the database answers, though one is there all along."""
    with wired(database) as wire:
        settings = {"minsize": 1, "maxsize": 2, "breaker_failures": 2, "breaker_reset": 0.05, "acquire_timeout": 1.0}
        async with make_scope(wire.dsn, **settings) as scope:
            wire.refuse()
            async with scope.acquire():
                with pytest.raises(PoolExhausted):
                    await scope.fetchval("SELECT 1")
            await until(lambda: scope.stats().breaker != "closed")
            assert await scope.trouble() is None
            wire.accept()
            await until(lambda: scope.stats().breaker == "closed")
