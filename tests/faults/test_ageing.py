"""Connections that idle, age, or are dropped on the way: what is asked of them, when, and what it costs whom."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.errors import PoolExhausted
from aiohttp_poolscope.pool import housekeeper, recycler
from tests.conftest import BUSY, Database, Serve, Served, until
from tests.kit.wire import Wire, wired

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PING, PING_LIMIT = "SELECT 1", 1.0
"""What an idle connection is asked, and the seconds it has to answer."""

PID = "SELECT pg_backend_pid()"


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool looks at its idle connections ten times a second instead of once."""
    monkeypatch.setattr(housekeeper, "CALM", 0.1)


@pytest.fixture
def wire(database: Database) -> Iterator[Wire]:
    """The way to the database: counts what is asked, and can fall silent."""
    with wired(database) as found:
        yield found


class Got(NamedTuple):
    """One answer: when it was asked for, how long it took, what it was."""

    at: float
    took: float
    status: int
    text: str


@contextlib.asynccontextmanager
async def crowd(served: Served, size: int, path: str = "/") -> AsyncIterator[list[Got]]:
    """So many clients, each asking again as soon as it is answered, until the block ends; and what they got."""
    got: list[Got] = []
    going = True

    async def client() -> None:
        while going:
            at = time.monotonic()
            status, text = await served.get(path)
            got.append(Got(at, time.monotonic() - at, status, text))

    async with asyncio.TaskGroup() as group:
        for _ in range(size):
            group.create_task(client())
        try:
            yield got
        finally:
            going = False


