"""The pool: who gets a connection and when, how long connections live, and what a borrow costs."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.errors import ConnectionReleased, PoolExhausted, QueueFull
from tests.conftest import Database, until

PID = "SELECT pg_backend_pid()"


async def test_exhausted(make_scope: Any) -> None:
    """A borrow that is not served within acquire_timeout is a PoolExhausted that has the numbers (B2)."""
    async with make_scope(maxsize=2, acquire_timeout=0.1) as scope, scope.acquire(), scope.acquire():
        async with asyncio.timeout(5):
            with pytest.raises(PoolExhausted) as caught:
                await scope.fetchval("SELECT 1")
        assert re.search(r"pool 'db': .* \(2/2 in use, 0 waiting, waited 0\.\d s\)", str(caught.value))
        assert not isinstance(caught.value, QueueFull)
        assert scope.stats().timed_out == 1


async def test_acquire_timeout_of_one_borrow(make_scope: Any) -> None:
    """acquire(timeout=...) is that borrow's own limit; zero does not wait at all."""
    async with make_scope(maxsize=1, acquire_timeout=60) as scope, scope.acquire():
        for timeout in (0, 0.05):
            async with asyncio.timeout(5):
                with pytest.raises(PoolExhausted):
                    await scope.acquire(timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            scope.acquire(timeout=-1)


async def test_the_queue_is_bounded(make_scope: Any) -> None:
    """Beyond max_waiting a borrow is refused at once, and those in the queue are served (B2)."""
    async with make_scope(maxsize=1, max_waiting=2) as scope:
        async with scope.acquire():
            waiting = [asyncio.ensure_future(scope.fetchval("SELECT 1")) for _ in range(2)]
            await until(lambda: scope.stats().waiting == 2)
            with pytest.raises(QueueFull, match="max_waiting is 2"):
                await scope.acquire()
        assert await asyncio.gather(*waiting) == [1, 1]
        assert scope.stats().refused == 1


async def test_first_come_first_served(make_scope: Any) -> None:
    """A returned connection goes to whoever waits longest, and not to somebody who has just come (P11)."""
    order: list[int] = []
    async with make_scope(maxsize=1) as scope:

        async def borrow(number: int) -> None:
            async with scope.acquire():
                order.append(number)

        async with scope.acquire():
            waiting = []
            for number in range(5):
                waiting.append(asyncio.ensure_future(borrow(number)))
                await until(lambda: scope.stats().waiting == len(waiting))
        await borrow(99)
        await asyncio.gather(*waiting)
        assert order == [0, 1, 2, 3, 4, 99]
        assert scope.stats().opened == 1


async def test_a_cancelled_waiter_loses_nothing(make_scope: Any) -> None:
    """A waiter cancelled in the tick in which it is served passes the connection on (P2, P3)."""
    async with make_scope(maxsize=1) as scope:
        for _ in range(20):
            db = await scope.acquire()
            first, second = (asyncio.ensure_future(scope.fetchval("SELECT 1")) for _ in range(2))
            await until(lambda: scope.stats().waiting == 2)
            db.release()
            first.cancel()
            assert await second == 1
            await asyncio.wait([first])
            assert first.cancelled()
        assert scope.stats().in_use == 0
        assert scope.stats().cancelled == 20


async def test_never_more_than_maxsize(make_scope: Any, database: Database) -> None:
    """Under a crowd that is cancelled, times out and leaves transactions open there are never more backends."""
    async with make_scope(maxsize=3, acquire_timeout=0.2) as scope:
        seen: list[int] = []

        async def user(number: int) -> None:
            try:
                async with asyncio.timeout(0.02 if number % 3 == 0 else 5), scope.acquire() as db:
                    if number % 4 == 0:
                        await db.execute("BEGIN")
                    await db.execute("SELECT pg_sleep(0.005)")
            except (TimeoutError, PoolExhausted):
                pass

        users = [asyncio.ensure_future(user(number)) for number in range(120)]
        while not all(task.done() for task in users):
            seen.append(len(database.backends()))
            await asyncio.sleep(0.002)
        await asyncio.gather(*users)
        assert max(seen) <= 3
        await until(lambda: scope.stats().repairing == 0)
        assert scope.stats().in_use == 0
        assert scope._run.pool.gate.violations() == []


async def test_warm_before_the_first_request(make_scope: Any, database: Database) -> None:
    """minsize connections are open when the application has started (B6)."""
    async with make_scope(minsize=3) as scope:
        assert len(database.backends()) == 3
        assert scope.stats().idle == 3


async def test_minsize_is_refilled(make_scope: Any, database: Database) -> None:
    """When connections die the pool opens new ones up to minsize, without being asked."""
    async with make_scope(minsize=2) as scope:
        old = database.backends("pid")
        database.kill(waiting=False)
        await until(lambda: len(new := database.backends("pid")) == 2 and not set(new) & set(old))
        assert scope.stats().dead == 2


async def test_idle_timeout(make_scope: Any, database: Database) -> None:
    """Idle connections beyond minsize are closed on the server after idle_timeout (B7)."""
    async with make_scope(maxsize=3, minsize=1, idle_timeout=0.1) as scope:
        async with scope.acquire() as one, scope.acquire() as two, scope.acquire() as three:
            for db in (one, two, three):
                await db.fetchval("SELECT 1")
        assert len(database.backends()) == 3
        await until(lambda: len(database.backends()) == 1)
        assert scope.stats().idle == 1


async def test_a_ping_is_no_use(make_scope: Any) -> None:
    """A connection that is only kept alive ends with idle_timeout as any other (B7)."""
    async with make_scope(minsize=0, idle_timeout=60.0) as scope:
        (slot,) = scope._run.pool.gate.idle_slots()
        slot.used -= 61.0  # its last use was then; its last ping a moment ago
        await until(lambda: scope.stats().size == 0)


async def test_max_lifetime_while_idle(make_scope: Any, database: Database) -> None:
    """A connection older than max_lifetime is replaced, even one that minsize keeps (B7)."""
    async with make_scope(minsize=1, max_lifetime=0.2) as scope:
        (old,) = database.backends("pid")
        await until(lambda: old not in database.backends("pid") and database.backends("pid"))
        assert scope.stats().closed >= 1


async def test_max_lifetime_on_return(make_scope: Any) -> None:
    """A connection that has become too old while lent is not lent again, not even to one who waits for it."""
    async with make_scope(maxsize=1, max_lifetime=0.1) as scope:
        async with scope.acquire() as db:
            pid = await db.fetchval(PID)
            waiting = asyncio.ensure_future(scope.fetchval(PID))
            await until(lambda: scope.stats().waiting == 1)
            await db.fetchval("SELECT pg_sleep(0.15)")
        assert await waiting not in (pid, None)


async def test_lifetimes_do_not_end_together(make_scope: Any) -> None:
    """Lifetimes differ by up to ten percent, so that connections are not all replaced at once."""
    async with make_scope(max_lifetime=100.0) as scope:
        ends = [scope._run.pool.opener._lifetime_end(0.0) for _ in range(100)]
        assert len(set(ends)) > 90
        assert 90.0 <= min(ends) <= max(ends) <= 100.0


async def test_keepalive(make_scope: Any, database: Database) -> None:
    """Idle connections are pinged every ``keepalive`` seconds (B7)."""
    async with make_scope(minsize=2, maxsize=2, keepalive=0.1):
        begun = database.sql("SELECT now()")[0][0]
        pinged = f"query = 'SELECT 1' AND query_start > '{begun}'"
        await until(lambda: database.backends(pinged) == [(True,)] * 2)


async def test_check_after_idle(make_scope: Any, database: Database) -> None:
    """A connection idle for longer than check_after_idle is pinged before it is lent, a fresh one is not (B7)."""
    async with make_scope(minsize=1, maxsize=1, check_after_idle=0.0) as scope, scope.acquire():
        assert database.backends("query") == [("SELECT 1",)]
    async with make_scope(minsize=1, maxsize=1) as scope:
        await scope.fetchval("SELECT 42")
        async with scope.acquire():
            assert database.backends("query") == [("SELECT 42",)]


async def test_expire(make_scope: Any, database: Database) -> None:
    """expire() replaces idle connections at once and lent ones as they come back."""
    async with make_scope(minsize=2, maxsize=2) as scope:
        old = set(database.backends("pid"))
        async with scope.acquire() as db:
            held = await db.fetchval(PID)
            scope.expire()
            await until(lambda: len(set(database.backends("pid")) & old) == 1)
            assert await db.fetchval(PID) == held
        await until(lambda: len(new := set(database.backends("pid"))) == 2 and not new & old)
        await until(lambda: scope.stats().idle == 2)


async def test_a_leak_is_reported_with_its_holder(make_scope: Any, caplog: Any) -> None:
    """A connection held beyond leak_threshold is logged once, with the line that borrowed it."""
    async with make_scope(maxsize=3, leak_threshold=0.1) as scope, scope.acquire():
        await until(lambda: scope.stats().leaked == 1)
        async with scope.acquire() as late:
            late.task.set_name("the second")
            late.method = "GET"
            await until(lambda: scope.stats().leaked == 2)
    reports = [record.getMessage() for record in caplog.records if "is held for" in record.getMessage()]
    assert len(reports) == 2
    assert all("test_pool.py" in report for report in reports)
    assert ["method='GET'" in report for report in reports] == [False, True]


async def test_max_lease(make_scope: Any, database: Database) -> None:
    """After max_lease the connection is taken away: its statement fails, the next one too, and others are served."""
    async with make_scope(maxsize=1, max_lease=0.1) as scope:
        db = await scope.acquire()
        with pytest.raises(ConnectionReleased, match="max_lease"):
            await db.fetchval("SELECT pg_sleep(30)")
        with pytest.raises(ConnectionReleased, match="max_lease"):
            await db.fetchval("SELECT 1")
        assert await scope.fetchval("SELECT 1") == 1
        db.release()


async def test_leases(make_scope: Any) -> None:
    """leases() says who holds what, the longest first."""
    async with make_scope(maxsize=2) as scope:
        async with scope.acquire(), scope.acquire():
            first, second = scope.leases()
            assert first.held >= second.held
            assert "test_leases" in first.where
        assert scope.leases() == ()


async def test_a_borrow_does_not_wait(make_scope: Any) -> None:
    """A borrow of an idle connection and its return complete without a single suspension."""
    async with make_scope() as scope:
        await scope.fetchval("SELECT 1")
        pool = scope._open_pool()
        for db in (ScopedConnection(pool), ScopedConnection(pool)):
            borrowing = pool.borrow(db)
            with pytest.raises(StopIteration):
                borrowing.send(None)
            assert db.held
            db._end("the test")
        assert scope.stats().idle == 1


async def test_a_borrow_makes_nothing(make_scope: Any, monkeypatch: Any) -> None:
    """A borrow of an idle connection and its return create no task, no timer and no future."""
    async with make_scope() as scope:
        await scope.fetchval("SELECT 1")
        pool = scope._open_pool()
        made: list[str] = []
        monkeypatch.setattr(pool.tasks, "loop", _Watched(asyncio.get_running_loop(), made))
        for _ in range(3):
            db = ScopedConnection(pool)
            assert pool.lend(db)
            db._end("the test")
        assert made == []
        db = ScopedConnection(pool)
        assert pool.lend(db)
        await db.execute("BEGIN")
        db._end("the test")
        assert made == ["create_task"]
        await until(lambda: scope.stats().idle)


class _Watched:
    """A loop that writes down what is made with it."""

    def __init__(self, loop: Any, made: list[str]) -> None:
        self._real, self._made = loop, made

    def __getattr__(self, name: str) -> Any:
        if name in ("create_task", "create_future", "call_later", "call_at", "call_soon", "run_in_executor"):
            self._made.append(name)
        return getattr(self._real, name)
