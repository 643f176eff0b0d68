"""What the log says aloud: rollbacks that nobody asked for, and whose fault or whose request each line is about."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import events as ev
from aiohttp_poolscope import logs
from aiohttp_poolscope.web import responses
from tests.conftest import until
from tests.kit import clients
from tests.kit.wire import wired_to

if TYPE_CHECKING:
    from tests.conftest import Database, Serve

ID = {"X-Request-ID": "call-7"}


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (logs, responses):
        monkeypatch.setattr(module, "_limiter", logs.LogLimiter())


def ours(caplog: Any, *events: str) -> list[logging.LogRecord]:
    found = [record for record in caplog.records if record.name == "aiohttp_poolscope"]
    return [record for record in found if not events or record.__dict__.get("event") in events]


@pytest.fixture
def writing(database: Database) -> None:
    """A table, and a function that writes into it."""
    database.sql(
        "CREATE TABLE t (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        "CREATE FUNCTION put(n int) RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (n) RETURNING n'"
    )


async def begin(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")
    await db.execute("INSERT INTO t VALUES (1)")


async def leave_a_stream_that_writes(db: poolscope.ScopedConnection) -> None:
    async for _ in db.stream("SELECT put(n) FROM generate_series(1, 5000) AS t (n)"):
        break


async def leave_a_stream_inside(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")
    async for _ in db.stream("SELECT generate_series(1, 5000)"):
        break


async def leave_a_stream_that_reads(db: poolscope.ScopedConnection) -> None:
    async for _ in db.stream("SELECT count(n), lower('x') FROM generate_series(1, 5000) AS t (n) GROUP BY n"):
        break


async def close_a_stream_that_writes(db: poolscope.ScopedConnection) -> None:
    async with db.stream("SELECT put(n) FROM generate_series(1, 5000) AS t (n)") as rows:
        async for _ in rows:
            break


@pytest.mark.usefixtures("writing")
@pytest.mark.parametrize("reset", ["rollback", "full"])
@pytest.mark.parametrize(
    ("work", "dirty"),
    [
        (begin, True),
        (leave_a_stream_that_writes, True),
        (leave_a_stream_inside, True),
        (leave_a_stream_that_reads, False),
        (close_a_stream_that_writes, False),
    ],
)
async def test_a_dirty_return(
    dsn: str, serve: Serve, database: Database, *, caplog: Any, work: Any, dirty: bool, reset: str
) -> None:
    """T2: a rollback that nobody asked for is an event, and a warning with the route and the line that borrowed."""
    told: list[ev.Event] = []

    async def handler(request: web.Request) -> web.Response:
        await work(request["db"])
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, reset=reset, acquire="lazy")
    scope.on_event(told.append, ev.ReturnedDirty)
    app.router.add_get("/pay/{id}", handler)
    async with serve(app) as served:
        assert await served.status("/pay/1", headers=ID) == 200
        said = [(record.levelno, record.getMessage()) for record in ours(caplog, "returned_dirty")]
    assert len(told) == len(said) == dirty
    for level, message in said:
        assert level == logging.WARNING
        assert "pool 'db': a connection of GET /pay/{id} (request call-7) came back inside a transaction" in message
        assert f"Borrowed at {__file__}:" in message
        assert message.endswith(f" in {work.__name__}")
    assert database.sql("SELECT n FROM t") == []


async def test_dirty_returns_are_one_line_a_second(
    make_scope: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred of them are one line, and the next one counts them."""
    monkeypatch.setattr(logs, "QUIET", 3600)
    async with make_scope(maxsize=1) as scope:
        for quiet in (3600,) * 100 + (0,):
            monkeypatch.setattr(logs, "QUIET", quiet)
            async with scope.acquire() as db:
                await db.execute("BEGIN")
    first, last = [record.getMessage() for record in ours(caplog, "returned_dirty")]
    assert first.endswith("in test_dirty_returns_are_one_line_a_second")
    assert last.endswith("(and 99 more since the last such line)")


