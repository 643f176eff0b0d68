"""How an application ends, in one process: who is answered, who is refused, who is cancelled, and that it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import WSMsgType, web

import aiohttp_poolscope as poolscope
from tests.load.clients import Answer, ask, head, read_answer, reset

from .conftest import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .conftest import Database, Serve, Served

SOON = 5.0
"""Seconds: far more than any of these ends may take, far less than aiohttp would wait for a handler that is stuck."""

STUCK = 20.0
"""Seconds that aiohttp would wait for a handler, and once more; by default it is three times as long."""


class Report(NamedTuple):
    """The drain's log line."""

    duration: float
    served: int
    cancelled: int
    forced: int
    who: str


@pytest.fixture
def reports(caplog: pytest.LogCaptureFixture) -> Callable[[], Report]:
    """The one log line about the drain."""
    caplog.set_level(logging.INFO, "aiohttp_poolscope")
    form = re.compile(r"drained in ([\d.]+) s, (\d+) served meanwhile, (\d+) cancelled, (\d+) forced(?:: (.*))?")

    def the_one() -> Report:
        (found,) = [match for record in caplog.records if (match := form.search(record.getMessage()))]
        duration, *counts, who = found.groups()
        return Report(float(duration), *map(int, counts), who or "")

    return the_one


class App:
    """An application whose handlers wait for the test: ``go`` lets them end."""

    def __init__(self, dsn: str, **settings: Any) -> None:
        self.web = web.Application()
        self.go = asyncio.Event()
        self.started: list[str] = []
        self.ended: dict[str, BaseException | None] = {}
        self.scope = poolscope.setup(self.web, dsn, **{"maxsize": 2, "drain_grace": 3.0, **settings})
        for handler in (self.quick, self.hold, self.lazy, self.query):
            self.web.router.add_get(f"/{handler.__name__}", handler)

    async def quick(self, request: web.Request) -> web.Response:
        self.started.append("quick")
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))

    async def hold(self, request: web.Request) -> web.Response:
        """Holds its connection."""
        return await self._watched(request, self.go.wait())

    @poolscope.lazy
    async def lazy(self, request: web.Request) -> web.Response:
        """Borrows at its end only."""
        return await self._watched(request, self.go.wait())

    async def query(self, request: web.Request) -> web.Response:
        """Is stuck in the database."""
        return await self._watched(request, request["db"].execute("SELECT pg_sleep(%s)", (STUCK,)))

    async def _watched(self, request: web.Request, work: Any) -> web.Response:
        name = request.path.strip("/")
        self.started.append(name)
        self.ended[name] = None
        try:
            await work
            return web.Response(text=str(await request["db"].fetchval("SELECT 42")))
        except BaseException as error:
            self.ended[name] = error
            raise


@contextlib.asynccontextmanager
async def ending(served: Served) -> AsyncIterator[asyncio.Task[None]]:
    """The application's end, begun; within the block or soon after it is over."""
    task = asyncio.create_task(served.runner.cleanup())
    try:
        yield task
        async with asyncio.timeout(SOON):
            await task
    finally:
        task.cancel()


def good(answer: Answer) -> bool:
    return (answer.status, answer.body) == (200, b"42")


def refused(answer: Answer) -> bool:
    return (
        answer.status == 503
        and answer.headers.get("connection", "").lower() == "close"
        and int(answer.headers["retry-after"]) >= 1
    )


async def test_what_is_in_flight_is_answered_and_what_waits_is_refused(
    dsn: str, serve: Serve, cancellation: bool, reports: Callable[[], Report]
) -> None:
    """S1: the running handler answers in full; who waits for a connection hears 503 at once and may go elsewhere."""
    app = App(dsn, maxsize=1)
    async with serve(app.web, handler_cancellation=cancellation, shutdown_timeout=STUCK) as served:
        running = asyncio.create_task(ask_kept(served.port, "/hold"))
        await until(lambda: app.started == ["hold"])
        waiting = [asyncio.create_task(ask_kept(served.port, "/quick")) for _ in range(5)]
        await until(lambda: app.scope.stats().waiting == 5)
        async with ending(served) as end:
            for each in waiting:
                assert refused(await each)
            assert app.scope.state == "draining"
            assert not end.done()
            app.go.set()
            answer = await running
            assert good(answer)
            assert answer.headers["connection"] == "close"
        assert app.started == ["hold"]  # a refused handler has not run
        assert app.scope.state == "closed"
        assert reports()[1:] == (0, 0, 0, "")


