"""Errors as answers: each error of the design, provoked for real, and what a client is told over its socket."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import logs
from tests.conftest import Database, Serve, Served, until

if TYPE_CHECKING:
    from collections.abc import Callable

SLOW = "SELECT pg_sleep(60)"


async def fine(request: web.Request) -> web.Response:
    await request["db"].execute("SELECT 1")
    return web.Response(text="fine")


def application(dsn: str, handler: Any, **settings: Any) -> tuple[web.Application, poolscope.PoolScope]:
    app = web.Application()
    scope = poolscope.setup(app, dsn, **settings)
    app.router.add_get("/", handler)
    app.router.add_get("/fine", fine)
    return app, scope


async def problem(served: Served, scope: poolscope.PoolScope, path: str = "/") -> tuple[int, str]:
    """Status and code of an answer that must be one of ours, with everything that is promised of all of them."""
    async with served.client.get(served.url / path.lstrip("/")) as response:
        text, headers = await response.text(), response.headers.copy()
    assert re.fullmatch("[0-9a-f]{16}", headers.popone("X-Request-ID"))  # any digits, also those of a port
    assert response.content_type == "application/problem+json", text
    body = json.loads(text)
    assert body.keys() == {"type", "title", "status", "code"}
    assert body["status"] == response.status
    if response.status == 503:
        assert headers["Retry-After"].isdecimal()
        assert int(headers["Retry-After"]) >= 1
    else:
        assert "Retry-After" not in headers
    config = scope.config
    hosts = {str(part) for host in config.hosts for part in (host.host, host.hostaddr, host.port) if part}
    secrets = hosts | set(config.params.values()) | {"SELECT", "pg_", "psycopg", "aiopg", "FATAL", "hunter2", "'db'"}
    assert [secret for secret in secrets if secret in text + str(headers).replace(str(served.port), "")] == []
    return response.status, body["code"]


async def test_pool_exhausted(dsn: str, serve: Serve) -> None:
    """PoolExhausted, not served within acquire_timeout: 503."""
    app, scope = application(dsn, fine, maxsize=1, acquire_timeout=0.05)
    async with serve(app) as served, scope.acquire():
        assert await problem(served, scope) == (503, "pool-exhausted")
        assert scope.stats().timed_out == 1


async def test_shed(dsn: str, serve: Serve) -> None:
    """PoolExhausted, shed because the queue stands: 503, long before acquire_timeout."""

    async def handler(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(0.02)")
        return web.Response(text="served")

    app, scope = application(dsn, handler, maxsize=1, queue_target=0.01, acquire_timeout=60)
    async with serve(app) as served:
        answers = await asyncio.gather(*[served.get() for _ in range(60)])
        assert scope.stats().shed > 0
        refused = [json.loads(text)["code"] for status, text in answers if status == 503]
        assert refused == ["pool-exhausted"] * scope.stats().shed
        assert [text for status, text in answers if status == 200] == ["served"] * (60 - len(refused))


async def test_queue_full(dsn: str, serve: Serve) -> None:
    """QueueFull, max_waiting reached: 503 at once."""
    app, scope = application(dsn, fine, maxsize=1, max_waiting=0, acquire_timeout=60)
    async with serve(app) as served, scope.acquire():
        assert await problem(served, scope) == (503, "queue-full")
        assert scope.stats().refused == 1


async def test_database_unavailable_when_connecting_fails(serve: Serve) -> None:
    """DatabaseUnavailable, nobody listens there: 503, for who waits and for who comes while the breaker is open."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    app, scope = application(
        f"postgresql://someone:hunter2@127.0.0.1:{port}/somewhere", fine, connect_at_start=False, breaker_failures=2
    )
    async with serve(app) as served:
        assert await problem(served, scope) == (503, "database-unavailable")
        assert scope.stats().breaker != "closed"
        assert await problem(served, scope) == (503, "database-unavailable")
        assert scope.stats().failed == 2


