"""Events: one for each thing that happens to a pool, for whoever asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from typing import Any

import psycopg2
import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import events as ev
from aiohttp_poolscope import logs

from .conftest import Database, Serve, until


@pytest.fixture
def told() -> list[ev.Event]:
    """What a callback was given."""
    return []


def kinds(told: list[ev.Event]) -> list[str]:
    return [event.kind for event in told]


async def test_the_life_of_a_connection(make_scope: Any, told: list[ev.Event]) -> None:
    """Opened, lent, returned, closed; then the drain: each once, in this order, and nothing else."""
    begun = time.monotonic(), time.time()
    async with make_scope(maxsize=1) as scope:
        scope.on_event(told.append)
        async with scope.acquire():
            pass
        scope.expire()
        await until(lambda: scope.stats().opened == 2, "the refill")
    assert kinds(told) == ["acquired", "released", "closed", "opened", "drain_started", "closed", "drain_finished"]
    _, released, closed, opened, started, ended, finished = told
    assert all(event.pool == "db" for event in told)
    assert all(begun[0] <= event.monotonic <= time.monotonic() for event in told)
    assert all(begun[1] <= event.at <= time.time() for event in told)
    assert isinstance(released, ev.Released)
    assert released.held >= 0
    assert (closed.reason, ended.reason) == ("expired", "shutdown")  # type: ignore[attr-defined]
    assert opened.duration > 0  # type: ignore[attr-defined]
    assert started.in_use == 0  # type: ignore[attr-defined]
    assert (finished.served, finished.cancelled, finished.forced) == (0, 0, ())  # type: ignore[attr-defined]


async def test_events_know_their_request(dsn: str, serve: Serve, told: list[ev.Event]) -> None:
    """A request's borrow and return carry its method, path, route and id; those of a task without one do not."""
    app = web.Application()
    scope = poolscope.setup(app, dsn)
    scope.on_event(told.append, ev.Acquired, ev.Released)

    async def handler(request: web.Request) -> web.Response:
        async with scope.acquire():  # a second one, for the same request
            return web.Response(text=poolscope.request_id(request))

    app.router.add_get("/users/{id}", handler)
    async with serve(app) as served:
        _, made = await served.get("/users/7 ", params={"secret": "1"})
        assert await served.get("/users/8", headers={"X-Request-ID": "abc-1"}) == (200, "abc-1")
        await scope.fetchval("SELECT 1")
    assert len(told) == 10
    assert kinds(told) == ["acquired", "acquired", "released", "released"] * 2 + ["acquired", "released"]
    fields = ("method", "path", "route", "request_id")
    seen = [tuple(getattr(event, name) for name in fields) for event in told]
    assert set(seen[:4]) == {("GET", "/users/7%20", "/users/{id}", made)}
    assert set(seen[4:8]) == {("GET", "/users/8", "/users/{id}", "abc-1")}
    assert set(seen[8:]) == {(None, None, None, None)}


async def test_how_borrows_end(make_scope: Any, told: list[ev.Event]) -> None:
    """Each outcome of the queue has its event, and the events are as many as the counters say."""
    async with make_scope(maxsize=1, max_waiting=2) as scope:
        scope.on_event(told.append, ev.Waited, ev.Unserved)
        async with scope.acquire():
            served = asyncio.ensure_future(scope.fetchval("SELECT 1"))
            cancelled = asyncio.ensure_future(scope.fetchval("SELECT 1"))
            await until(lambda: scope.stats().waiting == 2)
            with pytest.raises(poolscope.QueueFull):
                await scope.acquire()
            cancelled.cancel()
            await until(lambda: scope.stats().waiting == 1)
            with pytest.raises(poolscope.PoolExhausted):
                await scope.acquire(timeout=0.02)
        await served
        stats = scope.stats()
        assert kinds(told) == ["refused", "cancelled", "timed_out", "waited"]
        assert (stats.refused, stats.cancelled, stats.timed_out, stats.wait.count) == (1, 1, 1, 2)
        refused, _, timed_out, waited = told
        assert "max_waiting is 2" in refused.cause  # type: ignore[attr-defined]
        assert timed_out.waited >= 0.02  # type: ignore[attr-defined]
        assert waited.waited > 0  # type: ignore[attr-defined]


