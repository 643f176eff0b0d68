"""R3: a client that leaves before its turn gets no connection and leaves none behind; its handler does not run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.connection import Transaction
from aiohttp_poolscope.gate import Gate
from aiohttp_poolscope.pool.queue import QueuedBorrow
from tests.conftest import Serve, until
from tests.kit import clients

HOURS = 3600.0
"""Seconds: nothing in these tests may end because it takes too long."""


@dataclass
class Watched:
    """An application with one connection, which remembers what came in and whose handler ran."""

    dsn: str
    settings: dict[str, Any]
    arrived: list[web.Request] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        @web.middleware
        async def door(request: web.Request, handler: Any) -> Any:
            self.arrived.append(request)
            return await handler(request)

        self.app = web.Application(middlewares=[door])
        self.scope = poolscope.setup(self.app, self.dsn, maxsize=1, acquire_timeout=HOURS, **self.settings)
        self.app.router.add_get("/{name}", self.handler)

    async def handler(self, request: web.Request) -> web.Response:
        self.ran.append(request.path)
        return web.Response(text=str(await request["db"].fetchval("SELECT 1")))

    def ended(self) -> int:
        stats = self.scope.stats()
        return stats.client_gone + stats.cancelled


def watched(dsn: str, **settings: Any) -> Watched:
    return Watched(dsn, settings)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_leaves_the_queue(dsn: str, serve: Serve, cancellation: bool, how: clients.Leaving) -> None:
    """While its request waits: the handler never runs, and no connection is touched; it is found without a return."""
    it = watched(dsn)
    async with serve(it.app, handler_cancellation=cancellation) as served:
        async with it.scope.acquire():
            with clients.client(served.port, clients.head("/gone")) as connected:
                await until(lambda: it.scope.stats().waiting == 1, "a place in the queue")
                clients.leave(connected, how)
            await until(lambda: it.scope.stats().waiting == 0, "the end of its place")
            assert it.ended() == 1
            lent = it.scope.stats().lent
        assert it.scope.stats().lent == lent
        assert await served.get("/next") == (200, "1")
        assert it.ran == ["/next"]
        assert it.scope.stats().in_use == 0


async def test_outcomes_by_mode(dsn: str, serve: Serve, cancellation: bool) -> None:
    """aiohttp's default leaves the handler alone: the client is gone; with handler_cancellation: it is cancelled."""
    it = watched(dsn)
    async with serve(it.app, handler_cancellation=cancellation) as served, it.scope.acquire():
        with clients.client(served.port, clients.head("/gone")):
            await until(lambda: it.scope.stats().waiting == 1, "a place in the queue")
        await until(it.ended, "its end")
        assert (it.scope.stats().client_gone, it.scope.stats().cancelled) == ((0, 1) if cancellation else (1, 0))


async def test_the_living_are_served_among_the_dead(dsn: str, serve: Serve, cancellation: bool) -> None:
    """Of forty waiting clients every other one leaves: the rest are served, each once, and none of the others."""
    it = watched(dsn, queue_target=None)
    async with serve(it.app, handler_cancellation=cancellation) as served:
        async with it.scope.acquire():
            staying: list[asyncio.Task[Any]] = []
            leaving = []
            for number in range(20):
                staying.append(asyncio.create_task(served.get(f"/stays-{number}")))
                leaving.append(await served.raw(clients.head("/leaves")))
            await until(lambda: it.scope.stats().waiting == 40, "forty places")
            for _, writer in leaving:
                writer.close()
            dead = [request for request in it.arrived if request.path == "/leaves"]
            await until(lambda: all(request.transport is None for request in dead), "the server's notice of it")
        assert await asyncio.gather(*staying) == [(200, "1")] * 20
        await until(lambda: it.ended() == 20, "the end of the others")
        assert sorted(it.ran) == sorted(f"/stays-{number}" for number in range(20))
        assert it.scope.stats().in_use == 0


Check = Literal["hand-over", "sweep", "handler"]


def only(monkeypatch: pytest.MonkeyPatch, wanted: Check) -> None:
    """Leave one of the three checks for clients that have left, and switch the other two off."""
    sweep, gone = Gate.sweep, QueuedBorrow.client_gone
    sweeping = False

    def swept(self: Any, now: float) -> None:
        nonlocal sweeping
        sweeping = True
        try:
            sweep(self, now)
        finally:
            sweeping = False

    def asked(self: Any) -> bool:
        check = "sweep" if sweeping else "hand-over" if self.outcome is None else "handler"
        return check == wanted and gone(self)

    monkeypatch.setattr(Gate, "sweep", swept)
    monkeypatch.setattr(QueuedBorrow, "client_gone", asked)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("check", ["hand-over", "sweep", "handler"])
async def test_each_check_is_enough(
    dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch, check: Check, how: clients.Leaving
) -> None:
    """Each of the three checks alone, the other two switched off, keeps a client that left from its handler."""
    only(monkeypatch, check)
    it = watched(dsn, queue_target=None)
    async with serve(it.app) as served:
        async with it.scope.acquire():
            with clients.client(served.port, clients.head("/gone")) as connected:
                await until(lambda: it.scope.stats().waiting == 1, "a place in the queue")
                clients.leave(connected, how)
            await until(lambda: it.arrived[0].transport is None, "the server's notice of it")
            if check == "sweep":
                await until(lambda: it.scope.stats().client_gone == 1, "the sweep")
        await until(lambda: it.scope.stats().client_gone == 1, "the end of its place")
        assert await served.get("/next") == (200, "1")
        assert it.ran == ["/next"]
        assert it.scope.stats().in_use == 0


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_left_between_the_hand_over_and_the_handler(
    dsn: str, serve: Serve, cancellation: bool, ending: str
) -> None:
    """The connection is handed over, the client leaves in the same instant: it goes to the next, the handler rests."""
    it = watched(dsn)
    async with serve(it.app, handler_cancellation=cancellation) as served:
        holder = await it.scope.acquire()
        with clients.client(served.port, clients.head("/gone")):
            await until(lambda: it.scope.stats().waiting == 1, "a place in the queue")
            holder.release()
            assert (it.scope.stats().in_use, it.scope.stats().waiting) == (1, 0)  # handed over, not yet taken
            transport = it.arrived[0].transport
            assert transport is not None
            getattr(transport, ending)()
            assert transport.is_closing()
            await until(it.ended, "its end")
        assert await served.get("/next") == (200, "1")
        assert it.ran == ["/next"]
        assert it.scope.stats().in_use == 0


