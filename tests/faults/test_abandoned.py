"""What a request goes on to cost the database when its client has left, in each way a service can be set up for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg2
import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from aiohttp_poolscope.pool import housekeeper
from tests.conftest import BUSY, Database, Serve, until
from tests.kit import clients
from tests.kit.wire import wired

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ROOT = Path(__file__).parents[2]

Leaving = Literal["fin", "rst", "half-close"]

LOOKING = 1.0
"""Seconds between two looks of the pool for clients that have left."""

SETTLING = 1.0
"""Seconds that an abandoned statement has to end once its cancellation was asked for."""

PATIENCE = 20.0
"""Seconds after which a statement of 60 s was not ended."""

SCHEMA = """
CREATE TABLE written (tag text);
CREATE TABLE locked (id int);
INSERT INTO locked VALUES (1);
CREATE TABLE committed (tag text);
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON committed DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION dawdle();
"""

WORK = {
    "sleep": "SELECT pg_sleep({seconds}), '{tag}'",
    "processor": "DO $$ DECLARE tag text := '{tag}'; BEGIN LOOP END LOOP; END $$",
    "insert": "INSERT INTO written SELECT '{tag}' FROM pg_sleep({seconds})",
    "lock": "UPDATE locked SET id = 2 WHERE '{tag}' <> ''",
    "commit": "COMMIT",
}
"""Each a statement that takes its time in another way. The COMMIT has a deferred trigger to run."""


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool looks for clients that have left five times a second instead of once."""
    monkeypatch.setattr(housekeeper, "CALM", 0.2)


@dataclass
class Service:
    """An application whose handlers each wait for one statement, seen from the database."""

    database: Database
    settings: dict[str, Any]
    ended: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.app = web.Application()
        self.scope = poolscope.setup(self.app, self.database.dsn, **self.settings)
        self.app.router.add_route("*", "/{work}/{tag}/{seconds}", self.handler)

    async def handler(self, request: web.Request) -> web.Response:
        work, tag = request.match_info["work"], request.match_info["tag"]
        self.ended[tag] = "under way"
        try:
            if work == "commit":
                async with request["db"].transaction() as tx:
                    await tx.execute("INSERT INTO committed VALUES (%s)", (tag,))
            else:
                await request["db"].execute(WORK[work].format(**request.match_info))
        except asyncio.CancelledError:
            self.ended[tag] = "cancelled"
            raise
        self.ended[tag] = "done"
        return web.Response()

    def running(self, *texts: str) -> dict[str, int]:
        """The backends whose statement contains one of these texts, while it runs."""
        rows = self.database.backends("pid", "query", "state")
        return {text: pid for text in texts for pid, query, state in rows if text in query and state == "active"}

    async def gone(self, text: str) -> float:
        """When that statement had ended on the server."""
        try:
            await until(lambda: not self.running(text), f"the end of {text} on the server", deadline=PATIENCE)
        except AssertionError:
            self.database.kill(waiting=False)  # else its locks would hold up the end of the test for a minute
            raise
        return time.monotonic()

    @property
    def backends(self) -> set[int]:
        """Who serves the pool."""
        return {pid for (pid,) in self.database.backends("pid")}


@contextlib.asynccontextmanager
async def leaving(served: Any, *leavers: tuple[str, Leaving], method: str = "GET") -> AsyncIterator[None]:
    """Clients that ask for these paths; they leave, in these ways, when the block ends."""
    with contextlib.ExitStack() as stack:
        asking = []
        for path, how in leavers:
            sent = clients.head(path, method, Content_Length=0)
            asking.append((stack.enter_context(clients.client(served.port, sent)), how))
        yield
        for connected, how in asking:
            if how == "half-close":
                connected.shutdown(socket.SHUT_WR)
            else:
                clients.leave(connected, how)
        for connected, how in asking:  # half a close becomes a whole one only when the server has closed its half
            if how == "half-close":
                connected.settimeout(0)
                async with asyncio.timeout(PATIENCE):
                    assert await asyncio.get_running_loop().sock_recv(connected, 1) == b""


