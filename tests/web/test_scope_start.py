"""The start: what is warm before the first request, and what a start that fails says and leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from tests.conftest import Database, Serve, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LIMIT = 0.5
"""Seconds, as connect_timeout: what stands still is given up after that."""

AT_ONCE = LIMIT + 4.0
"""Seconds: far more than any of these starts may take, far less than a hang."""


@pytest.fixture(scope="module")
def locked() -> Iterator[EmbeddedPostgres]:
    """A server that listens on TCP and wants a password."""
    with EmbeddedPostgres(tcp=True) as server:
        yield server


def ours_running() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if "poolscope" in task.get_name()]


async def failing_start(dsn: str | None, **settings: Any) -> str:
    """Run an application that cannot start; what it says. Nothing of it may be left behind."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, connect_timeout=LIMIT, minsize=2, **settings)
    runner = web.AppRunner(app)
    async with asyncio.timeout(AT_ONCE):
        with pytest.raises(poolscope.DatabaseUnavailable) as refused:
            await runner.setup()
    await runner.cleanup()
    assert scope.state == "starting"
    assert ours_running() == []
    return str(refused.value)


async def test_minsize_connections_are_warm(make_scope: Any, database: Database) -> None:
    """B6: minsize connections are open before the first request."""
    async with make_scope(minsize=3) as scope:
        assert (scope.stats().idle, scope.stats().opened, len(database.backends())) == (3, 3, 3)


async def test_with_minsize_0_the_start_still_connects(make_scope: Any, dsn: str) -> None:
    """B6: a wrong DSN fails the deployment even if nothing is kept open."""
    async with make_scope(minsize=0) as scope:
        assert scope.stats().opened == 1
    assert "no such database" in await failing_start(dsn, dbname="no such database")


async def test_a_wrong_database_name_stops_the_start(dsn: str) -> None:
    """The message names the database that does not exist."""
    said = await failing_start(dsn, dbname="atlantis")
    assert "cannot connect to database 'atlantis' as user" in said
    assert 'database "atlantis" does not exist' in said


async def test_a_wrong_user_stops_the_start(dsn: str) -> None:
    """The message names the user that does not exist."""
    said = await failing_start(dsn, user="nobody at all")
    assert "as user 'nobody at all'" in said
    assert 'role "nobody at all" does not exist' in said