async def test_a_closing_transport_is_gone_already_at_hand_over(dsn: str, serve: Serve) -> None:
    """A transport that is closing counts as closed: its waiter is passed over, the next one is served at once."""
    it = watched(dsn, queue_target=None)
    async with serve(it.app) as served:
        holder = await it.scope.acquire()
        with clients.client(served.port, clients.head("/gone")):
            await until(lambda: it.scope.stats().waiting == 1, "a place in the queue")
            asked = asyncio.create_task(served.get("/next"))
            await until(lambda: it.scope.stats().waiting == 2, "another behind it")
            transport = it.arrived[0].transport
            assert transport is not None
            transport.close()
            holder.release()
            assert (it.scope.stats().in_use, it.scope.stats().client_gone) == (1, 1)
            assert await asked == (200, "1")
        assert it.ran == ["/next"]


async def test_left_while_a_hook_made_the_connection_ready(dsn: str, serve: Serve) -> None:
    """on_acquire gives the client time to leave: the handler does not run."""
    begun = asyncio.Event()

    async def ready(db: Any) -> None:
        if it.arrived[-1].path == "/gone":
            begun.set()
            await until(lambda: it.arrived[-1].transport is None, "the server's notice of it")

    it = watched(dsn, on_acquire=ready)
    async with serve(it.app) as served:
        with clients.client(served.port, clients.head("/gone")):
            await begun.wait()
        await until(lambda: not it.scope.stats().in_use, "the connection's return")
        assert await served.get("/next") == (200, "1")
        assert it.ran == ["/next"]


async def test_left_while_the_transaction_began(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """BEGIN of a transactional request gives the client time to leave: the handler does not run."""
    begin = Transaction.__aenter__

    async def slow(self: Transaction) -> Transaction:
        entered = await begin(self)
        if it.arrived[-1].path == "/in/gone":
            transport = it.arrived[-1].transport
            assert transport is not None
            transport.close()
        return entered

    monkeypatch.setattr(Transaction, "__aenter__", slow)
    it = watched(dsn)
    it.app.router.add_get("/in/{name}", poolscope.transactional(it.handler))
    async with serve(it.app) as served:
        with clients.client(served.port, clients.head("/in/gone")):
            await until(lambda: it.arrived and not it.scope.stats().in_use, "the connection's return")
        assert await served.get("/in/next") == (200, "1")
        assert it.ran == ["/in/next"]


async def test_a_running_handler_still_borrows_when_its_client_has_left(dsn: str, serve: Serve) -> None:
    """Half-done work is not aborted by the transport: a running handler waits for a connection and gets it."""
    inside, left, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @poolscope.lazy
    async def handler(request: web.Request) -> web.Response:
        inside.set()
        await until(lambda: request.transport is None, "the server's notice of it")
        left.set()
        assert await request["db"].fetchval("SELECT 1") == 1
        done.set()
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        async with scope.acquire():
            with clients.client(served.port, clients.head()):
                await inside.wait()
            await left.wait()
            await until(lambda: scope.stats().waiting == 1, "its place in the queue")
            for _ in range(3):
                scope._run.pool.gate.sweep(asyncio.get_running_loop().time())  # type: ignore[union-attr]
            assert scope.stats().waiting == 1
        async with asyncio.timeout(5):
            await done.wait()
        assert scope.stats().client_gone == 0


async def test_a_second_connection_inside_a_handler_ignores_the_transport_too(dsn: str, serve: Serve) -> None:
    """scope.acquire() in a running handler knows the request, and is still not aborted with it."""
    inside, done = asyncio.Event(), asyncio.Event()

    @poolscope.lazy
    async def handler(request: web.Request) -> web.Response:
        inside.set()
        await until(lambda: request.transport is None, "the server's notice of it")
        async with scope.acquire() as db:
            assert await db.fetchval("SELECT 1") == 1
        done.set()
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        async with scope.acquire():
            with clients.client(served.port, clients.head()):
                await inside.wait()
            await until(lambda: scope.stats().waiting == 1, "its place in the queue")
        async with asyncio.timeout(5):
            await done.wait()
        assert (scope.stats().client_gone, scope.stats().in_use) == (0, 0)


async def test_cancel_abandoned(dsn: str, serve: Serve) -> None:
    """cancel_abandoned: the handler of a GET whose client leaves is cancelled, that of a POST is not."""
    ended: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        try:
            await request["db"].execute("SELECT pg_sleep(1.5)")
            ended.append(f"{request.method} done")
        except asyncio.CancelledError:
            ended.append(f"{request.method} cancelled")
            raise
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2, minsize=2, cancel_abandoned=True)
    app.router.add_route("*", "/", handler)
    async with serve(app) as served:
        with (
            clients.client(served.port, clients.head()),
            clients.client(served.port, clients.head("/", "POST", Content_Length=0)),
        ):
            await until(lambda: scope.stats().in_use == 2, "both")
        await until(lambda: len(ended) == 2, "both ends")
        assert ended == ["GET cancelled", "POST done"]