STOPPING = {
    "cancel_abandoned": ({"cancel_abandoned": True}, False),
    "handler_cancellation": ({}, True),
}
"""The two ways to have a query end with its client: settings of the pool, and handler_cancellation of the runner."""


@pytest.mark.parametrize("abandon_interval", [1.0, None])
@pytest.mark.parametrize("mode", STOPPING)
async def test_a_query_ends_with_its_client_and_its_connection_is_kept(
    database: Database, serve: Serve, monkeypatch: pytest.MonkeyPatch, mode: str, abandon_interval: float | None
) -> None:
    """Left by FIN, RST or half a close, a GET soon costs the database nothing: waiting, computing, writing, or locked.

    It is the cancellation that ends it, so that the connection is kept, and abandon_interval is not needed for that.
    """
    leavers: list[tuple[str, Leaving]] = [
        ("/sleep/t0/60", "fin"), ("/sleep/t1/60", "rst"), ("/sleep/t2/60", "half-close"),
        ("/processor/t3/60", "rst"), ("/insert/t4/60", "fin"), ("/lock/t5/60", "half-close"),
    ]  # fmt: skip
    tags = [f"'t{number}'" for number in range(len(leavers))]
    settings, cancellation = STOPPING[mode]
    database.sql(SCHEMA)
    if abandon_interval is None:
        monkeypatch.setattr(housekeeper, "CALM", 0.2)
    it = Service(database, {"minsize": 7, "maxsize": 7, "abandon_interval": abandon_interval, **settings})
    async with serve(it.app, handler_cancellation=cancellation) as served:
        pids = it.backends
        async with it.scope.transaction() as tx:
            await tx.execute("UPDATE locked SET id = 3")
            async with leaving(served, *leavers):
                await until(lambda: it.running(*tags).keys() == set(tags), "all statements")
                left = time.monotonic()
            took = [await it.gone(tag) - left for tag in tags]
            print([round(each, 3) for each in took])
            await until(lambda: it.scope.stats().idle == 6, "the connections' return")
        assert max(took) < LOOKING + (abandon_interval or 0.0) + BUSY
        assert set(it.ended.values()) == {"cancelled"}
        assert (it.backends, it.scope.stats().opened) == (pids, 7)
        assert database.sql("SELECT * FROM written") == []
        assert await served.status("/sleep/after/0") == 200


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("abandon_interval", [0.3, None])
@pytest.mark.parametrize("mode", STOPPING)
async def test_a_commit_ends_with_its_client_and_its_connection(
    database: Database, serve: Serve, mode: str, abandon_interval: float | None
) -> None:
    """A COMMIT that is abandoned may have happened or not: its connection is closed, and the server then ends it."""
    settings, cancellation = STOPPING[mode]
    database.sql(SCHEMA)
    it = Service(database, {"maxsize": 1, "abandon_interval": abandon_interval, **settings})
    async with serve(it.app, handler_cancellation=cancellation) as served:
        async with leaving(served, ("/commit/t1/60", "fin")):
            await until(lambda: it.running("COMMIT"), "the COMMIT")
            left = time.monotonic()
        took = await it.gone("COMMIT") - left
        print(round(took, 3))
        assert took < LOOKING + (abandon_interval or 0.0) + BUSY
        assert it.ended == {"t1": "cancelled"}
        assert database.sql("SELECT * FROM committed") == []
        assert await served.status("/sleep/after/0") == 200
        assert it.scope.stats().opened == 2