@pytest.mark.parametrize("when", ["during a statement", "between statements"])
async def test_database_unavailable_when_the_connection_dies(
    dsn: str, serve: Serve, database: Database, when: str
) -> None:
    """DatabaseUnavailable, the connection died under the handler: 503; the next request is served."""

    async def handler(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT 1")
        if when == "during a statement":
            asyncio.get_running_loop().call_later(0.05, database.kill)
            await request["db"].execute(SLOW)
        database.kill()
        await request["db"].execute("SELECT 1")
        return web.Response()

    app, scope = application(dsn, handler, maxsize=1)
    async with serve(app) as served:
        assert await problem(served, scope) == (503, "database-unavailable")
        assert await served.get("/fine") == (200, "fine")


async def test_shutting_down(dsn: str, serve: Serve) -> None:
    """ShuttingDown: 503, and the connection to the client is closed; what needs no database still answers."""
    app, scope = application(dsn, fine)
    app.router.add_get("/static", poolscope.no_connection(_static))
    async with serve(app) as served, scope.acquire():
        scope.begin_drain()
        assert await problem(served, scope) == (503, "shutting-down")
        for path, status in (("/", 503), ("/static", 200), ("/nowhere", 404)):
            async with served.client.get(served.url / path.lstrip("/")) as response:
                assert (response.status, response.headers["Connection"]) == (status, "close")


@pytest.mark.parametrize("limit", ["statement_timeout", "timeout="])
async def test_query_timeout(dsn: str, serve: Serve, limit: str) -> None:
    """QueryTimeout, by the setting or the call's own limit: 504, and the connection is kept."""

    async def handler(request: web.Request) -> web.Response:
        await request["db"].execute(SLOW, timeout=0.2 if limit == "timeout=" else None)
        return web.Response()

    app, scope = application(dsn, handler, maxsize=1, statement_timeout=0.2 if limit == "statement_timeout" else 30)
    async with serve(app) as served:
        assert await served.get("/fine") == (200, "fine")  # PgBouncer loses a cancel until it has a backend
        assert await problem(served, scope) == (504, "query-timeout")
        assert await served.get("/fine") == (200, "fine")
        assert scope.stats().opened == 1


async def test_a_cancelled_statement_of_the_raw_driver(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """C1: aiopg says CancelledError when the server cancels; the client gets 504, not a dropped socket."""

    async def handler(request: web.Request) -> web.Response:
        # aiopg also complains to the loop, each time.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with request["db"].raw.cursor() as cursor:
            await cursor.execute(SLOW)
        return web.Response()

    app, scope = application(dsn, handler, statement_timeout=0.05)
    async with serve(app) as served:
        assert await problem(served, scope) == (504, "query-timeout")
        assert await served.get("/fine") == (200, "fine")


async def used_after_its_release(request: web.Request, scope: poolscope.PoolScope) -> None:
    async with scope.acquire() as db:
        pass
    await db.execute("SELECT 1")


async def used_by_two_tasks(request: web.Request, scope: poolscope.PoolScope) -> None:
    db = request["db"]
    other = asyncio.create_task(db.execute("SELECT pg_sleep(0.05)"))
    await asyncio.sleep(0)
    try:
        await db.execute("SELECT 1")
    finally:
        await other


async def commits_a_failure(request: web.Request, scope: poolscope.PoolScope) -> None:
    async with request["db"].transaction() as tx:
        with pytest.raises(psycopg2.Error):
            await tx.execute("SELECT 1/0")


async def releases_in_a_transaction(request: web.Request, scope: poolscope.PoolScope) -> None:
    async with request["db"].transaction():
        request["db"].release()


@pytest.mark.parametrize(
    ("mistake", "code", "said"),
    [
        (used_after_its_release, "connection-released", "was used after its release()"),
        (used_by_two_tasks, "connection-busy", "another statement is running on this connection"),
        (commits_a_failure, "transaction-failed", "a statement in this transaction had failed"),
        (releases_in_a_transaction, "internal-error", "release() inside transaction()"),
    ],
)
async def test_mistakes_in_the_program(
    dsn: str,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    mistake: Any,
    code: str,
    said: str,
) -> None:
    """ConnectionReleased, ConnectionBusy, TransactionFailed: 500, and the log has the traceback, once in a while."""

    async def handler(request: web.Request) -> web.Response:
        await mistake(request, scope)
        return web.Response()

    app, scope = application(dsn, handler)
    async with serve(app) as served:
        for quiet in (3600, 3600, 0):
            monkeypatch.setattr(logs, "QUIET", quiet)
            assert await problem(served, scope) == (500, code)
        assert await served.get("/fine") == (200, "fine")
    logged = [record for record in caplog.records if record.name == "aiohttp_poolscope"]
    assert [record.levelno for record in logged] == [logging.ERROR] * 2
    assert all(said in record.getMessage() and record.exc_info for record in logged)
    assert caplog.text.count(f"in {mistake.__name__}\n") == 2
    assert logged[1].getMessage().endswith("(and 1 more since the last such line)")


async def test_a_handler_without_a_connection_of_its_own(dsn: str, serve: Serve) -> None:
    """What an exempt or a skipped handler borrows by scope.acquire() is answered for as well."""

    async def handler(request: web.Request) -> web.Response:
        assert "db" not in request
        async with scope.acquire():
            return web.Response()

    app, scope = application(
        dsn, poolscope.no_connection(handler), maxsize=1, max_waiting=0, skip=lambda request: request.path == "/skipped"
    )
    app.router.add_get("/skipped", handler)
    async with serve(app) as served:
        assert await served.status("/") == 200
        async with scope.acquire():
            assert await problem(served, scope) == (503, "queue-full")
            assert await problem(served, scope, "/skipped") == (503, "queue-full")


async def test_lease_taken_away(dsn: str, serve: Serve) -> None:
    """ConnectionReleased, held beyond max_lease: 500 at the next use."""

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        await until(lambda: db.closed, "the end of the lease")
        await db.execute("SELECT 1")
        return web.Response()

    app, scope = application(dsn, handler, max_lease=0.05)
    async with serve(app) as served:
        assert await problem(served, scope) == (500, "connection-released")


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT 1/0", psycopg2.errors.DivisionByZero),
        ("SELECT nothing_like_this", psycopg2.errors.UndefinedColumn),
        ("SELEC", psycopg2.errors.SyntaxError),
        ("SELECT pg_terminate_backend(0) FROM nowhere", psycopg2.errors.UndefinedTable),
    ],
)
async def test_other_database_errors_are_the_drivers(
    dsn: str, serve: Serve, sql: str, error: Callable[..., Any]
) -> None:
    """Every other database error reaches the handler as psycopg2 raised it; escaping, it is a plain 500."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        try:
            await request["db"].execute(sql)
        except psycopg2.Error as raised:
            seen.append((type(raised), raised.pgcode is not None))
            raise
        return web.Response()

    app, scope = application(dsn, handler)
    async with serve(app) as served:
        status, text = await served.get()
        assert (status, seen) == (500, [(error, True)])
        assert sql not in text
        assert scope.stats().opened == 1


async def test_an_own_timeout_stays_the_handlers(dsn: str, serve: Serve) -> None:
    """A17: a TimeoutError of the handler's own is answered by aiohttp, 504, and is none of our answers."""

    async def handler(request: web.Request) -> web.Response:
        async with asyncio.timeout(0.02):
            await asyncio.sleep(60)
        return web.Response()

    app, _ = application(dsn, handler)
    async with serve(app) as served, served.client.get(served.url) as response:
        assert (response.status, response.content_type) == (504, "text/plain")


async def _static(request: web.Request) -> web.Response:
    return web.Response(text="static")