async def ask_kept(port: int, path: str) -> Answer:
    """As a client that would like to keep its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head(path))
        return await read_answer(reader)
    finally:
        writer.close()


async def test_a_running_handler_may_still_borrow(dsn: str, serve: Serve, reports: Callable[[], Report]) -> None:
    """Within drain_grace a handler that runs borrows at first use, and scope.acquire() works."""
    app = App(dsn)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        running = asyncio.create_task(ask(served.port, "/lazy"))
        await until(lambda: app.started == ["lazy"])
        async with ending(served):
            await until(lambda: app.scope.state == "draining")
            async with app.scope.acquire() as db:
                assert await db.fetchval("SELECT 42") == 42
            app.go.set()
            assert good(await running)
        assert reports()[1:] == (2, 0, 0, "")


async def test_running_handlers_may_still_wait_for_a_connection(
    dsn: str, serve: Serve, reports: Callable[[], Report]
) -> None:
    """Who runs and waits when the drain begins is served in its turn, and so is who begins to wait after that."""
    app = App(dsn, maxsize=1)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        running = [asyncio.create_task(ask(served.port, path)) for path in ("/hold", "/lazy")]
        await until(lambda: len(app.started) == 2)
        before = asyncio.create_task(app.scope.fetchval("SELECT 42"))
        await until(lambda: app.scope.stats().waiting == 1)
        async with ending(served):
            await until(lambda: app.scope.state == "draining")
            after = asyncio.create_task(app.scope.fetchval("SELECT 42"))
            await until(lambda: app.scope.stats().waiting == 2)
            app.go.set()
            for each in running:
                assert good(await each)
            assert (await before, await after) == (42, 42)
        assert reports()[1:] == (3, 0, 0, "")


async def test_after_the_grace_nobody_borrows(dsn: str, serve: Serve, reports: Callable[[], Report]) -> None:
    """A handler that wants its connection when the grace is over gets ShuttingDown, which is a 503."""
    app = App(dsn, drain_grace=0.1)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        running = asyncio.create_task(ask(served.port, "/lazy"))
        await until(lambda: app.started == ["lazy"])
        async with ending(served):
            await until(lambda: app.scope._pool.gate.closed)  # type: ignore[union-attr]
            app.go.set()
            assert refused(await running)
        assert isinstance(app.ended["lazy"], poolscope.ShuttingDown)
        assert reports()[1:] == (0, 0, 0, "")


async def test_handlers_that_outlast_the_grace_are_cancelled(
    dsn: str, serve: Serve, cancellation: bool, reports: Callable[[], Report]
) -> None:
    """A4: a handler in a query and one that just holds end with the grace, not after twice the shutdown_timeout."""
    app = App(dsn, drain_grace=0.3)
    async with serve(app.web, handler_cancellation=cancellation, shutdown_timeout=STUCK) as served:
        running = [asyncio.create_task(ask(served.port, path)) for path in ("/query", "/hold")]
        await until(lambda: len(app.started) == 2)
        begun = time.monotonic()
        async with ending(served):
            pass
        assert time.monotonic() - begun < SOON < STUCK
        assert [(await each).status for each in running] <= [503, 503]
        assert {name: type(error) for name, error in app.ended.items()} == {
            "query": asyncio.CancelledError,
            "hold": asyncio.CancelledError,
        }
        report = reports()
        assert report[1:] == (0, 2, 0, "")
        assert 0.3 <= report.duration < SOON


async def test_handlers_whose_client_has_left_are_cancelled_too(
    dsn: str, serve: Serve, reports: Callable[[], Report]
) -> None:
    """A5: aiohttp has forgotten them; they hold our connections, and end before the pool does."""
    app = App(dsn, drain_grace=0.2)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        for path in ("/query", "/hold"):
            _, writer = await served.raw(head(path))
            await until(lambda path=path: path.strip("/") in app.started)
            reset(writer)
        await until(lambda: all(db.client.transport is None for _, db in app.scope._pool.holders()))  # type: ignore[union-attr]
        async with ending(served):
            pass
        assert {name: type(error) for name, error in app.ended.items()} == {
            "query": asyncio.CancelledError,
            "hold": asyncio.CancelledError,
        }
        assert reports()[1:] == (0, 2, 0, "")


async def test_a_handler_that_will_not_end_loses_its_connection(
    dsn: str, serve: Serve, database: Database, reports: Callable[[], Report]
) -> None:
    """S2: what has not come back at drain_timeout is closed by force, named in the log; its holder is told."""
    app = App(dsn, drain_grace=0.1, drain_timeout=0.3)
    told: list[BaseException] = []

    async def stubborn(request: web.Request) -> web.Response:
        app.started.append("stubborn")
        while not app.go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await app.go.wait()
        try:
            await request["db"].fetchval("SELECT 42")
        except poolscope.ConnectionReleased as error:
            told.append(error)
        return web.Response(text="42")

    app.web.router.add_get("/stubborn", stubborn)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        running = asyncio.create_task(ask(served.port, "/stubborn"))
        await until(lambda: app.started == ["stubborn"])
        async with ending(served):
            await until(lambda: not database.backends())
            app.go.set()
            assert good(await running)
        assert "GET /stubborn" in str(told[0])
        assert reports()[1:] == (0, 1, 1, "GET /stubborn")


async def test_a_leaked_connection_cannot_hang_the_exit(
    dsn: str, serve: Serve, database: Database, reports: Callable[[], Report]
) -> None:
    """S2: a connection that nobody gives back is taken when the grace is over, and the log says whose it was."""
    app = App(dsn, drain_grace=0.2)
    leaked = []

    async def leak() -> None:
        leaked.append(await app.scope.acquire())

    async with serve(app.web, shutdown_timeout=STUCK) as served:
        await asyncio.create_task(leak(), name="the one who leaks")
        async with ending(served):
            pass
        assert reports()[1:] == (0, 0, 1, "no request the one who leaks")
        with pytest.raises(poolscope.ConnectionReleased):
            await leaked[0].fetchval("SELECT 42")
        leaked[0].release()
        await until(lambda: not database.backends())


async def test_idle_keep_alive_connections_delay_nothing(dsn: str, serve: Serve, reports: Callable[[], Report]) -> None:
    """Clients that keep their connection without a request are sent away, and the pool is closed at once."""
    app = App(dsn)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        idle = [await served.raw(head("/quick")) for _ in range(5)]
        for reader, _ in idle:
            assert good(await read_answer(reader))
        async with ending(served):
            for reader, writer in idle:
                assert await reader.read() == b""
                writer.close()
        assert reports()[1:] == (0, 0, 0, "")
        assert reports().duration < 1.0


@pytest.mark.parametrize("second", ["/quick", "/nowhere"])
async def test_a_second_request_on_a_busy_connection_is_not_just_dropped(dsn: str, serve: Serve, second: str) -> None:
    """A7: behind a request in flight, it is answered, or the answer before it says that none will come."""
    app = App(dsn)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        reader, writer = await served.raw(head("/hold") + head(second))
        await until(lambda: app.started == ["hold"])
        async with ending(served):
            await until(lambda: app.scope.state == "draining")
            app.go.set()
            first = await read_answer(reader)
            assert good(first)
            if first.headers.get("connection", "").lower() != "close":
                assert (await read_answer(reader)).status in (200, 404, 503)
        writer.close()


async def test_an_idle_websocket_ends_with_the_application(
    dsn: str, serve: Serve, reports: Callable[[], Report]
) -> None:
    """It holds no connection, and keeps the pool from closing no longer than the grace, in which it might borrow."""
    app = App(dsn, drain_grace=0.3)
    said = []

    async def socket(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for _ in ws:
            said.append(await request["db"].fetchval("SELECT 42"))
            request["db"].release()
            await ws.send_str("done")
        return ws

    app.web.router.add_get("/ws", socket)
    async with serve(app.web, shutdown_timeout=1.0) as served, served.client.ws_connect(served.url / "ws") as ws:
        await ws.send_str("one")
        assert await ws.receive_str() == "done"
        assert app.scope.leases() == ()
        async with ending(served):
            assert (await ws.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        assert said == [42]
        assert reports()[1:] == (0, 0, 0, "")
        assert reports().duration < 1.0


@pytest.mark.parametrize("where", ["the application", "a sub-application"])
@pytest.mark.parametrize("how", ["setup", "pair"])
async def test_the_drain_begins_with_the_shutdown(dsn: str, serve: Serve, where: str, how: str) -> None:
    """Drain starts at on_shutdown however it is set up; the bare pair in a sub-application drains in its context."""
    go, started = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        started.set()
        await go.wait()
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))

    scope = poolscope.PoolScope(dsn, maxsize=1, drain_grace=3.0)
    app = web.Application() if how == "setup" else web.Application(middlewares=[scope.middleware])
    if how == "setup":
        scope.setup(app)
    else:
        app.cleanup_ctx.append(scope.cleanup_ctx)
    app.router.add_get("/hold", hold)
    root = app
    if where == "a sub-application":
        root = web.Application()
        root.add_subapp("/sub", app)
    late = how == "pair" and root is not app
    async with serve(root, shutdown_timeout=0.3 if late else STUCK) as served:
        running = asyncio.create_task(ask(served.port, "/hold" if root is app else "/sub/hold"))
        await started.wait()
        async with ending(served) as end:
            if late:  # by then aiohttp has cancelled the handler: all that can be promised is a clean end
                await end
            else:
                await until(lambda: scope.state == "draining")
                assert not end.done()
                go.set()
                assert good(await running)
        await asyncio.wait((running,))
        assert scope.state == "closed"


async def test_drain_begun_by_hand(dsn: str, serve: Serve, reports: Callable[[], Report]) -> None:
    """begin_drain(), repeated or not, refuses new requests on connections old and new; the end is as usual."""
    app = App(dsn)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        reader, writer = await served.raw(head("/quick"))
        assert good(await read_answer(reader))
        app.scope.begin_drain()
        app.scope.begin_drain()
        writer.write(head("/quick"))
        assert refused(await read_answer(reader))
        writer.close()
        assert refused(await ask_kept(served.port, "/quick"))
        assert (await ask(served.port, "/nowhere")).status == 404
        async with ending(served):
            pass
        assert app.started == ["quick"]
        assert reports()[1:] == (0, 0, 0, "")


async def test_a_scope_can_be_used_again(dsn: str, serve: Serve) -> None:
    """S5: in a second run it serves as in the first; between them, using it is a clear error."""
    scope = poolscope.PoolScope(dsn, maxsize=1)

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))

    for _ in range(2):
        app = web.Application()
        scope.setup(app)
        app.router.add_get("/", handler)
        async with serve(app) as served:
            assert scope.state == "serving"
            assert await served.get() == (200, "42")
        assert scope.state == "closed"
        with pytest.raises(poolscope.ShuttingDown, match="closed"):
            scope.acquire()


async def test_who_waits_for_a_database_that_is_silent_is_refused(serve: Serve) -> None:
    """An attempt to connect that hangs delays neither the refusal of those who wait nor the end."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    app = App(f"postgresql://127.0.0.1:{port}/x?sslmode=disable", connect_at_start=False, connect_timeout=STUCK,
              acquire_timeout=STUCK)  # fmt: skip
    async with silent, serve(app.web, shutdown_timeout=STUCK) as served:
        waiting = [asyncio.create_task(ask_kept(served.port, "/quick")) for _ in range(3)]
        await until(lambda: app.scope.stats().waiting == 3)
        async with ending(served):
            for each in waiting:
                assert refused(await each)


@pytest.mark.parametrize("seconds", [0.2, STUCK])
async def test_resets_in_flight_end_before_the_pool(
    dsn: str, serve: Serve, database: Database, reports: Callable[[], Report], seconds: float
) -> None:
    """A connection that is being reset is waited for, but not for ever."""
    app = App(dsn, drain_grace=0.5, reset=f"SELECT pg_sleep({seconds})")
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        assert await served.get("/quick") == (200, "42")
        assert app.scope.stats().repairing > 0
        async with ending(served):
            pass
        report = reports()
        assert report[1:] == (0, 0, 0, "")
        assert report.duration >= min(seconds, 0.5) - 0.1
        await until(lambda: not database.backends())