@pytest.mark.usefixtures("brisk")
async def test_only_a_get_or_a_head_is_cancelled(database: Database, serve: Serve) -> None:
    """cancel_abandoned leaves alone what may change something: those handlers and their statements run to their end."""
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    database.sql(SCHEMA)
    it = Service(database, {"minsize": 7, "maxsize": 7, "cancel_abandoned": True})
    async with serve(it.app) as served:
        pids = it.backends
        async with contextlib.AsyncExitStack() as stack:
            for method in methods:
                path = f"/insert/{method}/0.6"  # the pool looks three times meanwhile
                await stack.enter_async_context(leaving(served, (path, "fin"), method=method))
            await until(lambda: len(it.running(*(f"'{method}'" for method in methods))) == 7, "all")
        await until(lambda: "under way" not in it.ended.values(), "their ends")
        cancelled = {method for method, how in it.ended.items() if how == "cancelled"}
        assert cancelled == {"GET", "HEAD"}
        assert {tag for (tag,) in database.sql("SELECT tag FROM written")} == set(methods) - cancelled
        assert (it.backends, it.scope.stats().opened) == (pids, 7)


@pytest.mark.usefixtures("brisk")
async def test_by_default_an_abandoned_request_runs_to_its_end(database: Database, serve: Serve) -> None:
    """With neither setting a handler whose client has left goes on, its statement too, and what it writes is there."""
    ways: tuple[Leaving, ...] = ("fin", "rst", "half-close")
    database.sql(SCHEMA)
    it = Service(database, {"minsize": 3, "maxsize": 3})
    async with serve(it.app) as served:
        pids = it.backends
        async with leaving(served, *((f"/insert/{how}/0.6", how) for how in ways)):
            await until(lambda: len(it.running(*(f"'{how}'" for how in ways))) == 3, "all statements")
        assert len(it.running(*(f"'{how}'" for how in ways))) == 3
        await until(lambda: it.ended == dict.fromkeys(ways, "done"), "their ends")
        assert {tag for (tag,) in database.sql("SELECT tag FROM written")} == set(ways)
        assert (it.backends, it.scope.stats().opened) == (pids, 3)


async def test_a_server_that_cannot_be_told_finds_out(database: Database, serve: Serve) -> None:
    """Where a cancellation does not reach the server, the connection is closed, and abandon_interval ends the query."""
    with wired(database) as wire:
        wire.deaf_to_cancel = True
        it = Service(Database(wire.dsn, database.connection), {"maxsize": 1, "abandon_interval": 0.3})
        async with serve(it.app, handler_cancellation=True) as served:
            async with leaving(served, ("/sleep/t1/60", "fin")):
                await until(lambda: it.running("'t1'"), "the statement")
                left = time.monotonic()
            took = await it.gone("'t1'") - left
            wire.deaf_to_cancel = False
            assert took < SETTLING + 0.3 + BUSY
            assert it.ended == {"t1": "cancelled"}
            assert await served.status("/sleep/after/0") == 200
            assert it.scope.stats().opened == 2


@pytest.mark.usefixtures("brisk")
async def test_a_statement_of_the_scope_in_a_handler_ends_too(database: Database, serve: Serve) -> None:
    """cancel_abandoned looks at what a handler has borrowed by itself as well, and not at its background tasks."""
    tasks: list[asyncio.Task[Any]] = []

    @poolscope.lazy
    async def handler(request: web.Request) -> web.Response:
        tasks.append(asyncio.create_task(scope.execute("INSERT INTO written SELECT 'background' FROM pg_sleep(0.6)")))
        await scope.execute("INSERT INTO written SELECT 'handler' FROM pg_sleep(1)")
        return web.Response()

    database.sql(SCHEMA)
    app = web.Application()
    scope = poolscope.setup(app, database.dsn, maxsize=2, cancel_abandoned=True)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        async with leaving(served, ("/", "fin")):
            await until(lambda: database.backends("state") == [("active",)] * 2, "both statements")
        await until(lambda: scope.stats().idle == 2, "both ends")
        await tasks[0]
        assert database.sql("SELECT tag FROM written") == [("background",)]


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("borrowed", ["request", "scope"])
async def test_what_a_cancelled_handler_does_at_its_end_is_let_alone(
    database: Database, serve: Serve, borrowed: str
) -> None:
    """cancel_abandoned cancels once: a handler may borrow for its own cleaning up, and take its time for it."""

    @poolscope.lazy
    async def handler(request: web.Request) -> web.Response:
        try:
            await (scope if borrowed == "scope" else request["db"]).execute("SELECT pg_sleep(1)")
            ended.append("statement")
        finally:
            try:
                async with scope.acquire() as db:
                    await db.execute("INSERT INTO written SELECT 'cleaned up' FROM pg_sleep(0.6)")
            finally:
                ended.append("handler")
        return web.Response()

    ended: list[str] = []
    database.sql(SCHEMA)
    app = web.Application()
    scope = poolscope.setup(app, database.dsn, maxsize=2, cancel_abandoned=True)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        async with leaving(served, ("/", "fin")):
            await until(lambda: ("active",) in database.backends("state"), "the statement")
        await until(lambda: "handler" in ended, "its end")
        assert ended == ["handler"]
        assert database.sql("SELECT tag FROM written") == [("cleaned up",)]