async def test_a_failed_statement(make_scope: Any, told: list[ev.Event], database: Database) -> None:
    """It says whether the statement, its time or the connection was at fault, keeps SQLSTATE, and shows no value."""
    async with make_scope(maxsize=1) as scope:
        scope.on_event(told.append, ev.StatementFailed)
        with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
            await scope.fetchval("SELECT 'the secret'::int, %s", ("another secret",))
        with pytest.raises(poolscope.QueryTimeout):
            await scope.fetchval("SELECT pg_sleep(60)", timeout=0.02)
        async with scope.acquire() as db:
            database.kill()
            with pytest.raises(poolscope.DatabaseUnavailable):
                await db.fetchval("SELECT 1")
        stats = scope.stats()
    assert [event.fault for event in told] == ["statement", "timeout", "connection"]  # type: ignore[attr-defined]
    assert stats.errors == {"statement": 1, "timeout": 1, "connection": 1}
    first = told[0]
    assert isinstance(first, ev.StatementFailed)
    assert (first.sqlstate, first.cause) == ("22P02", "InvalidTextRepresentation")
    assert first.statement == "SELECT ?::int, %s"
    assert isinstance(first.error, psycopg2.Error)
    assert "secret" not in repr(first)


async def test_the_breaker(make_scope: Any, told: list[ev.Event], dsn: str) -> None:
    """Attempts to connect that fail are told, and the breaker's opening and closing once each, with their duration."""
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    where = [nowhere]
    async with make_scope(lambda: where[0], maxsize=1, breaker_failures=2, connect_at_start=False) as scope:
        scope.on_event(told.append, ev.ConnectFailed, ev.BreakerOpened, ev.BreakerClosed)
        with pytest.raises(poolscope.DatabaseUnavailable):
            await scope.fetchval("SELECT 1")
        where[0] = dsn
        await until(lambda: told[-1].kind == "breaker_closed", "the end of the outage")
        failed = [event for event in told if isinstance(event, ev.ConnectFailed)]
        assert [event.attempt for event in failed] == list(range(1, len(failed) + 1))
        assert scope.stats().connect_failed == len(failed)
        assert kinds(told).count("breaker_opened") == kinds(told).count("breaker_closed") == 1
        assert told[-1].duration > 0  # type: ignore[attr-defined]


async def test_a_leak_and_its_return(make_scope: Any, told: list[ev.Event]) -> None:
    """Both carry the lease; the second tells how long it was in the end."""
    async with make_scope(maxsize=1, leak_threshold=0.05) as scope:
        scope.on_event(told.append, ev.Leaked, ev.ReturnedLate)
        async with scope.acquire():
            await until(lambda: told)
        leaked, late = told
        assert isinstance(leaked, ev.Leaked)
        assert isinstance(late, ev.ReturnedLate)
        assert 0.05 < leaked.lease.held < late.lease.held
        assert "test_events.py" in str(leaked.lease.where)


