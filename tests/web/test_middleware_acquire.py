"""When a request borrows: eager, lazy, auto (A12), and the marks that say so on handlers of every kind."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.web.marks import Mark, mark_of
from tests.conftest import Serve, until
from tests.kit import clients

if TYPE_CHECKING:
    from collections.abc import Callable


async def tells(request: web.Request) -> web.Response:
    """What the handler finds before it has used its connection; then it reads its body and uses it."""
    db = request.get("db")
    found = "none" if db is None else "eager" if db.held else "lazy"
    await request.read()
    if db is not None:
        await db.execute("SELECT 1")
    return web.Response(text=found)


def plain(mark: Callable[[Any], Any]) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return await tells(request)

    return mark(handler)


def decorated(mark: Callable[[Any], Any]) -> Any:
    @functools.wraps(inner := plain(mark))
    async def outer(request: web.Request) -> web.Response:
        answer: web.Response = await inner(request)
        return answer

    return outer


def partial(mark: Callable[[Any], Any]) -> Any:
    async def handler(_: str, request: web.Request) -> web.Response:
        return await tells(request)

    return functools.partial(mark(handler), "bound")


def marked_partial(mark: Callable[[Any], Any]) -> Any:
    async def handler(_: str, request: web.Request) -> web.Response:
        return await tells(request)

    return mark(functools.partial(handler, "bound"))


def bound_method(mark: Callable[[Any], Any]) -> Any:
    class Resource:
        @mark
        async def get(self, request: web.Request) -> web.Response:
            return await tells(request)

    return Resource().get


def marked_bound_method(mark: Callable[[Any], Any]) -> Any:
    class Resource:
        async def get(self, request: web.Request) -> web.Response:
            return await tells(request)

    one, other = Resource(), Resource()
    marked = mark(one.get)
    assert mark_of(other.get, "GET") == Mark()
    return marked


def view(mark: Callable[[Any], Any]) -> Any:
    class View(web.View):
        async def get(self) -> web.Response:
            return await tells(self.request)

    return mark(View)


def view_method(mark: Callable[[Any], Any]) -> Any:
    class View(web.View):
        @mark
        async def get(self) -> web.Response:
            return await tells(self.request)

    return View


def method_before_class(mark: Callable[[Any], Any]) -> Any:
    @poolscope.no_connection
    class View(web.View):
        @mark
        async def get(self) -> web.Response:
            return await tells(self.request)

    return View


def inherited(mark: Callable[[Any], Any]) -> Any:
    class View(view_method(mark)):  # type: ignore[misc]
        pass

    return View


@pytest.mark.parametrize(
    ("mark", "found"),
    [(poolscope.eager, "eager"), (poolscope.lazy, "lazy"), (poolscope.no_connection, "none")],
)
@pytest.mark.parametrize(
    "kind",
    [
        plain,
        decorated,
        partial,
        marked_partial,
        bound_method,
        marked_bound_method,
        view,
        view_method,
        method_before_class,
        inherited,
    ],
)
async def test_marks_work_on_handlers_of_every_kind(dsn: str, serve: Serve, mark: Any, found: str, kind: Any) -> None:
    """A mark goes before the setting, wherever it is written; a method's goes before its class's."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, acquire="lazy" if found == "eager" else "eager")
    app.router.add_route("GET", "/", kind(mark))
    async with serve(app) as served:
        assert await served.get() == (200, found)
        assert scope.stats().in_use == 0


async def test_a_mark_is_for_its_method_only(dsn: str, serve: Serve) -> None:
    """In one View each method has its own mark."""

    class View(web.View):
        @poolscope.no_connection
        async def get(self) -> web.Response:
            return await tells(self.request)

        async def post(self) -> web.Response:
            return await tells(self.request)

    app = web.Application()
    poolscope.setup(app, dsn, acquire="eager")
    app.router.add_view("/", View)
    async with serve(app) as served:
        assert await served.get() == (200, "none")
        async with served.client.post(served.url) as response:
            assert await response.text() == "eager"
        assert await served.get() == (200, "none")