@pytest.fixture(scope="module")
def without_standby() -> Iterator[Database]:
    """A server whose synchronous standby is away: what asks for synchronous_commit waits for it in its COMMIT."""
    with (
        EmbeddedPostgres(settings={"synchronous_standby_names": "away"}) as server,
        contextlib.closing(psycopg2.connect(server.dsn)) as connection,
    ):
        connection.autocommit = True
        observer = Database(server.dsn, connection)
        observer.sql("CREATE TABLE committed (tag text)")
        yield observer


async def test_a_commit_that_waits_for_its_standby_has_happened(without_standby: Database, serve: Serve) -> None:
    """What a COMMIT has done stays done: ended while it only waits for a synchronous standby, it is committed."""
    observer, tag = without_standby, f"t{time.monotonic_ns()}"
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    it = Service(observer, {"maxsize": 1, "abandon_interval": 0.3, "options": "-c synchronous_commit=on"})
    async with serve(it.app, handler_cancellation=True) as served:
        async with leaving(served, (f"/commit/{tag}/60", "fin")):
            await until(lambda: observer.sql(waiting), "the COMMIT")
        await until(lambda: it.ended == {tag: "cancelled"}, "the end of its handler")
        await until(lambda: not observer.sql(waiting), "its end", deadline=LOOKING + 0.3 + BUSY)
    assert (tag,) in observer.sql("SELECT tag FROM committed")


KILLED = """
import asyncio, sys
import aiohttp_poolscope as poolscope

async def main(dsn, interval, sql):
    async with poolscope.open(dsn, abandon_interval=float(interval) or None) as scope:
        print("ready", flush=True)
        sys.stdin.readline()
        await scope.execute(sql)

asyncio.run(main(*sys.argv[1:]))
"""


def test_the_server_ends_what_a_killed_process_left_behind(database: Database) -> None:
    """abandon_interval: a process that got SIGKILL costs the database nothing soon after. None: its query runs on."""
    database.sql(SCHEMA)
    statements = {interval: f"INSERT INTO written SELECT '{interval}' FROM pg_sleep(1.5)" for interval in ("0", "0.3")}
    with contextlib.ExitStack() as stack:
        processes = []
        for each in statements.items():
            command = [sys.executable, "-c", KILLED, database.dsn, *each]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            processes.append(stack.enter_context(subprocess.Popen(command, cwd=ROOT, **pipes)))
            stack.callback(processes[-1].kill)
        for process in processes:
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            process.stdin.write(b"\n")
            process.stdin.flush()
        _wait(lambda: len(_active(database)) == 2, "both statements")
        killed = time.monotonic()
    _wait(lambda: statements["0.3"] not in _active(database), "the end of one")
    took = time.monotonic() - killed
    _wait(lambda: not _active(database), "the end of the other")
    print(round(took, 3), round(time.monotonic() - killed, 3))
    assert database.sql("SELECT tag FROM written") == [("0",)]  # the other had no time to be done


def _active(database: Database) -> set[str]:
    return {query for query, state in database.backends("query", "state") if state == "active"}


def _wait(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.005)
