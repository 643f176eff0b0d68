"""Real parts for every test: a PostgreSQL, an AppRunner on a real socket, both event loops; and an audit behind each.

``POOLSCOPE_TEST_DSN`` uses another server than the embedded one; the tests make and drop a database of their own
there.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import psycopg2
import pytest
import uvloop
from aiohttp import ClientSession, web
from yarl import URL

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from aiohttp_poolscope.pool import Lifecycle, observing
from tests.kit.audit import left_behind

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("poolscope", deadline=None)
hypothesis.settings.load_profile("poolscope")

DEADLINE = 30.0
"""Seconds within which a condition that a test waits for must come true: a hang is longer, no busy machine is."""

BUSY = 10.0
"""Seconds that a busy machine may add to what takes none. What is not kept must take longer, or is told by an order."""

DATABASE = f"poolscope_test_{os.getpid()}"


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": loops["asyncio"]} if item.get_closest_marker("one_loop") else loops


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: the last thing to end should be a short one, when several processes share the files."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()  # modules and tests: the collection after each test need not look at them


async def until(condition: Callable[[], Any], what: str = "the condition", deadline: float = DEADLINE) -> Any:
    """Wait for a condition, not for a time."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come true within {deadline:g} s"
        await asyncio.sleep(0.005)
    return value


@dataclass
class Database:
    """The test database, seen from outside: over a blocking psycopg2 connection that is not part of any pool."""

    dsn: str
    connection: Any

    def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """Run one statement; its rows, if it has any."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def backends(self, *columns: str) -> list[tuple[Any, ...]]:
        """What pg_stat_activity shows in the database, this observer left out."""
        wanted = ", ".join(columns or ("pid", "application_name", "state", "query"))
        return self.sql(
            f"SELECT {wanted} FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
        )

    def kill(self, *, waiting: bool = True) -> int:
        """Terminate every backend in the database."""
        killed = len(self.backends("pg_terminate_backend(pid)"))
        end = time.monotonic() + DEADLINE
        while waiting and self.backends() and time.monotonic() < end:
            time.sleep(0.005)
        return killed


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """A PostgreSQL server, as its superuser."""
    given = os.environ.get("POOLSCOPE_TEST_DSN")
    if given:
        yield given
        return
    with EmbeddedPostgres(settings={"max_connections": 100}) as server:
        yield server.dsn


@pytest.fixture(scope="session")
def _database(server_dsn: str) -> Iterator[Database]:
    admin = psycopg2.connect(server_dsn)
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {DATABASE}")
    address, _, query = server_dsn.partition("?")
    dsn = f"{address.rpartition('/')[0]}/{DATABASE}" + (f"?{query}" if query else "")
    observer = psycopg2.connect(dsn)
    observer.autocommit = True
    yield Database(dsn, observer)
    observer.close()
    with admin.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
    admin.close()


@pytest.fixture
def database(_database: Database) -> Iterator[Database]:
    """An empty database. Its tables are dropped after the test."""
    yield _database
    _database.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


@pytest.fixture
def dsn(database: Database) -> str:
    """URL of the test database."""
    return database.dsn


@dataclass
class Served:
    """An application on a real socket, and a client for it."""

    runner: web.AppRunner
    url: URL
    client: ClientSession

    async def get(self, path: str = "/", **options: Any) -> tuple[int, str]:
        """Status and text."""
        async with self.client.get(self.url / path.lstrip("/"), **options) as response:
            return response.status, await response.text()

    async def status(self, path: str = "/", **options: Any) -> int:
        """Status."""
        return (await self.get(path, **options))[0]

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        assert self.url.port is not None
        return self.url.port

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A socket of its own, with ``data`` sent: for clients that behave badly."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        await writer.drain()
        return reader, writer


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for more than 1,024 descriptors: an ordinary user's limit is often just that, and may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(soft, 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)), hard)
    )
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def serve() -> Serve:
    """``async with serve(app) as served``: a real AppRunner, as in production, on a real socket."""

    @contextlib.asynccontextmanager
    async def serving(app: web.Application, *, client: Any = None, **options: Any) -> AsyncIterator[Served]:
        options.setdefault("shutdown_timeout", 5.0)
        runner = web.AppRunner(app, **options)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            async with ClientSession() as session:
                yield Served(runner, URL(f"http://127.0.0.1:{runner.addresses[0][1]}"), session)
        finally:
            await runner.cleanup()

    return serving


@pytest.fixture(params=[False, True], ids=["default", "handler_cancellation"])
def cancellation(request: pytest.FixtureRequest) -> bool:
    """Both of aiohttp's modes: what happens to a handler whose client leaves."""
    return bool(request.param)


@pytest.fixture
def make_scope(dsn: str) -> Callable[..., Any]:
    """``async with make_scope(maxsize=2) as scope``: a pool that runs without a web server.

    It sheds only where a test says so: on a machine that is slow enough, anything is an overload.
    """

    @contextlib.asynccontextmanager
    async def running(address: Any = None, **settings: Any) -> AsyncIterator[poolscope.PoolScope]:
        async with poolscope.open(address or dsn, **{"queue_target": None, **settings}) as scope:
            yield scope

    return running


@dataclass
class Audit:
    """What must hold after every test that had a pool."""

    runs: list[Lifecycle] = field(default_factory=list)
    allow_backends: bool = False

    def check(self, database: Database | None) -> None:
        for run in self.runs:
            assert left_behind(run) == []
        if self.runs and database is not None and not self.allow_backends:
            end = time.monotonic() + DEADLINE
            while left := database.backends():
                assert time.monotonic() < end, f"backends are left: {left}"
                time.sleep(0.01)


@pytest.fixture(autouse=True)
def audit(request: pytest.FixtureRequest) -> Iterator[Audit]:
    """After every test: nothing in use, nothing waiting, no task of ours, no backend, no complaint to the loop."""
    found = Audit()
    complaints: list[dict[str, Any]] = []

    def remember(run: Lifecycle) -> None:
        found.runs.append(run)
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    database: Database | None = request.getfixturevalue("_database") if "dsn" in request.fixturenames else None
    with observing(remember):
        yield found
    found.check(database)
    if found.runs:
        gc.collect()  # what nobody awaited or closed complains when it is collected
    assert complaints == []
    ours = [task for run in found.runs for task in run.pool.tasks]
    assert ours == [], f"tasks are left: {ours}"
