"""After the handler (A11), early release, and websockets: a connection is not held where it is not needed (R6)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientPayloadError, WSMsgType, web

import aiohttp_poolscope as poolscope
from tests.conftest import Database, Serve, until
from tests.kit import clients

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LARGE = 64 * 1024 * 1024
"""Bytes: more than any socket buffer takes, so that a client that does not read keeps its answer waiting."""

EXPLANATION = r"used after the end of its handler.*borrow there with 'async with scope\.acquire\(\) as db'"


async def test_an_async_generator_body_is_too_late(dsn: str, serve: Serve) -> None:
    """A11: a body is written after the handler; it cannot use the connection, and the error says what to do."""
    caught: list[BaseException] = []

    async def body(request: web.Request) -> AsyncIterator[bytes]:
        yield b"begun "
        try:
            await request["db"].execute("SELECT 1")
        except poolscope.ConnectionReleased as error:
            caught.append(error)
        async with scope.acquire() as db:
            yield (await db.fetchval("SELECT 'done as told'")).encode()

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body(request))

    app = web.Application()
    scope = poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.get() == (200, "begun done as told")
        with pytest.raises(poolscope.ConnectionReleased, match=EXPLANATION):
            raise caught[0]
        assert scope.stats().in_use == 0


async def test_a_background_task_is_too_late(dsn: str, serve: Serve) -> None:
    """A11: a task that outlives its request cannot touch the next request's connection, by whatever it kept of it."""
    go = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def late(use: Any) -> Any:
        await go.wait()
        return await use()

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        cursor = await db.cursor()
        await cursor.execute("SELECT 1")
        uses = (
            lambda: request["db"].fetchval("SELECT 1"),
            lambda: db.execute("DROP TABLE other_peoples"),
            lambda: cursor.execute("SELECT 1"),
            cursor.fetchone,
            db.cursor().__aenter__,
            db.transaction().__aenter__,
            db.stream("SELECT 1").__anext__,
            db.acquire().__aenter__,
        )
        tasks.extend(asyncio.create_task(late(use)) for use in uses)
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 200
        async with scope.acquire() as next_user:
            await next_user.execute("BEGIN")
            go.set()
            for task in tasks:
                with pytest.raises(poolscope.ConnectionReleased, match="GET /"):
                    await task
            assert next_user.in_transaction
            await next_user.execute("COMMIT")
        assert scope.stats().in_use == 0


async def test_a_statement_left_running_in_a_task_ends_with_its_request(
    dsn: str, serve: Serve, database: Database
) -> None:
    """A11: what a left-behind task has sent does not hold the connection; the task is told."""
    tasks: list[asyncio.Task[Any]] = []

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        tasks.append(asyncio.create_task(db.execute("SELECT pg_sleep(60)")))
        await until(lambda: any("pg_sleep" in query for (query,) in database.backends("query")))
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, abandon_interval=0.1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 200
        with pytest.raises(poolscope.ConnectionReleased, match="the request ended while a statement"):
            await tasks[0]
        assert await scope.fetchval("SELECT 1") == 1
        await until(lambda: len(database.backends()) == 1, "the statement's end on the server")


