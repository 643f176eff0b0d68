"""What the log says of refusals, groups of errors, and clients that left before their answer."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import psycopg2
import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import logs
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from aiohttp_poolscope.logs import LogLimiter
from aiohttp_poolscope.web import responses
from tests.conftest import Serve, until
from tests.kit import clients


@pytest.fixture(autouse=True)
def nothing_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_limiter", LogLimiter())


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "aiohttp_poolscope"]


async def group_of(request: web.Request, *errors: BaseException) -> web.Response:
    raise BaseExceptionGroup("from a TaskGroup", errors)


async def raised_in_tasks(request: web.Request, *errors: Exception) -> web.Response:
    async def fail(error: Exception) -> None:
        raise error

    async with asyncio.TaskGroup() as tasks:
        for error in errors:
            tasks.create_task(fail(error))
    return web.Response()


EXHAUSTED = poolscope.PoolExhausted("none left")
TOO_LATE = poolscope.QueryTimeout("too late")
UNKNOWN = poolscope.OutcomeUnknown("who knows")


@pytest.mark.parametrize(
    ("errors", "status", "content_type"),
    [
        ([EXHAUSTED], 503, "application/problem+json"),
        ([TOO_LATE, EXHAUSTED], 504, "application/problem+json"),
        ([BaseExceptionGroup("inner", [EXHAUSTED]), TOO_LATE], 504, "application/problem+json"),
        ([EXHAUSTED, TOO_LATE, BaseExceptionGroup("inner", [EXHAUSTED, UNKNOWN])], 500, "application/problem+json"),
        ([UNKNOWN, TOO_LATE], 500, "application/problem+json"),
        ([EXHAUSTED, ValueError("a mistake")], 500, "text/plain"),
        ([psycopg2.Error("the driver's"), EXHAUSTED], 500, "text/plain"),
        ([BaseExceptionGroup("inner", [EXHAUSTED, ValueError("a mistake")]), TOO_LATE], 500, "text/plain"),
    ],
)
@pytest.mark.parametrize("how", [group_of, raised_in_tasks])
async def test_groups_of_errors(
    dsn: str, serve: Serve, *, how: Any, errors: list[Any], status: int, content_type: str
) -> None:
    """A group that holds only our errors is answered like the gravest of them; any other is a plain 500."""
    app = web.Application()
    poolscope.setup(app, dsn)

    async def handler(request: web.Request) -> web.Response:
        response: web.Response = await how(request, *errors)
        return response

    app.router.add_get("/", handler)
    async with serve(app) as served, served.client.get(served.url) as response:
        assert (response.status, response.content_type) == (status, content_type)


async def test_refusals_are_logged_once_in_a_while(
    dsn: str, serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of refusals is one line, and the next line says how many there were; no traceback."""

    async def fine(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, max_waiting=0)
    app.router.add_get("/", fine)
    monkeypatch.setattr(logs, "QUIET", 3600)
    async with serve(app) as served, scope.acquire():
        caplog.clear()
        for _ in range(20):
            assert await served.status() == 503
        assert len(ours(caplog)) == 1
        monkeypatch.setattr(logs, "QUIET", 0)
        assert await served.status() == 503
    first, second = ours(caplog)[:2]
    assert (first.levelno, first.exc_info, second.exc_info) == (logging.WARNING, None, None)
    assert first.getMessage() == (
        "pool 'db': the queue is full (1/1 in use, 0 waiting, waited 0.0 s). max_waiting is 0 "
        f"[GET / (request {first.__dict__['request_id']})]"
    )
    assert second.getMessage().endswith("(and 19 more since the last such line)")


async def test_kinds_of_refusals_do_not_hide_each_other(
    dsn: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of each kind of refusal is logged at once."""

    async def handler(request: web.Request) -> web.Response:
        raise EXHAUSTED if "exhausted" in request.query else TOO_LATE

    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        caplog.clear()
        for query in ("/", "/", "/?exhausted=1", "/"):
            async with served.client.get(str(served.url) + query):
                pass
        said = [record.getMessage().partition(" [GET / (request ")[0] for record in ours(caplog)]
        assert said == ["pool 'db': too late", "pool 'db': none left"]


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_left_is_499_in_the_access_log(
    dsn: str, serve: Serve, caplog: pytest.LogCaptureFixture, how: clients.Leaving
) -> None:
    """ClientGone: the handler does not run, the access log says 499, and nothing is called an error."""
    caplog.set_level(logging.INFO)
    ran: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        ran.append(request.path)
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/{name}", handler)
    async with serve(app) as served:
        async with scope.acquire():
            with clients.client(served.port, clients.head("/gone")) as connected:
                await until(lambda: scope.stats().waiting == 1, "its place in the queue")
                clients.leave(connected, how)
            await until(lambda: scope.stats().client_gone == 1, "its end in the queue")
        await until(lambda: '"GET /gone HTTP/1.1" 499' in caplog.text, "the line in the access log")
        assert await served.status("/next") == 200
    assert ran == ["/next"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_the_password_is_never_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while it serves, not while the database is away, not in an answer, and not when it fails to come back."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logs, "QUIET", 0)

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(await request["db"].fetchval(request.query["sql"]))

    with EmbeddedPostgres(tcp=True) as server:
        app = web.Application()
        scope = poolscope.setup(app, server.dsn, breaker_failures=2, breaker_reset=0.1)
        app.router.add_get("/", handler)
        async with serve(app) as served:
            bodies = [await served.get("/", params={"sql": sql}) for sql in ("SELECT 1", "SELECT 1/0")]
            await asyncio.to_thread(server.stop)
            await until(lambda: scope.stats().breaker != "closed", "the open breaker", 10)
            bodies += [await served.get("/", params={"sql": "SELECT 1"}) for _ in range(2)]
            assert [status for status, _ in bodies] == [200, 500, 503, 503]
            shown = [*bodies, repr(scope), repr(scope.config), scope.leases(), scope.stats()]
    assert "Connection refused" in caplog.text
    assert server.password not in caplog.text + json.dumps([str(each) for each in shown])
