"""Who holds what: leases(), and the numbers of stats() that belong to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.request import request_id
from tests.conftest import Serve, until
from tests.kit import clients

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def line_of(marker: str) -> int:
    """The number of the line in this file that ends with ``# <marker>``."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {marker}"))


class Room:
    """Handlers that stay where they are until they are let out."""

    def __init__(self) -> None:
        self.inside = asyncio.Event()
        self.out = asyncio.Event()

    async def stay(self) -> web.Response:
        self.inside.set()
        await self.out.wait()
        return web.Response()


SCOPE = web.AppKey("scope", poolscope.PoolScope)
ROOM = web.AppKey("room", Room)


@contextlib.asynccontextmanager
async def held_by(
    dsn: str, serve: Serve, handler: Any, room: Room, path: str = "/", **options: Any
) -> AsyncIterator[poolscope.Lease]:
    """The one lease there is while ``handler`` is inside."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, acquire=options.pop("acquire", "auto"))
    app[SCOPE] = scope
    app.router.add_get("/", handler)
    app.router.add_get("/users/{id}", handler)
    async with serve(app) as served:
        asked = asyncio.create_task(served.status(path, **options))
        await room.inside.wait()
        (lease,) = scope.leases()
        yield lease
        room.out.set()
        assert await asked == 200
        assert scope.leases() == ()


async def test_a_lease_tells_its_request(dsn: str, serve: Serve) -> None:
    """Method, path, route, request id, task and handler of whoever holds a connection."""
    room = Room()
    tasks: list[str] = []

    async def handler(request: web.Request) -> web.Response:  # eager
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task.get_name())
        return await room.stay()

    async with held_by(dsn, serve, handler, room, "/users/7", headers={"X-Request-ID": "abc-123"}) as lease:
        assert (lease.method, lease.path, lease.route) == ("GET", "/users/7", "/users/{id}")
        assert (lease.request_id, lease.task) == ("abc-123", tasks[0])
        assert lease.where == f"{__file__}:{line_of('eager')} in {handler.__qualname__}"
        assert lease.held >= 0
        assert "/users/7" in repr(lease)
        with pytest.raises(dataclasses.FrozenInstanceError):
            lease.path = "/elsewhere"  # type: ignore[misc]


async def test_a_lazy_lease_tells_its_line(dsn: str, serve: Serve) -> None:
    """Borrowed at first use, a lease tells the file, line and function of that use."""
    room = Room()

    async def deeper(db: poolscope.ScopedConnection) -> Any:
        return await db.fetchval("SELECT 1")  # first use

    async def handler(request: web.Request) -> web.Response:
        await deeper(request["db"])
        return await room.stay()

    async with held_by(dsn, serve, handler, room, acquire="lazy") as lease:
        assert lease.where == f"{__file__}:{line_of('first use')} in {deeper.__qualname__}"


async def test_an_acquire_block_tells_its_line(dsn: str, serve: Serve) -> None:
    """Borrowed by 'async with db.acquire()', a lease tells that line."""
    room = Room()

    async def handler(request: web.Request) -> web.Response:
        async with request["db"].acquire():  # acquire block
            return await room.stay()

    async with held_by(dsn, serve, handler, room, acquire="lazy") as lease:
        assert lease.where == f"{__file__}:{line_of('acquire block')} in {handler.__qualname__}"


@pytest.mark.parametrize("form", ["block", "await", "in a task"])
async def test_scope_acquire_inside_a_handler_knows_the_request(dsn: str, serve: Serve, form: str) -> None:
    """scope.acquire() in a handler, or in a task of it, is shown with the handler's request."""
    room = Room()

    async def borrow(scope: poolscope.PoolScope) -> web.Response:
        if form == "await":
            db = await scope.acquire()  # in handler: await
            response = await room.stay()
            db.release()
            return response
        async with scope.acquire():  # in handler: block
            return await room.stay()

    async def handler(request: web.Request) -> web.Response:
        scope = request.app[SCOPE]
        if form == "in a task":
            return await asyncio.create_task(borrow(scope), name="the task")
        return await borrow(scope)

    async with held_by(dsn, serve, handler, room, "/users/7", headers={"X-Request-ID": "abc"}, acquire="lazy") as lease:
        assert (lease.method, lease.path, lease.route, lease.request_id) == ("GET", "/users/7", "/users/{id}", "abc")
        expected = "in handler: await" if form == "await" else "in handler: block"
        assert lease.where == f"{__file__}:{line_of(expected)} in {borrow.__qualname__}"
        assert (lease.task == "the task") is (form == "in a task")


async def test_concurrent_requests_do_not_mix(dsn: str, serve: Serve) -> None:
    """Each of ten requests at once sees its own connection, and scope.acquire() its own request."""
    seen: list[bool] = []
    everybody = asyncio.Barrier(10)

    async def handler(request: web.Request) -> web.Response:
        async with scope.acquire() as db, asyncio.timeout(5):
            await everybody.wait()
            assert db.client is request
            assert await request["db"].fetchval("SELECT %s", (request.path,)) == request.path
            seen.append(request["db"] is not db)
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=20)
    app.router.add_get("/{name}", handler)
    async with serve(app) as served:
        assert await asyncio.gather(*[served.status(f"/{n}") for n in range(10)]) == [200] * 10
        assert seen == [True] * 10


async def test_a_lease_outside_of_requests(make_scope: Any) -> None:
    """Without a request a lease still tells the task and the line."""
    async with make_scope() as scope:

        async def job() -> None:
            async with scope.acquire():  # in a job
                inside.set()
                await out.wait()

        inside, out = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(job(), name="nightly job")
        await inside.wait()
        (lease,) = scope.leases()
        assert (lease.method, lease.path, lease.route, lease.request_id) == (None, None, None, None)
        assert lease.task == "nightly job"
        assert lease.where == f"{__file__}:{line_of('in a job')} in {job.__qualname__}"
        out.set()
        await task