async def begin(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")


async def fail_inside(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")
    with contextlib.suppress(psycopg2.Error):
        await db.execute("SELECT 1/0")


async def release_inside(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")
    db.release()


async def redirect_inside(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")
    raise web.HTTPSeeOther("/elsewhere")


async def catch_an_error_of_the_lease_before(db: poolscope.ScopedConnection) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with db.acquire():
            raise ZeroDivisionError
    await db.execute("BEGIN")


async def raise_inside(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")
    raise web.HTTPConflict


async def break_inside(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")
    raise ZeroDivisionError


async def leave_a_stream(db: poolscope.ScopedConnection) -> None:
    async for _ in db.stream("SELECT generate_series(1, 5000)"):
        break


async def commit(db: poolscope.ScopedConnection) -> None:
    async with db.transaction() as tx:
        await tx.execute("SELECT 1")


DIRTY = (begin, fail_inside, release_inside, redirect_inside, catch_an_error_of_the_lease_before)
NOT_DIRTY = (raise_inside, break_inside, leave_a_stream, commit)


@pytest.mark.parametrize("reset", ["rollback", "full"])
async def test_a_transaction_that_nobody_ended(dsn: str, serve: Serve, told: list[ev.Event], reset: str) -> None:
    """A handler or a block that ends well inside a transaction is told, with its line; one that an error ends is not.

    Nor is a stream that was left early, which has a transaction of its own.
    """
    app = web.Application()
    scope = poolscope.setup(app, dsn, reset=reset, acquire="lazy")
    scope.on_event(told.append, ev.ReturnedDirty)

    async def handler(request: web.Request) -> web.Response:
        await works[request.match_info["name"]](request["db"])
        return web.Response()

    works = {work.__name__: work for work in (*DIRTY, *NOT_DIRTY)}
    app.router.add_get("/{name}", handler)
    async with serve(app) as served:
        for name in works:
            await served.status(f"/{name}")
        assert [event.path for event in told] == [f"/{work.__name__}" for work in DIRTY]  # type: ignore[attr-defined]
        first = told[0]
        assert isinstance(first, ev.ReturnedDirty)
        assert (first.method, first.route, first.lease.path) == ("GET", "/{name}", first.path)
        assert f"{__file__}:" in str(first.lease.where)
        assert str(first.lease.where).endswith(" in begin")
        told.clear()
        for work in (*DIRTY[:3], *NOT_DIRTY):
            with contextlib.suppress(ZeroDivisionError, web.HTTPException):
                async with scope.acquire() as db:
                    await work(db)
        assert kinds(told) == ["returned_dirty"] * 3
        assert {event.path for event in told} == {None}  # type: ignore[attr-defined]


async def test_a_hook_that_fails_inside_a_transaction(make_scope: Any, told: list[ev.Event]) -> None:
    """The error says it: nothing was believed to be written."""

    async def on_acquire(db: poolscope.ScopedConnection) -> None:
        await db.execute("BEGIN")
        raise ZeroDivisionError

    async with make_scope(on_acquire=on_acquire) as scope:
        scope.on_event(told.append, ev.ReturnedDirty)
        with pytest.raises(ZeroDivisionError):
            await scope.fetchval("SELECT 1")
    assert told == []


async def test_leases_that_the_drain_ends(make_scope: Any, told: list[ev.Event]) -> None:
    """One that outlasts ``drain_grace`` is told, whether its task is cancelled or has long left it; others are not."""
    kept = []

    async def hold(scope: poolscope.PoolScope, seconds: float) -> None:
        async with scope.acquire():
            await asyncio.sleep(seconds)

    async def leave(scope: poolscope.PoolScope) -> None:
        kept.append(await scope.acquire())

    async with make_scope(maxsize=3, drain_grace=0.2, drain_timeout=5) as scope:
        scope.on_event(told.append, ev.LeaseCancelled)
        ends = [asyncio.create_task(hold(scope, seconds), name=f"for {seconds:g} s") for seconds in (0.05, 60)]
        await asyncio.create_task(leave(scope), name="the leaver")
        await until(lambda: scope.stats().in_use == 3)
    assert {(event.kind, event.lease.task) for event in told} == {  # type: ignore[attr-defined]
        ("lease_cancelled", "for 60 s"),
        ("lease_cancelled", "the leaver"),
    }
    assert all("test_events.py" in str(event.lease.where) for event in told)  # type: ignore[attr-defined]
    assert [end.cancelled() for end in ends] == [False, True]


async def test_nothing_is_made_for_nobody(make_scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a callback no event of a borrow is made: the hot path pays nothing."""
    async with make_scope(maxsize=1) as scope:
        scope.on_event(lambda event: None, ev.Leaked)
        for kind in (ev.Acquired, ev.Released, ev.Waited):
            monkeypatch.setattr(kind, "__init__", None)  # to make one raises TypeError
        async with scope.acquire():
            waiting = asyncio.ensure_future(scope.fetchval("SELECT 1"))
            await until(lambda: scope.stats().waiting)
        assert await waiting == 1


def test_who_listens_for_a_block() -> None:
    """Afterwards it hears nothing any more, and those who go on hear as before."""
    heard: list[str] = []
    events = ev.Events(lambda _kind, error: heard.append(repr(error)))
    told = {"pool": "db", "at": 0.0, "monotonic": 0.0}
    events.listen(lambda event: heard.append(f"always {event.kind}"), ev.DrainStarted)
    with events.listening(lambda event: heard.append(f"inside {event.kind}"), ev.DrainStarted, ev.Opened):
        events.emit(ev.DrainStarted(**told, in_use=0))
        events.emit(ev.Opened(**told, duration=0.1))
    events.emit(ev.DrainStarted(**told, in_use=0))
    assert heard == ["always drain_started", "inside drain_started", "inside opened", "always drain_started"]
    assert set(events.subscribed) == {ev.DrainStarted}


@pytest.mark.parametrize("error", [RuntimeError("mine"), asyncio.CancelledError()])
async def test_a_callback_that_raises_harms_nobody(
    make_scope: Any, told: list[ev.Event], caplog: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The request goes on, the next callback is called, and the log says it once a second, with how often."""
    monkeypatch.setattr(logs, "_limiter", logs.LogLimiter())

    def fail(_event: ev.Event) -> None:
        raise error

    async with make_scope(maxsize=1) as scope:
        scope.on_event(fail, ev.Acquired)
        scope.on_event(told.append, ev.Acquired)
        for _ in range(5):
            assert await scope.fetchval("SELECT 1") == 1
        assert scope.stats().in_use == 0
    said = [record for record in caplog.records if "callback" in record.getMessage()]
    assert len(said) == 1
    assert said[0].levelno == logging.ERROR
    assert len(told) == 5


async def test_a_callback_may_ask_the_scope(make_scope: Any) -> None:
    """The numbers hold in the moment of each event."""
    wrong: list[str] = []
    async with make_scope(maxsize=2) as scope:

        def look(event: ev.Event) -> None:
            stats, gate = scope.stats(), scope._run.pool.gate
            scope.leases()
            ended = stats.lent + stats.timed_out + stats.refused + stats.shed + stats.client_gone
            if stats.borrows != ended + stats.cancelled + stats.failed:
                wrong.append(f"{event.kind}: {stats}")
            wrong.extend(f"{event.kind}: {problem}" for problem in gate.violations())

        scope.on_event(look)
        async with scope.acquire():
            await asyncio.gather(*(scope.fetchval("SELECT 1") for _ in range(20)))
            scope.expire()
    assert wrong == []


@pytest.mark.parametrize("wrong", ["no function", None])
def test_what_is_no_callback(wrong: Any) -> None:
    """It is refused where it is given, and so are async functions, which nobody would await, and strange kinds."""
    scope = poolscope.PoolScope("postgresql://localhost/app")
    with pytest.raises(poolscope.ConfigError, match=r"on_event\("):
        scope.on_event(wrong)

    async def later(event: ev.Event) -> None: ...

    with pytest.raises(poolscope.ConfigError, match="plain function"):
        scope.on_event(later)
    with pytest.raises(poolscope.ConfigError, match=r"class of aiohttp_poolscope\.events"):
        scope.on_event(print, "leaked")  # type: ignore[arg-type]


def test_on_event_is_a_decorator() -> None:
    """It returns what it was given."""
    scope = poolscope.PoolScope("postgresql://localhost/app")

    @scope.on_event
    def callback(event: ev.Event) -> None: ...

    assert scope._events.subscribed[ev.Leaked][-1] is callback


@pytest.mark.parametrize("kind", ev.KINDS, ids=lambda kind: kind.kind)
def test_events_are_frozen_and_named(kind: type[ev.Event]) -> None:
    """Each kind is a frozen dataclass with a name of its own, which the public names have."""
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert [each.kind for each in ev.KINDS].count(kind.kind) == 1
    assert kind.__name__ in ev.__all__


async def test_callbacks_outlive_a_restart(dsn: str, told: list[ev.Event]) -> None:
    """They belong to the scope: its second run tells them, too."""
    scope = poolscope.PoolScope(dsn)
    scope.on_event(told.append, ev.DrainFinished)
    for _ in range(2):
        async with scope.running():
            pass
    assert len(told) == 2


async def test_a_filter_of_the_log_that_raises(make_scope: Any, caplog: Any) -> None:
    """Not even that, in the words about a callback that raised, costs a connection."""

    class Raising(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise LookupError(record.name)

    def fail(_event: ev.Event) -> None:
        raise RuntimeError

    async with make_scope(maxsize=1) as scope:
        scope.on_event(fail)
        caplog.handler.addFilter(found := Raising())
        try:
            for _ in range(3):
                assert await scope.fetchval("SELECT 1") == 1
            scope.expire()
            await until(lambda: scope.stats().idle == 1, "the refill")
            assert await scope.fetchval("SELECT 1") == 1
        finally:
            caplog.handler.removeFilter(found)
        assert (scope.stats().in_use, scope.stats().opening) == (0, 0)


async def test_a_callback_may_begin_the_drain(make_scope: Any, told: list[ev.Event]) -> None:
    """Of its own scope as well, and as often as it likes: there is one drain, and it is under way by then."""
    states = []
    async with make_scope() as scope:
        scope.on_event(told.append, ev.DrainStarted, ev.DrainFinished)
        scope.on_event(lambda event: (states.append(scope.state), scope.begin_drain()), ev.DrainStarted)
        scope.begin_drain()
    assert kinds(told) == ["drain_started", "drain_finished"]
    assert states == ["draining"]


async def test_a_callback_may_expire(make_scope: Any, told: list[ev.Event]) -> None:
    """What it closes while the pool goes through its idle connections is closed once, and not counted as dead."""
    async with make_scope(minsize=0, maxsize=4, idle_timeout=0.05) as scope:
        scope.on_event(told.append, ev.Closed)
        scope.on_event(lambda event: scope.expire(), ev.Closed)
        await asyncio.gather(*(scope.fetchval("SELECT pg_sleep(0.05)") for _ in range(4)))
        await until(lambda: not scope.stats().size, "the end of all")
        assert (scope.stats().dead, scope.stats().closed, len(told)) == (0, 4, 4)


async def test_no_value_in_why_a_connection_was_closed(
    make_scope: Any, told: list[ev.Event], database: Database, caplog: Any
) -> None:
    """What a hook's statement said may hold values: only its class and SQLSTATE are told."""
    caplog.set_level(logging.DEBUG)
    database.sql("CREATE TABLE seen (email text UNIQUE)")
    database.sql("INSERT INTO seen VALUES ('secret@example.org')")

    async def remember(db: poolscope.ScopedConnection) -> None:
        await db.execute("INSERT INTO seen VALUES ('secret@example.org')")

    async with make_scope(on_release=remember) as scope:
        scope.on_event(told.append)
        await scope.fetchval("SELECT 1")
        await until(lambda: scope.stats().closed, "the end of the connection")
    (closed,) = [event for event in told if isinstance(event, ev.Closed) and event.reason == "failed"]
    assert closed.cause == "UniqueViolation (23505)"
    assert "secret" not in repr(told) + caplog.text


async def test_a_borrow_without_patience_is_prepared(make_scope: Any) -> None:
    """acquire(timeout=0) of an idle connection gives on_acquire its time, and closes nothing."""

    async def prepare(db: poolscope.ScopedConnection) -> None:
        await db.execute("SELECT pg_sleep(0.02)")

    async with make_scope(on_acquire=prepare) as scope:
        for _ in range(3):
            async with scope.acquire(timeout=0) as db:
                assert await db.fetchval("SELECT 1") == 1
        assert (scope.stats().opened, scope.stats().closed) == (1, 0)


async def test_a_task_that_outlives_its_request(dsn: str, serve: Serve, told: list[ev.Event]) -> None:
    """What it borrows afterwards is for no request: all four fields are None, not some of them."""
    app = web.Application()
    scope = poolscope.setup(app, dsn)
    over, tasks = asyncio.Event(), []

    async def later() -> None:
        await over.wait()
        await scope.fetchval("SELECT 1")

    async def handler(request: web.Request) -> web.Response:
        tasks.append(asyncio.create_task(later()))
        return web.Response()

    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 200
        scope.on_event(told.append, ev.Acquired)
        over.set()
        await tasks[0]
    (event,) = told
    assert isinstance(event, ev.Acquired)
    assert (event.method, event.path, event.route, event.request_id) == (None, None, None, None)