def application(dsn: str, **settings: Any) -> tuple[web.Application, poolscope.PoolScope]:
    """Its answers tell which backend gave them."""

    async def pid(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval(PID)))

    async def slow(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(0.3)")
        return await pid(request)

    app = web.Application()
    scope = poolscope.setup(app, dsn, **{"queue_target": None, **settings})  # no test here is about overload
    app.router.add_get("/", pid)
    app.router.add_get("/slow", slow)
    return app, scope


@pytest.mark.usefixtures("brisk")
async def test_a_busy_pool_asks_nothing_but_what_it_is_asked(wire: Wire, serve: Serve) -> None:
    """Of N requests on a busy pool exactly N queries reach the server: no check, no keepalive, no reset, no BEGIN."""
    app, scope = application(wire.dsn, minsize=4, maxsize=4, keepalive=0.5)
    async with serve(app) as served:
        wire.queries.clear()
        async with crowd(served, 12) as got:
            await until(lambda: len(got) >= 600, "six hundred answers", deadline=30.0)
        asked = Counter(wire.queries)
        assert {each.status for each in got} == {200}
        assert len({each.text for each in got}) == 4
        assert asked == {PID: len(got)}
        assert scope.stats().opened == 4


async def test_one_check_for_a_borrow_at_most(wire: Wire, serve: Serve) -> None:
    """A borrow that finds a stale connection costs one ping, and none ever costs two."""
    app, scope = application(wire.dsn, minsize=4, maxsize=4, check_after_idle=0.0)
    async with serve(app) as served:
        for _ in range(3):
            wire.queries.clear()
            assert await served.status() == 200
            assert wire.queries == [PING, PID]
        wire.queries.clear()
        got = await asyncio.gather(*(served.status() for _ in range(100)))
        asked = Counter(wire.queries)
        assert got == [200] * 100
        assert asked[PID] == 100
        assert asked.keys() == {PID, PING}
        assert 1 <= asked[PING] <= 100
        assert scope.stats().opened == 4


async def test_a_ping_has_a_limit_of_its_own(wire: Wire, make_scope: Any) -> None:
    """A silent connection costs its borrower one ping limit, or what is left of his own time if that is less."""
    settings = {"check_after_idle": 0.0, "acquire_timeout": 30, "queue_target": None}
    async with make_scope(wire.dsn, maxsize=1, **settings) as scope:
        old = await scope.fetchval(PID)
        wire.freeze()
        wire.queries.clear()
        begun = time.monotonic()
        hurried = asyncio.ensure_future(scope.acquire(timeout=0.2))
        assert await scope.fetchval(PID) != old
        took = time.monotonic() - begun
        assert PING_LIMIT * 0.9 < took < PING_LIMIT + BUSY
        assert wire.queries == [PING, PID]
        assert hurried.done()
        with pytest.raises(PoolExhausted, match="waited"):
            await hurried


@contextlib.asynccontextmanager
async def fallen_silent(wire: Wire, serve: Serve, **settings: Any) -> AsyncIterator[tuple[Served, poolscope.PoolScope]]:
    """A pool of four connections that a firewall has dropped while they were idle."""
    app, scope = application(wire.dsn, minsize=1, maxsize=4, check_after_idle=0.2, **settings)
    async with serve(app) as served:
        assert await asyncio.gather(*(served.status("/slow") for _ in range(4))) == [200] * 4
        assert [await served.status() for _ in range(8)] == [200] * 8
        assert scope._run is not None
        idle = scope._run.pool.gate.idle_slots()
        await until(lambda: len(idle) == 4 and time.monotonic() - max(slot.since for slot in idle) > 0.2, "a lull")
        wire.freeze()
        yield served, scope


def closings(scope: poolscope.PoolScope) -> list[float]:
    """When connections are closed, from now on. What is asked together ends in one turn of the loop, however late."""
    times: list[float] = []
    scope.on_event(lambda event: times.append(event.monotonic), poolscope.events.Closed)
    return times


async def test_a_firewall_costs_one_borrower_one_ping_limit(wire: Wire, serve: Serve) -> None:
    """All idle connections fell silent: they are found out in the time of one, and who comes next waits for nothing."""
    async with fallen_silent(wire, serve) as (served, scope):
        ends = closings(scope)
        assert await served.status() == 200
        await until(lambda: scope.stats().closed == 4, "the end of the silent")
        assert ends[3] - ends[1] < PING_LIMIT / 2  # once the first was silent, the others were asked together
        for _ in range(12):
            assert await served.status() == 200
        assert scope.stats().closed == 4


async def test_a_firewall_costs_a_crowd_one_ping_limit(wire: Wire, serve: Serve) -> None:
    """Many come at once and all idle connections turn out to be silent: that is no overload, and all are served."""
    async with fallen_silent(wire, serve, queue_target=0.1) as (served, scope):
        ends = closings(scope)
        assert await asyncio.gather(*(served.status() for _ in range(12))) == [200] * 12
        assert ends[3] - ends[0] < PING_LIMIT / 2  # all were asked together
        assert scope.stats().shed == 0


async def test_others_wait_for_no_check(wire: Wire, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """While silent connections are being checked, whoever can be served by a living one is served."""
    monkeypatch.setattr(recycler, "PING_LIMIT", 3 * BUSY)
    app, scope = application(wire.dsn, minsize=4, maxsize=4, check_after_idle=0.05)
    async with serve(app) as served:
        # The newest is the one that was used last; the three below it will not answer.
        holders = [await scope.acquire() for _ in range(4)]
        wire._frozen_below = 3
        for db in holders:
            db.release()
        await until(lambda: time.monotonic() - scope._run.pool.gate.idle_slots()[0].since > 0.05)
        assert await asyncio.gather(*(served.status() for _ in range(20))) == [200] * 20
        assert scope.stats().repairing == 3  # they are still being checked
        wire.cut()


@pytest.mark.usefixtures("brisk")
async def test_keepalive_finds_the_silent_before_anybody_comes(wire: Wire, serve: Serve) -> None:
    """Connections that a firewall dropped are found by keepalive and replaced; who comes then waits for nothing."""
    app, scope = application(wire.dsn, minsize=4, maxsize=4, keepalive=0.2, check_after_idle=60)
    async with serve(app) as served:
        wire.freeze()
        await until(lambda: scope.stats().closed == 4 and scope.stats().idle == 4, "four new ones")
        assert await asyncio.gather(*(served.status() for _ in range(12))) == [200] * 12
        assert scope.stats().closed == 4


@pytest.mark.usefixtures("brisk")
async def test_what_is_not_needed_is_closed_under_load(dsn: str, database: Database, serve: Serve) -> None:
    """After a peak the pool shrinks to what the load needs and to minsize, while requests go on; none of them fails."""
    app, scope = application(dsn, minsize=2, maxsize=8, idle_timeout=0.3)
    async with serve(app) as served:
        assert await asyncio.gather(*(served.status("/slow") for _ in range(8))) == [200] * 8
        assert scope.stats().size == 8
        async with crowd(served, 1) as got:
            await until(lambda: len(database.backends()) == 2, "minsize backends")
            kept, opened = database.backends("pid"), scope.stats().opened
            assert scope._run is not None
            (unused,) = [slot for slot in scope._run.pool.gate.slots if time.monotonic() - slot.used > 0.2]
            await until(lambda: time.monotonic() - unused.used > 0.6, "twice idle_timeout")
            assert (database.backends("pid"), scope.stats().opened) == (kept, opened)
        assert {each.status for each in got} == {200}
        assert (len(database.backends()), scope.stats().size) == (2, 2)


async def test_connections_of_one_age_do_not_end_together(make_scope: Any) -> None:
    """Twelve connections opened together, as after a restart, are to be replaced up to three minutes apart."""
    async with make_scope(minsize=12, maxsize=12) as scope:
        ages = sorted(slot.expires - slot.used for slot in scope._run.pool.gate.slots)
    assert ages[0] > 1620.0 - BUSY
    assert ages[-1] <= 1800.0
    assert ages[-1] - ages[0] > 0.3 * 180.0  # for twelve of them as good as certain


@pytest.mark.usefixtures("brisk")
async def test_no_connection_outlives_its_time_under_load(dsn: str, database: Database, serve: Serve) -> None:
    """Under load each connection is used until about max_lifetime and not for longer; no request fails by that."""
    lifetime = 1.0
    born: dict[str, float] = {}

    async def remember(db: Any) -> None:
        born[str(await db.fetchval(PID))] = time.monotonic()

    app, _ = application(dsn, minsize=4, maxsize=4, max_lifetime=lifetime, on_connect=remember)
    async with serve(app) as served:
        first = set(born)
        ended: dict[str, float] = {}
        async with crowd(served, 8) as got:

            def all_ended() -> bool:
                there = {str(pid) for (pid,) in database.backends("pid")}
                ended.update(dict.fromkeys(first - there - ended.keys(), time.monotonic()))
                return ended.keys() == first

            await until(all_ended, "the end of the first")
    assert {each.status for each in got} == {200}
    ages = sorted(ended[pid] - born[pid] for pid in first)
    print([round(age, 3) for age in ages])
    assert len(ages) == 4
    assert ages[0] > lifetime * 0.9 - 0.1  # it counts from the beginning of its connect
    assert ages[-1] < lifetime + BUSY
    assert max(each.at for each in got if each.text in first) < max(ended.values())


async def test_expire_replaces_everything_and_nobody_notices(dsn: str, database: Database, serve: Serve) -> None:
    """expire() under load: every backend is another one soon after, what was under way ends well, no request fails."""
    app, scope = application(dsn, minsize=6, maxsize=6)
    async with serve(app) as served:
        old = {pid for (pid,) in database.backends("pid")}
        async with crowd(served, 8) as got, crowd(served, 2, "/slow") as slow:
            await until(lambda: len(got) > 200 and slow, "load")
            scope.expire()
            expired = time.monotonic()
            await until(lambda: not old & {pid for (pid,) in database.backends("pid")}, "the end of the old ones")
            took = time.monotonic() - expired
            seen = len(got)
            await until(lambda: len(got) > seen + 100, "more load")
        print(round(took, 3), round(max(each.took for each in got), 3))
        assert {each.status for each in (*got, *slow)} == {200}
        after = {int(each.text) for each in (*got, *slow) if each.at > expired}
        assert len(old) == 6
        assert after
        assert not after & old
        await until(lambda: scope.stats().idle == 6, "six new ones")


@pytest.mark.usefixtures("brisk")
async def test_minsize_is_there_again_before_anybody_asks(dsn: str, database: Database, serve: Serve) -> None:
    """After kills the pool refills by itself: a crowd that comes later opens nothing, and nobody in it fails."""
    app, scope = application(dsn, minsize=5, maxsize=10)
    async with serve(app) as served:
        for round_number in range(1, 4):
            assert database.kill() == 5
            await until(lambda: scope.stats().idle == len(database.backends()) == 5, "five new ones")
            assert scope.stats().opened == 5 + 5 * round_number
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(5):
                    db = await stack.enter_async_context(scope.acquire(timeout=0))
                    assert await db.fetchval("SELECT 1") == 1
            assert await served.status() == 200
            assert scope.stats().opened == 5 + 5 * round_number
