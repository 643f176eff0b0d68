"""How an application ends, in one process: who is answered, who is refused, and when it begins."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.conftest import BUSY, until
from tests.kit.clients import ask, head, read_answer

from .ending import STUCK, App, ending, good, refused

if TYPE_CHECKING:
    from tests.conftest import Serve


async def test_what_is_in_flight_is_answered_and_what_waits_is_refused(
    dsn: str, serve: Serve, cancellation: bool
) -> None:
    """S1: the running handler answers in full; who waits for a connection hears 503 at once and may go elsewhere."""
    app = App(dsn, maxsize=1)
    async with serve(app.web, handler_cancellation=cancellation, shutdown_timeout=STUCK) as served:
        running = asyncio.create_task(ask(served.port, "/hold", keep=True))
        await until(lambda: app.started == ["hold"])
        waiting = [asyncio.create_task(ask(served.port, "/quick", keep=True)) for _ in range(5)]
        await until(lambda: app.scope.stats().waiting == 5)
        async with ending(served) as end:
            for each in waiting:
                assert refused(await each)
            assert app.scope.state == "draining"
            assert not end.task.done()
            app.go.set()
            answer = await running
            assert good(answer)
            assert answer.headers["connection"] == "close"
        assert app.started == ["hold"]  # a refused handler has not run
        assert app.scope.state == "closed"
        assert end.report[1:] == (0, 0, 0, "")


async def test_a_running_handler_may_still_borrow(dsn: str, serve: Serve) -> None:
    """Within drain_grace a handler that runs borrows at first use, and scope.acquire() works."""
    app = App(dsn)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        running = asyncio.create_task(ask(served.port, "/lazy"))
        await until(lambda: app.started == ["lazy"])
        async with ending(served) as end:
            await until(lambda: app.scope.state == "draining")
            async with app.scope.acquire() as db:
                assert await db.fetchval("SELECT 42") == 42
            app.go.set()
            assert good(await running)
        assert end.report[1:] == (2, 0, 0, "")


async def test_running_handlers_may_still_wait_for_a_connection(dsn: str, serve: Serve) -> None:
    """Who runs and waits when the drain begins is served in its turn, and so is who begins to wait after that."""
    app = App(dsn, maxsize=1)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        running = [asyncio.create_task(ask(served.port, path)) for path in ("/hold", "/lazy")]
        await until(lambda: len(app.started) == 2)
        before = asyncio.create_task(app.scope.fetchval("SELECT 42"))
        await until(lambda: app.scope.stats().waiting == 1)
        async with ending(served) as end:
            await until(lambda: app.scope.state == "draining")
            after = asyncio.create_task(app.scope.fetchval("SELECT 42"))
            await until(lambda: app.scope.stats().waiting == 2)
            app.go.set()
            for each in running:
                assert good(await each)
            assert (await before, await after) == (42, 42)
        assert end.report[1:] == (3, 0, 0, "")


async def test_after_the_grace_nobody_borrows(dsn: str, serve: Serve) -> None:
    """A handler that wants its connection when the grace is over gets ShuttingDown, which is a 503."""
    app = App(dsn, drain_grace=0.1)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        running = asyncio.create_task(ask(served.port, "/lazy"))
        await until(lambda: app.started == ["lazy"])
        async with ending(served) as end:
            await until(lambda: app.scope._run.pool.gate.closed)  # type: ignore[union-attr]
            app.go.set()
            assert refused(await running)
        assert isinstance(app.ended["lazy"], poolscope.ShuttingDown)
        assert end.report[1:] == (0, 0, 0, "")


async def test_idle_keep_alive_connections_delay_nothing(dsn: str, serve: Serve) -> None:
    """Clients that keep their connection without a request are sent away, and the pool is closed at once."""
    app = App(dsn, drain_grace=STUCK, drain_timeout=2 * STUCK)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        idle = [await served.raw(head("/quick")) for _ in range(5)]
        for reader, _ in idle:
            assert good(await read_answer(reader))
        async with ending(served) as end:
            for reader, writer in idle:
                assert await reader.read() == b""
                writer.close()
        assert end.report[1:] == (0, 0, 0, "")
        assert end.report.duration < BUSY


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
                await end.task
            else:
                await until(lambda: scope.state == "draining")
                assert not end.task.done()
                go.set()
                assert good(await running)
        await asyncio.wait((running,))
        assert scope.state == "closed"


async def test_drain_begun_by_hand(dsn: str, serve: Serve) -> None:
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
        assert refused(await ask(served.port, "/quick", keep=True))
        assert (await ask(served.port, "/nowhere")).status == 404
        async with ending(served):
            pass
        assert app.started == ["quick"]
        assert app.scope.state == "closed"


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