@pytest.mark.parametrize("acquire", ["eager", "lazy"])
async def test_the_setting_decides_for_unmarked_handlers(dsn: str, serve: Serve, acquire: str) -> None:
    """acquire="eager" borrows before the handler, "lazy" at the first use."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, acquire=acquire)
    app.router.add_get("/", tells)
    async with serve(app) as served:
        assert await served.get() == (200, acquire)
        assert scope.stats().in_use == 0


async def test_a_lazy_handler_that_uses_nothing_borrows_nothing(dsn: str, serve: Serve) -> None:
    """Lazy and unused costs no connection, also where none is free."""

    async def idle(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, acquire="lazy", maxsize=1, acquire_timeout=0.1)
    app.router.add_get("/", idle)
    async with serve(app) as served, scope.acquire():
        assert await served.status() == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_auto_is_eager_without_a_body(dsn: str, serve: Serve, method: str) -> None:
    """A12: a request without a body borrows before its handler."""
    found: list[bool] = []

    async def handler(request: web.Request) -> web.Response:
        found.append(request["db"].held)
        return web.Response()

    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_route("*", "/", handler)
    async with serve(app) as served, served.client.request(method, served.url) as response:
        assert (response.status, found) == (200, [True])


async def test_auto_is_eager_when_the_body_came_along(dsn: str, serve: Serve) -> None:
    """A12: a small POST whose body arrived with its head borrows before its handler."""
    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_post("/", tells)
    async with serve(app) as served:
        sent = clients.head("/", "POST", Content_Length=5, Connection="close") + b"hello"
        reader, writer = await served.raw(sent)
        assert (await reader.read()).endswith(b"eager")
        writer.close()


@pytest.mark.parametrize(
    "framing", [{"Content_Length": 10}, {"Transfer_Encoding": "chunked"}], ids=["length", "chunked"]
)
async def test_auto_holds_nothing_while_a_body_dribbles_in(dsn: str, serve: Serve, framing: dict[str, Any]) -> None:
    """A12: twenty slow uploads pin none of two connections; each borrows when its body has come and it asks."""
    inside = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal inside
        inside += 1
        return await tells(request)

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2, acquire_timeout=0.5)
    app.router.add_post("/", handler)
    async with serve(app) as served:
        head = clients.head("/", "POST", **framing, Connection="close")
        uploads = [await served.raw(head) for _ in range(20)]
        await until(lambda: inside == 20, "twenty uploads under way")
        assert (scope.stats().in_use, scope.stats().waiting) == (0, 0)
        assert await scope.fetchval("SELECT 1") == 1
        rest = b"0123456789" if "Content_Length" in framing else b"a\r\n0123456789\r\n0\r\n\r\n"
        for reader, writer in uploads:
            writer.write(rest)
            assert (await reader.read()).endswith(b"lazy")
            writer.close()
        assert scope.stats().in_use == 0


async def test_eager_borrows_even_before_the_body(dsn: str, serve: Serve) -> None:
    """acquire="eager" means eager: a body still to come does not change it."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, acquire="eager", maxsize=1)
    app.router.add_post("/", tells)
    async with serve(app) as served:
        reader, writer = await served.raw(clients.head("/", "POST", Content_Length=1, Connection="close"))
        await until(lambda: scope.stats().in_use == 1, "the eager borrow")
        writer.write(b"x")
        assert (await reader.read()).endswith(b"eager")
        writer.close()


async def test_auto_borrows_nothing_for_an_upgrade(dsn: str, serve: Serve) -> None:
    """A12: a request to upgrade borrows at first use, like a websocket's that lives for hours."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", tells)
    async with serve(app) as served:
        reader, writer = await served.raw(
            clients.head("/", Connection="upgrade", Upgrade="something/1", Content_Length=0)
        )
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n\r\nlazy")
        writer.close()
        assert scope.stats().in_use == 0


async def test_two_tasks_of_one_request_borrow_once(dsn: str, serve: Serve) -> None:
    """The borrow itself counts as busy: two tasks that use a lazy connection at once get one, and an error."""

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        done = await asyncio.gather(db.fetchval("SELECT 1"), db.fetchval("SELECT 2"), return_exceptions=True)
        return web.json_response([type(each).__name__ for each in done])

    app = web.Application()
    scope = poolscope.setup(app, dsn, acquire="lazy", maxsize=1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        async with scope.acquire():
            asked = asyncio.create_task(served.get())
            await until(lambda: scope.stats().waiting, "a waiting handler")
            assert scope.stats().waiting == 1
        assert await asked == (200, '["int", "ConnectionBusy"]')
        assert scope.stats().in_use == 0