async def test_a_stream_response_works_inside_the_handler(dsn: str, serve: Serve) -> None:
    """A11: a StreamResponse is written inside the handler, where rows can be read as they are sent."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for (number,) in request["db"].stream("SELECT generate_series(1, 5)", size=2):
            await response.write(b"%d " % number)
        return response

    app = web.Application()
    scope = poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.get() == (200, "1 2 3 4 5 ")
        assert scope.stats().in_use == 0


@pytest.mark.parametrize("fails", ["with a timeout", "by the server, on raw"])
async def test_an_error_in_the_middle_of_an_answer_cuts_it_off(dsn: str, serve: Serve, fails: str) -> None:
    """Once an answer is on its way, no second one is written into it: the client sees that it is not complete."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 10)
        if fails == "with a timeout":
            await request["db"].execute("SELECT pg_sleep(60)", timeout=0.05)
        # aiopg also complains to the loop, each time.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with request["db"].raw.cursor() as cursor:
            await cursor.execute("SELECT pg_sleep(60)")
        return response

    app = web.Application()
    scope = poolscope.setup(app, dsn, statement_timeout=0.1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        async with served.client.get(served.url) as response:
            assert response.status == 200
            assert await response.content.read(10) == b"x" * 10
            async with asyncio.timeout(5):
                with pytest.raises(ClientPayloadError):
                    await response.read()
        assert scope.stats().in_use == 0


@pytest.mark.parametrize("kind", ["body", "file"])
async def test_a_slow_reader_of_an_answer_pins_nothing(dsn: str, serve: Serve, tmp_path: Path, kind: str) -> None:
    """A11: bodies and files are sent after the connection went back."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(LARGE)

    async def handler(request: web.Request) -> web.StreamResponse:
        await request["db"].execute("SELECT 1")
        return web.FileResponse(path) if kind == "file" else web.Response(body=b"x" * LARGE)

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app, shutdown_timeout=0.1) as served:
        leases = scope.stats().lease.count
        with clients.client(served.port, clients.head()):
            await until(lambda: scope.stats().lease.count > leases, "the end of the lease")
            assert scope.stats().in_use == 0
            assert await scope.fetchval("SELECT 1") == 1


async def test_early_release_frees_the_connection_for_others(dsn: str, serve: Serve) -> None:
    """R6: release() before a long answer lets others work; a later use borrows again."""
    released, go_on = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        db = request["db"]
        rows = await db.fetch("SELECT generate_series(1, 3)")
        db.release()
        db.release()
        response = web.StreamResponse()
        await response.prepare(request)
        released.set()
        await go_on.wait()
        for (number,) in rows:
            await response.write(b"%d " % number)
        await response.write(b"and %d" % await db.fetchval("SELECT 4"))
        return response

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        asked = asyncio.create_task(served.get())
        await released.wait()
        assert scope.stats().in_use == 0
        assert await scope.fetchval("SELECT 1") == 1
        go_on.set()
        assert await asked == (200, "1 2 3 and 4")
        assert scope.stats().in_use == 0


async def test_what_was_made_before_a_release_is_over(dsn: str, serve: Serve) -> None:
    """A cursor from before release() does not reach the connection that is borrowed afterwards."""

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        cursor = await db.cursor()
        db.release()
        assert await db.fetchval("SELECT 1") == 1
        assert cursor.closed
        with pytest.raises(poolscope.ConnectionReleased):
            await cursor.execute("SELECT 1")
        return web.Response()

    app = web.Application()
    poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 200


async def test_acquire_blocks_hold_no_longer_than_they_last(dsn: str, serve: Serve) -> None:
    """In a lazy handler 'async with db.acquire()' gives the connection back at its end; nested, at the outer one's."""
    held: list[int] = []

    @poolscope.lazy
    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        held.append(scope.stats().in_use)
        async with db.acquire() as same:
            assert same is db
            async with db.acquire():
                held.append(scope.stats().in_use)
            held.append(scope.stats().in_use)
            assert await db.fetchval("SELECT 1") == 1
        held.append(scope.stats().in_use)
        assert await db.acquire() is db
        held.append(scope.stats().in_use)
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 200
        assert held == [0, 1, 1, 0, 1]
        assert scope.stats().in_use == 0


async def test_idle_websockets_pin_nothing(dsn: str, serve: Serve, cancellation: bool) -> None:
    """R6: twenty open websockets hold none of two connections, and borrow for each message."""

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                async with request["db"].acquire() as db:
                    await socket.send_str(await db.fetchval("SELECT %s || '!'", (message.data,)))
        return socket

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2)
    app.router.add_get("/", handler)
    async with serve(app, handler_cancellation=cancellation) as served:
        sockets = [await served.client.ws_connect(served.url) for _ in range(20)]
        assert (scope.stats().in_use, scope.stats().waiting) == (0, 0)
        for number, socket in enumerate(sockets):
            await socket.send_str(str(number))
        assert [await socket.receive_str() for socket in sockets] == [f"{number}!" for number in range(20)]
        assert (scope.stats().in_use, scope.stats().waiting) == (0, 0)
        for socket in sockets:
            await socket.close()