async def test_leases_are_sorted_by_age(make_scope: Any) -> None:
    """The longest held comes first."""
    async with make_scope(maxsize=3) as scope, scope.acquire(), scope.acquire(), scope.acquire():
        held = [lease.held for lease in scope.leases()]
        assert held == sorted(held, reverse=True)
        assert len(held) == 3


class Books(web.View):
    async def get(self) -> web.StreamResponse:
        return await self.request.app[ROOM].stay()


async def partly(room: Room, request: web.Request) -> web.Response:  # of a partial
    return await room.stay()


@pytest.mark.parametrize("kind", ["view", "partial"])
async def test_other_handlers_are_told_by_name(dsn: str, serve: Serve, kind: str) -> None:
    """An eager lease of a View names its class, one of a partial the function inside."""
    room = Room()
    app = web.Application()
    app[ROOM] = room
    scope = poolscope.setup(app, dsn)
    app.router.add_route("GET", "/", Books if kind == "view" else functools.partial(partly, room))
    async with serve(app) as served:
        asked = asyncio.create_task(served.status())
        await room.inside.wait()
        (lease,) = scope.leases()
        assert lease.where == ("Books" if kind == "view" else f"{__file__}:{line_of('of a partial')} in partly")
        room.out.set()
        assert await asked == 200


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"abc-123", "abc-123"),
        (b"x" * 128, "x" * 128),
        (b"x" * 129, None),
        (b"", None),
        (b"two words", None),
        (b"tab\there", None),
        (b"\x1b[31mred", None),
        (b"caf\xc3\xa9", None),
        (b"\xff\xfe", None),
    ],
)
async def test_request_ids_are_checked(dsn: str, serve: Serve, sent: bytes, shown: str | None) -> None:
    """F5: an X-Request-ID that is too long, or not visible ASCII, is shown nowhere; one is made in its place."""
    found: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        found.extend(lease.request_id for lease in scope.leases())
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        head = clients.head("/", Connection="close").removesuffix(b"\r\n")
        reader, writer = await served.raw(head + b"X-Request-ID: " + sent + b"\r\n\r\n")
        status = (await reader.read())[9:12]
        writer.close()
        refused_by_aiohttp = status == b"400"  # control characters, before any handler
        if refused_by_aiohttp:
            assert found == []
        elif shown is None:
            assert re.fullmatch("[0-9a-f]{16}", str(found[0]))
        else:
            assert found == [shown]
        assert status == (b"400" if sent.startswith(b"\x1b") else b"200")


class Smuggled(dict[Any, Any]):
    """A request with headers that no parser would let through."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers


def test_no_request_id_breaks_a_line() -> None:
    """What no HTTP parser should let through is refused all the same."""

    for smuggled in ("abc\nINFO all is well", "abc\n"):
        assert smuggled.partition("\n")[0] not in request_id(Smuggled(headers={"X-Request-ID": smuggled}))


async def test_the_balance_of_the_numbers(dsn: str, serve: Serve, cancellation: bool) -> None:
    """O3: borrows is the sum of its outcomes, lent equals the leases that ended; stats are a frozen snapshot."""

    async def handler(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(0.005)")
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2, max_waiting=5, acquire_timeout=0.05)
    app.router.add_get("/", handler)
    async with serve(app, handler_cancellation=cancellation) as served:
        before = scope.stats()
        statuses = await asyncio.gather(*[served.status() for _ in range(40)])
        for _ in range(5):
            with clients.client(served.port, clients.head()):
                pass
        await until(lambda: not (scope.stats().in_use or scope.stats().waiting), "quiet")
        stats = scope.stats()
        ended = (
            stats.lent, stats.timed_out, stats.refused, stats.shed, stats.client_gone, stats.cancelled, stats.failed
        )  # fmt: skip
        assert stats.borrows == sum(ended)
        assert stats.lent == stats.lease.count == stats.wait.count
        assert stats.lent - before.lent >= statuses.count(200)
        assert stats.refused + stats.timed_out + stats.shed >= statuses.count(503) > 0
        assert (stats.idle, stats.size, stats.maxsize, stats.minsize) == (2, 2, 2, 1)
        assert before.lent < stats.lent
        with pytest.raises(dataclasses.FrozenInstanceError):
            stats.lent = 0  # type: ignore[misc]


async def test_a_handler_whose_repr_fails(dsn: str, serve: Serve) -> None:
    """What describes a lease runs no code of the user's: a report that fails would lose the connection."""

    class Odd:
        async def __call__(self, request: web.Request) -> web.Response:
            return web.json_response([lease.where for lease in scope.leases()])

        def __repr__(self) -> str:
            raise AttributeError("not yet")

    app = web.Application()
    app.router.add_get("/", Odd().__call__)
    scope = poolscope.setup(app, dsn)
    async with serve(app) as served:
        status, text = await served.get("/")
        assert status == 200
        assert "Odd" in text
        assert scope.stats().in_use == 0


async def test_another_thread_may_ask(make_scope: Any) -> None:
    """An exporter reads the numbers and the leases from a thread of its own, whatever the pool does meanwhile."""
    async with make_scope(maxsize=4, check_after_idle=0.0) as scope:
        over = threading.Event()

        def ask() -> int:
            asked = 0
            while not over.is_set():
                assert scope.stats().maxsize == 4
                assert len(scope.leases()) <= 4
                asked += 1
            return asked

        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(20):
                await asyncio.gather(*(scope.fetchval("SELECT 1") for _ in range(40)))
                scope.expire()
        finally:
            sys.setswitchinterval(before)
            over.set()
        assert await asking > 20
