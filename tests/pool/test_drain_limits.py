"""How an application ends, in one process: what would keep it from ending, and that it ends all the same."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import WSMsgType, web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.pool.holders import holders
from tests.conftest import DEADLINE, until
from tests.kit.clients import ask, head, reset

from .ending import SOON, STUCK, App, ending, good, refused

if TYPE_CHECKING:
    from tests.conftest import Database, Serve


async def test_handlers_that_outlast_the_grace_are_cancelled(dsn: str, serve: Serve, cancellation: bool) -> None:
    """A4: a handler in a query and one that just holds end with the grace, not after twice the shutdown_timeout."""
    app = App(dsn, drain_grace=0.3)
    async with serve(app.web, handler_cancellation=cancellation, shutdown_timeout=STUCK) as served:
        running = [asyncio.create_task(ask(served.port, path)) for path in ("/query", "/hold")]
        await until(lambda: len(app.started) == 2)
        begun = time.monotonic()
        async with ending(served) as end:
            pass
        assert time.monotonic() - begun < SOON < STUCK
        assert [(await each).status for each in running] <= [503, 503]
        assert {name: type(error) for name, error in app.ended.items()} == {
            "query": asyncio.CancelledError,
            "hold": asyncio.CancelledError,
        }
        report = end.report
        assert report[1:] == (0, 2, 0, "")
        assert 0.3 <= report.duration < SOON


async def test_handlers_whose_client_has_left_are_cancelled_too(dsn: str, serve: Serve) -> None:
    """A5: aiohttp has forgotten them; they hold our connections, and end before the pool does."""
    app = App(dsn, drain_grace=0.2)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        for path in ("/query", "/hold"):
            _, writer = await served.raw(head(path))
            await until(lambda path=path: path.strip("/") in app.started)
            reset(writer)
        await until(lambda: all(db.client.transport is None for _, db in holders(app.scope._run.pool.gate)))  # type: ignore[union-attr]
        async with ending(served) as end:
            pass
        assert {name: type(error) for name, error in app.ended.items()} == {
            "query": asyncio.CancelledError,
            "hold": asyncio.CancelledError,
        }
        assert end.report[1:] == (0, 2, 0, "")


async def test_a_handler_that_will_not_end_loses_its_connection(dsn: str, serve: Serve, database: Database) -> None:
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
        async with ending(served) as end:
            await until(lambda: not database.backends())
            app.go.set()
            assert good(await running)
        assert "GET /stubborn" in str(told[0])
        assert end.report[1:] == (0, 1, 1, "GET /stubborn")


async def test_a_leaked_connection_cannot_hang_the_exit(dsn: str, serve: Serve, database: Database) -> None:
    """S2: a connection that nobody gives back is taken when the grace is over, and the log says whose it was."""
    app = App(dsn, drain_grace=0.2)
    leaked = []

    async def leak() -> None:
        leaked.append(await app.scope.acquire())

    async with serve(app.web, shutdown_timeout=STUCK) as served:
        await asyncio.create_task(leak(), name="the one who leaks")
        async with ending(served) as end:
            pass
        assert end.report[1:] == (0, 0, 1, "no request the one who leaks")
        with pytest.raises(poolscope.ConnectionReleased):
            await leaked[0].fetchval("SELECT 42")
        leaked[0].release()
        await until(lambda: not database.backends())


async def test_an_idle_websocket_ends_with_the_application(dsn: str, serve: Serve) -> None:
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
        async with ending(served) as end:
            assert (await ws.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        assert said == [42]
        assert end.report[1:] == (0, 0, 0, "")


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
        waiting = [asyncio.create_task(ask(served.port, "/quick", keep=True)) for _ in range(3)]
        await until(lambda: app.scope.stats().waiting == 3)
        async with ending(served):
            for each in waiting:
                assert refused(await each)


@pytest.mark.parametrize("seconds", [0.2, STUCK])
async def test_resets_in_flight_end_before_the_pool(dsn: str, serve: Serve, database: Database, seconds: float) -> None:
    """A connection that is being reset is waited for, but not for ever."""

    async def on_release(db: poolscope.ScopedConnection) -> None:
        await db.execute(f"SELECT pg_sleep({seconds})")

    app = App(dsn, drain_grace=0.5, on_release=on_release)
    async with serve(app.web, shutdown_timeout=STUCK) as served:
        assert await served.get("/quick") == (200, "42")
        assert app.scope.stats().repairing > 0
        async with ending(served) as end:
            pass
        report = end.report
        assert report[1:] == (0, 0, 0, "")
        assert report.duration >= min(seconds, 0.5) - 0.1
        await until(lambda: not database.backends())


async def test_after_the_grace_others_wait_for_nobody(make_scope: Any) -> None:
    """While those who were cancelled still end, nobody else borrows what is free."""
    async with make_scope(minsize=2, maxsize=2, drain_grace=0.0, drain_timeout=DEADLINE) as scope:
        cancelled, go = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with scope.acquire():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                cancelled.set()
                await go.wait()

        holder = asyncio.ensure_future(hold())
        await until(lambda: scope.stats().in_use)
        scope.begin_drain()
        await cancelled.wait()
        with pytest.raises(poolscope.ShuttingDown):
            await scope.acquire()
        go.set()
        await holder