@pytest.mark.parametrize("given", ["as a setting", "in the URL", "by a function", "by an async function"])
async def test_a_wrong_password_stops_the_start(
    locked: EmbeddedPostgres, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The message says what was wrong; neither it nor the log says the password, however it was given."""
    caplog.set_level(logging.DEBUG)
    wrong = "hunter2-is-wrong"

    async def ask() -> str:
        return wrong

    password: Any = {"by a function": lambda: wrong, "by an async function": ask}.get(given, wrong)
    url = f"postgresql://postgres@{locked.host}:{locked.port}/postgres"
    if given == "in the URL":
        said = await failing_start(url.replace("@", f":{wrong}@"))
    else:
        said = await failing_start(url, password=password)
    assert 'password authentication failed for user "postgres"' in said
    assert wrong not in said
    assert wrong not in caplog.text


async def test_the_right_password_starts(locked: EmbeddedPostgres) -> None:
    """The same server with its password: the tests above fail for the reason they say."""
    async with poolscope.open(locked.dsn) as scope:
        assert await scope.fetchval("SELECT 1") == 1
        assert locked.password not in repr(scope) + repr(scope.config)


async def test_a_wrong_port_stops_the_start() -> None:
    """The message says where it tried to connect, and that nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = await failing_start(f"postgresql://postgres:hunter2@127.0.0.1:{port}/app")
    assert f"127.0.0.1:{port}" in said
    assert "Connection refused" in said
    assert "hunter2" not in said


async def test_an_unknown_host_stops_the_start() -> None:
    """The message names the host that cannot be found."""
    said = await failing_start("postgresql://postgres:hunter2@no-such-host.invalid/app")
    assert "no-such-host.invalid:5432" in said
    assert "hunter2" not in said


async def test_a_silent_host_stops_the_start() -> None:
    """Who accepts and never says a word is given up after connect_timeout, which the message names."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = await failing_start(f"postgresql://postgres:hunter2@127.0.0.1:{port}/app?sslmode=disable")
    assert f"127.0.0.1:{port}: no answer within 0.5 s (connect_timeout)" in said
    assert "hunter2" not in said


async def test_too_few_connections_stop_the_start(dsn: str, database: Database) -> None:
    """A start that gets one connection and not the second closes the one it has."""
    role = "poolscope_single"
    database.sql(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
    try:
        assert f'too many connections for role "{role}"' in await failing_start(dsn, user=role)
        await until(lambda: not database.backends(), "the end of the first connection")
    finally:
        database.sql(f"DROP ROLE {role}")


async def test_connect_at_start_off_starts_anyway(serve: Serve) -> None:
    """connect_at_start=False: the application starts without its database, and requests are told."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=await request["db"].fetchval("SELECT 'never'"))

    app = web.Application()
    scope = poolscope.setup(
        app, f"postgresql://u@127.0.0.1:{port}/app", connect_at_start=False, breaker_failures=1, breaker_reset=0.05
    )
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert scope.state == "serving"
        assert await served.status() == 503
        assert scope.stats().breaker != "closed"


async def test_connect_at_start_off_serves_once_there_is_a_database(make_scope: Any, database: Database) -> None:
    """connect_at_start=False: when the database appears, it is used, without anybody's help."""
    role = "poolscope_later"
    settings = {"user": role, "connect_at_start": False, "breaker_failures": 1, "breaker_reset": 0.05}
    try:
        async with make_scope(**settings) as scope:
            await until(lambda: scope.stats().breaker != "closed", "a first failure")
            with pytest.raises(poolscope.DatabaseUnavailable):
                await scope.fetchval("SELECT 1")
            database.sql(f"CREATE ROLE {role} LOGIN")
            await until(lambda: scope.stats().idle == 1, "the connection")
            assert await scope.fetchval("SELECT current_user") == role
    finally:
        database.sql(f"DROP ROLE IF EXISTS {role}")


@pytest.mark.parametrize("tidy", [True, False], ids=["with cleanup", "without cleanup"])
async def test_another_step_of_the_start_fails(dsn: str, database: Database, tidy: bool) -> None:
    """A14: if something else fails to start, the pool is closed, also where nobody calls the runner's cleanup."""

    async def broken(_: web.Application) -> AsyncIterator[None]:
        assert len(database.backends()) == 2
        raise OSError("the cache is away")
        yield

    async def start() -> None:
        app = web.Application()
        poolscope.setup(app, dsn, minsize=2)
        app.cleanup_ctx.append(broken)
        runner = web.AppRunner(app)
        with pytest.raises(OSError, match="the cache is away"):
            await runner.setup()
        if tidy:
            await runner.cleanup()

    await start()
    gc.collect()
    await until(lambda: not database.backends(), "the end of the connections")
    await until(lambda: not ours_running(), "the end of the tasks")


async def test_a_cancelled_start_leaves_nothing(dsn: str) -> None:
    """A start that is cancelled while it connects closes what it has begun."""
    app = web.Application()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        scope = poolscope.setup(app, f"postgresql://u@127.0.0.1:{port}/app?sslmode=disable", connect_timeout=60)
        runner = web.AppRunner(app)
        starting = asyncio.create_task(runner.setup())
        silent.setblocking(False)
        accepted: list[socket.socket] = []

        def accept() -> bool:
            with contextlib.suppress(BlockingIOError):
                accepted.append(silent.accept()[0])
            return bool(accepted)

        await until(accept, "the attempt to connect")
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await runner.cleanup()
        assert scope.state in ("starting", "closed")
        with accepted[0] as connection:
            connection.settimeout(5)
            while connection.recv(4096):  # until its end
                pass
    assert ours_running() == []


async def test_a_start_that_is_cancelled_half_way(dsn: str, database: Database) -> None:
    """Cancelled while it opens its second connection, a start closes the first one as well."""
    second = asyncio.Event()

    async def on_connect(db: poolscope.ScopedConnection) -> None:
        if len(database.backends()) > 1:
            second.set()
            await asyncio.Event().wait()

    async def start() -> None:
        async with poolscope.open(dsn, minsize=2, on_connect=on_connect):
            raise AssertionError("it has started")

    starting = asyncio.ensure_future(start())
    await second.wait()
    assert len(database.backends()) == 2
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: database.backends() == [])