async def sent(request: web.Request, status: int = 200, *, whole: bool = True) -> web.StreamResponse:
    response = web.StreamResponse(status=status)
    await response.prepare(request)
    await response.write(b"written")
    if whole:
        await response.write_eof()
    return response


async def raises_after(request: web.Request) -> web.StreamResponse:
    await sent(request)
    raise ValueError("a secret")


async def raises_halfway(request: web.Request) -> web.StreamResponse:
    await sent(request, whole=False)
    raise ValueError("a secret")


async def conflict_after(request: web.Request) -> web.StreamResponse:
    await sent(request)
    raise web.HTTPConflict


async def commit_fails(request: web.Request) -> web.StreamResponse:
    await request["db"].execute("INSERT INTO t VALUES (1)")  # a second time: refused at COMMIT
    return await sent(request)


async def statement_failed(request: web.Request) -> web.StreamResponse:
    with pytest.raises(Exception, match="division"):
        await request["db"].execute("SELECT 1/0")
    return await sent(request)


async def goes_well(request: web.Request) -> web.StreamResponse:
    return await sent(request)


async def redirects_after(request: web.Request) -> web.StreamResponse:
    await sent(request)
    raise web.HTTPFound("/elsewhere")


async def says_409(request: web.Request) -> web.StreamResponse:
    return await sent(request, 409)


async def raises_before(request: web.Request) -> web.StreamResponse:
    raise ValueError("a secret")


@pytest.mark.usefixtures("writing")
@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (raises_after, "had been sent when its transaction was rolled back (ValueError)"),
        (raises_halfway, "had begun when its transaction was rolled back (ValueError)"),
        (conflict_after, "had been sent when its transaction was rolled back (HTTPConflict)"),
        (commit_fails, "had been sent when its transaction was rolled back (UniqueViolation, SQLSTATE 23505)"),
        (statement_failed, "had been sent when its transaction was rolled back (TransactionFailed)"),
        (goes_well, None),
        (redirects_after, None),
        (says_409, None),
        (raises_before, None),
    ],
)
async def test_an_answer_that_had_been_sent(
    dsn: str, serve: Serve, database: Database, *, caplog: Any, handler: Any, said: str | None
) -> None:
    """An answer on its way whose transaction is rolled back is an ERROR, with the method, the route and the id."""

    async def working(request: web.Request) -> web.StreamResponse:
        await request["db"].execute("INSERT INTO t VALUES (1)")
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_post("/pay/{id}", poolscope.transactional(working))
    async with serve(app) as served:
        with clients.client(served.port, b"POST /pay/1 HTTP/1.1\r\nHost: x\r\nX-Request-ID: call-7\r\n\r\n"):
            done = [(1,)] if handler in (goes_well, redirects_after) else []
            await until(lambda: database.sql("SELECT n FROM t") == done)
            await until(lambda: not said or ours(caplog, "answer-undone"), "the line")
    lines = [(record.levelno, record.getMessage()) for record in ours(caplog, "answer-undone")]
    wanted = f"pool 'db': the answer to POST /pay/{{id}} (request call-7) {said}"
    assert [(level, message[: len(wanted)]) for level, message in lines] == [(logging.ERROR, wanted)] * bool(said)
    assert not any("secret" in message for _, message in lines)
    assert database.sql("SELECT n FROM t") == done


async def test_a_commit_that_is_lost_after_the_answer(dsn: str, serve: Serve, caplog: Any) -> None:
    """Nobody knows whether what the answer says is so, and that is what the line says."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await request["db"].execute("CREATE TABLE made (n int)")
        response = await sent(request)
        wire.tear(0)
        return response

    with wired_to(dsn) as wire:
        app = web.Application()
        poolscope.setup(app, wire.dsn, maxsize=1)
        app.router.add_post("/", poolscope.transactional(handler))
        async with serve(app) as served:
            with clients.client(served.port, b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"):
                (record,) = await until(lambda: ours(caplog, "answer-undone"), "the line")
    assert "had been sent when its transaction was lost in its COMMIT (OutcomeUnknown)" in record.getMessage()
    assert "may not be written" in record.getMessage()


async def test_a_client_that_left_halfway_was_told_nothing(
    dsn: str, serve: Serve, caplog: Any, cancellation: bool
) -> None:
    """A download that is aborted is rolled back, and no error."""
    ended = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            response = await sent(request, whole=False)
            while True:
                await response.write(bytes(1000))
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    app = web.Application()
    scope = poolscope.setup(app, dsn)
    app.router.add_get("/", poolscope.transactional(handler))
    async with serve(app, handler_cancellation=cancellation) as served:
        with clients.client(served.port, clients.head("/")) as connected:
            await asyncio.to_thread(connected.recv, 100)
            clients.leave(connected, "rst")
        await asyncio.wait_for(ended.wait(), 10)
        await until(lambda: scope.stats().in_use == 0)
    assert ours(caplog, "answer-undone") == []


async def too_slow(request: web.Request, scope: poolscope.PoolScope) -> None:
    await request[scope.key].execute("SELECT pg_sleep(60), 'a secret'", timeout=0.05)


async def too_slow_beside(request: web.Request, scope: poolscope.PoolScope) -> None:
    await scope.execute("SELECT pg_sleep(60), 'a secret'", timeout=0.05)


async def too_slow_for_the_server(request: web.Request, scope: poolscope.PoolScope) -> None:
    async with request[scope.key].transaction() as tx:
        await tx.execute("SET LOCAL statement_timeout = 50")
        await tx.execute("SELECT pg_sleep(60), 'a secret'")


async def killed(request: web.Request, scope: poolscope.PoolScope) -> None:
    await request[scope.key].execute("SELECT pg_terminate_backend(pg_backend_pid(), 0), 'a secret'")


async def killed_while_reading(request: web.Request, scope: poolscope.PoolScope) -> None:
    victim = request[scope.key]
    pid = await victim.fetchval("SELECT pg_backend_pid()")
    reading = asyncio.create_task(victim.execute("SELECT pg_sleep(60), 'a secret'"))
    await asyncio.sleep(0)
    await scope.execute("SELECT pg_terminate_backend(%s)", (pid,))
    await reading


async def disk_full(request: web.Request, scope: poolscope.PoolScope) -> None:
    async with request[scope.key].transaction() as tx:
        await tx.execute("DO 'BEGIN RAISE EXCEPTION USING errcode = ''53100'', message = ''full''; END' /* pg_sleep */")


async def exhausted(request: web.Request, scope: poolscope.PoolScope) -> None:
    async with scope.acquire(), scope.acquire():
        await scope.execute("SELECT pg_sleep(60)")


@pytest.mark.parametrize(
    ("work", "status", "statement"),
    [
        (too_slow, 504, "SELECT pg_sleep(?), ?"),
        (too_slow_beside, 504, "SELECT pg_sleep(?), ?"),
        (too_slow_for_the_server, 504, "SELECT pg_sleep(?), ?"),
        (killed, 500, "SELECT pg_terminate_backend(pg_backend_pid(), ?), ?"),
        (killed_while_reading, 503, "SELECT pg_sleep(?), ?"),
        (disk_full, 503, "DO ?"),
        (exhausted, 503, None),
    ],
)
async def test_the_line_of_a_refusal(
    dsn: str, serve: Serve, *, caplog: Any, work: Any, status: int, statement: str | None
) -> None:
    """A 503, a 504 and an unknown outcome name pool, method, route, request and masked statement in their text."""

    async def handler(request: web.Request) -> web.Response:
        await work(request, scope)
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, key="main", maxsize=3, acquire_timeout=0.2)

    async def renamed(request: web.Request) -> web.Response:
        request[scope.key] = request["main"]
        return await handler(request)

    app.router.add_post("/things/{id}", poolscope.eager(renamed))
    async with serve(app) as served, served.client.post(served.url / "things/1", headers=ID) as response:
        assert response.status == status
        body = await response.text()
    (record,) = [record for record in ours(caplog) if record.__dict__.get("route") and record.levelno >= 30]
    message = record.getMessage()
    assert message.startswith("pool 'main': ")
    assert message.count("pool 'main'") == 1
    said = f": {statement}" if statement else ""
    assert message.endswith(f" [POST /things/{{id}} (request call-7){said}]")
    assert record.__dict__.get("statement") == statement
    assert "secret" not in message + body
    assert "SELECT" not in body


async def test_an_error_knows_its_pool_and_its_statement(make_scope: Any) -> None:
    """For whoever catches it: whose it was, without any value."""
    async with make_scope(key="reports") as scope:
        with pytest.raises(poolscope.QueryTimeout) as caught:
            await scope.fetchval("SELECT pg_sleep(60), %s, 'a secret'", ("another",), timeout=0.05)
    assert (caught.value.pool, caught.value.statement) == ("reports", "SELECT pg_sleep(?), %s, ?")


async def test_a_line_of_another_scope(dsn: str, serve: Serve, caplog: Any) -> None:
    """It names the pool that was asked, and not that of the middleware which answers."""

    async def handler(request: web.Request) -> web.Response:
        await other.execute("SELECT pg_sleep(60)", timeout=0.05)
        return web.Response()

    app = web.Application()
    other = poolscope.setup(app, dsn, key="other")
    poolscope.setup(app, dsn, key="db")
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 504
    (record,) = ours(caplog, "query-timeout")
    assert record.getMessage().startswith("pool 'other': the statement did not end within 0.05 s [GET / (request ")


async def test_a_leak_names_its_request(dsn: str, serve: Serve, caplog: Any) -> None:
    """Pool, method, route and request are in its text, and the statement that runs."""

    async def handler(request: web.Request) -> web.Response:
        leaked = scope.stats().leaked
        busy = asyncio.create_task(request["db"].execute(request.query["sql"]))
        await until(lambda: scope.stats().leaked > leaked)
        busy.cancel()
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, leak_threshold=0.05)
    app.router.add_get("/leaks/{id}", handler)
    async with serve(app) as served:
        for sql in ("SELECT 1", "SELECT pg_sleep(60), 'a secret'"):
            assert await served.status("/leaks/1", headers=ID, params={"sql": sql}) == 200
    lines = [record.getMessage() for record in ours(caplog, "leaked", "returned_late")]
    assert len(lines) == 4
    for line, between in zip(lines, ("is held for ", "came back after ") * 2, strict=True):
        assert line.startswith(f"pool 'db': a connection {between}")
        assert "GET /leaks/{id} (request call-7)" in line
    assert [line.endswith("which runs SELECT pg_sleep(?), ?") for line in lines] == [False, False, True, False]


async def test_mistakes_of_handlers_do_not_hide_each_other(dsn: str, serve: Serve, caplog: Any) -> None:
    """One traceback a second for each route, however many requests make the mistake."""

    async def handler(request: web.Request) -> web.Response:
        async with scope.acquire() as db:
            pass
        await db.execute("SELECT 1")
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn)
    app.router.add_get("/a/{id}", handler)
    app.router.add_get("/b/{id}", handler)
    async with serve(app) as served:
        for path in ("/a/1", "/a/2", "/b/1", "/a/3", "/b/2"):
            assert await served.status(path) == 500
    said = [record for record in ours(caplog) if record.exc_info]
    assert [record.__dict__["route"] for record in said] == ["/a/{id}", "/b/{id}"]
    assert all("[GET /" in record.getMessage() and "pool 'db': " in record.getMessage() for record in said)
