"""The kit itself: each fault does what it says, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from aiohttp import web

from tests.conftest import Serve, until
from tests.kit.load import DROPPED, GAVE_UP, NOT_CONNECTED, load
from tests.kit.wire import Wire, wired_to

from .servers import _full_device, crash, fill_disk, fill_slots, kill_backends, restart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

    from .conftest import Service


@pytest.fixture
def wire(server: EmbeddedPostgres) -> Iterator[Wire]:
    """A wire to the server, on TCP."""
    with wired_to(server.dsn) as wire:
        yield wire


def connected(dsn: str, **options: Any) -> Any:
    """A psycopg2 connection that commits each statement, and is closed at the end of its block."""
    connection = psycopg2.connect(dsn, **options)
    connection.autocommit = True
    return contextlib.closing(connection)


def value(connection: Any, sql: str = "SELECT 42") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


@pytest.mark.parametrize("unix", [False, True])
def test_a_wire_refuses_and_accepts_again(server: EmbeddedPostgres, unix: bool) -> None:
    """refuse() refuses new connections and leaves the open ones; accept() takes new ones at the same address."""
    with wired_to(server.dsn, unix=unix) as wire:
        for _ in range(3):
            with connected(wire.dsn) as before:
                assert wire.connected == 1
                wire.refuse()
                assert value(before) == 42
                with pytest.raises(psycopg2.OperationalError, match="Connection refused"):
                    psycopg2.connect(wire.dsn)
                wire.accept()
                with connected(wire.dsn) as after:
                    assert value(after) == value(before) == 42
        assert wire.connects == 6


def test_a_wire_waits(wire: Wire) -> None:
    """A delay is felt in both directions by each packet."""
    with connected(wire.dsn) as connection:
        wire.delay = 0.1
        begun = time.monotonic()
        assert value(connection) == 42
        assert time.monotonic() - begun >= 0.2


def test_a_wire_is_narrow(wire: Wire) -> None:
    """A throttled answer takes the time that its size says, and arrives whole."""
    with connected(wire.dsn) as connection:
        wire.throttle = 200_000
        begun = time.monotonic()
        assert value(connection, "SELECT repeat('x', 60000)") == "x" * 60000
        assert time.monotonic() - begun >= 0.3


@contextlib.contextmanager
def begun(port: int) -> Iterator[socket.socket]:
    """A client that has sent how a session starts, by hand: the server's answer is a request for a password."""
    body = b"\x00\x03\x00\x00user\x00postgres\x00\x00"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall((len(body) + 4).to_bytes(4) + body)
        yield client


def test_a_wire_is_cut(wire: Wire) -> None:
    """cut() is a reset, cut(fin=True) an orderly end."""
    for fin in (False, True):
        with begun(wire.port) as client:
            assert client.recv(1) == b"R"
            client.recv(4096)
            wire.cut(fin=fin)
            if fin:
                assert client.recv(1) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)


@pytest.mark.parametrize("after", [0, 1, 7])
def test_an_answer_is_torn(wire: Wire, after: int) -> None:
    """tear() lets exactly so many bytes of the next answer pass, then its connection ends, and no other."""
    with connected(wire.dsn) as other:
        wire.tear(after)
        with begun(wire.port) as client:
            got = b""
            while piece := client.recv(4096):
                got += piece
        assert len(got) == after
        assert value(other) == 42


def test_a_torn_row(wire: Wire) -> None:
    """In the middle of a long answer, the client hears of a connection that has died."""
    with connected(wire.dsn) as connection:
        wire.tear(100_000)
        with pytest.raises(psycopg2.OperationalError, match="closed"):
            value(connection, "SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        assert connection.closed


def test_a_wire_is_silent(wire: Wire) -> None:
    """frozen: nothing passes, not even an end; freeze() leaves new connections alone; hang leaves them unanswered."""
    with begun(wire.port) as client:
        assert client.recv(1) == b"R"
        wire.freeze()
        with connected(wire.dsn) as connection:
            assert value(connection) == 42
        client.recv(4096)
        client.sendall(b"p\x00\x00\x00\x08nop")  # which the server would answer with an error, and close
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
    wire.hang = True
    with begun(wire.port) as client:
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        wire.hang = False
        client.settimeout(5)
        assert client.recv(1) == b"R"
    wire.frozen = True
    with begun(wire.port) as client:
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
    wire.frozen = False


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart(server: EmbeddedPostgres, mode: Any) -> None:
    """ "fast" says farewell to its clients, "immediate" gives them no time to listen; what was committed is there."""
    with connected(server.dsn) as connection:
        value(connection, "INSERT INTO writes VALUES (1) RETURNING id")
        ready = restart(server, mode)
        assert ready <= time.monotonic()
        with pytest.raises(psycopg2.OperationalError, match="terminat"):
            value(connection)
    with connected(server.dsn) as connection:
        assert value(connection, "SELECT count(*) FROM writes") == 1


@pytest.mark.parametrize("whole", [False, True])
def test_a_crash(server: EmbeddedPostgres, whole: bool) -> None:
    """A backend killed with SIGKILL takes all others with it, the server recovers; what was committed is there."""
    pid = server.pid
    with connected(server.dsn) as connection:
        value(connection, "INSERT INTO writes VALUES (1) RETURNING id")
        crash(server, whole=whole)
        with pytest.raises(psycopg2.OperationalError):
            value(connection)
    assert (server.pid == pid) is not whole
    with connected(server.dsn) as connection:
        assert value(connection, "SELECT count(*) FROM writes") == 1
    assert "automatic recovery in progress" in server.log


def test_single_backends_are_killed(server: EmbeddedPostgres) -> None:
    """Only those of the given name and state."""
    with (
        connected(server.dsn, application_name="mine-1") as mine,
        connected(server.dsn, application_name="mine-2", options="-c idle_in_transaction_session_timeout=0") as busy,
        connected(server.dsn, application_name="other") as other,
    ):
        busy.autocommit = False
        value(busy)
        assert kill_backends(server.dsn, application_name="mine-%", state="active") == 0
        assert kill_backends(server.dsn, application_name="mine-%", state="idle") == 1
        assert value(other) == value(busy) == 42
        with pytest.raises(psycopg2.OperationalError, match="terminat"):
            value(mine)


def test_slots_are_filled(server: EmbeddedPostgres) -> None:
    """The server says "too many clients" to everybody, until the block ends; fill() takes what has become free."""
    with connected(server.dsn) as connection:
        with fill_slots(server.dsn) as filler:
            with pytest.raises(psycopg2.OperationalError, match="too many clients"):
                psycopg2.connect(server.dsn)
            assert value(connection) == 42
            pid = value(connection, "SELECT pid FROM pg_stat_activity WHERE application_name = 'filler' LIMIT 1")
            value(connection, f"SELECT pg_terminate_backend({pid}, 5000)")
            assert filler.fill() == 1
            with pytest.raises(psycopg2.OperationalError, match="too many clients"):
                psycopg2.connect(server.dsn)
        assert value(connection) == 42


@pytest.mark.parametrize("way", [fill_disk, _full_device])
def test_a_disk_is_full(server: EmbeddedPostgres, way: Any) -> None:
    """Nothing can be written, with the server's own "disk full"; everything can be read; afterwards all is well."""
    with connected(server.dsn) as connection:
        for number in (1, 2):
            with way(server):
                for _ in range(3):
                    with pytest.raises(psycopg2.errors.DiskFull, match="No space left on device"):
                        value(connection, f"INSERT INTO writes VALUES ({number}) RETURNING id")
                assert value(connection, f"SELECT count(*) FROM writes WHERE id = {number}") == 0
            assert value(connection, f"INSERT INTO writes VALUES ({number}) RETURNING id") == number


async def test_a_load_is_an_open_loop(serve: Serve) -> None:
    """Arrivals do not wait for answers, statuses are what they were, and the end waits for whoever is under way."""
    let_go = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await let_go.wait()
        return web.Response(text="waited")

    async def refuse(request: web.Request) -> web.Response:
        raise web.HTTPServiceUnavailable(headers={"Retry-After": "7"})

    async def drop(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    app = web.Application()
    for handler in (wait, refuse, drop):
        app.router.add_get(f"/{handler.__name__}", handler)
    paths = {f"/{name}": 1.0 for name in ("wait", "refuse", "drop")}
    async with serve(app) as served, load(str(served.url), rate=200, paths=paths, seed=1, patience=10) as run:
        begun = time.monotonic()
        await until(lambda: len(run.results) > 40)
        assert run.statuses() == {503: len([r for r in run.results if r.path == "/refuse"]),
                                  DROPPED: len([r for r in run.results if r.path == "/drop"])}  # fmt: skip
        assert {result.retry_after for result in run.results} == {7, None}
        let_go.set()
        first = await run.success_after(begun, "/wait")
        assert first in run.between(begun, time.monotonic())
        await run.stop()
        assert {result.path for result in run.results if result.status == 200} == {"/wait"}
        assert len({result.id for result in run.results}) == len(run.results)
        assert all(begun - 1 < result.at <= result.end < time.monotonic() for result in run.results)


async def test_a_load_that_nobody_answers() -> None:
    """Clients give up when their patience is over, and know where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with load(address, rate=50, paths={"/": 1}, seed=1, patience=0.2) as run:
            await until(lambda: run.statuses()[GAVE_UP] > 3)
        assert set(run.statuses()) == {GAVE_UP}
    async with load(address, rate=50, paths={"/": 1}, seed=1) as run:
        await until(lambda: run.statuses()[NOT_CONNECTED] > 3)
    assert set(run.statuses()) == {NOT_CONNECTED}


async def test_a_load_can_be_repeated() -> None:
    """One seed, one order of requests."""
    orders = []
    for _ in range(2):
        async with load("http://127.0.0.1:1", rate=300, paths={"/a": 1, "/b": 1}, seed=7) as run:
            await until(lambda run=run: len(run.results) > 60)
        orders.append([result.path for result in sorted(run.results)][:50])
    assert orders[0] == orders[1]


async def test_the_service_and_its_audit(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """Undisturbed it answers everything, what it has answered is in the database, and an audit finds nothing."""
    paths = {"/read": 4, "/write": 4, "/transfer": 4, "/pid": 1, "/slow/0.01": 1, "/hold/0.01": 1}
    async with service(server.dsn, maxsize=4, queue_target=None) as running:  # a slow machine sheds nobody
        async with load(running.url, paths=paths, seed=seed) as run:
            await until(lambda: {result.path for result in run.results} == set(paths))
        assert set(run.statuses()) == {200}
        assert len(await running.backends()) <= 4
        assert await running.writes_lost(run) == []
        ((lost,),) = await running.sql("DELETE FROM writes WHERE id = (SELECT min(id) FROM writes) RETURNING id")
        assert await running.writes_lost(run) == [lost]


async def test_an_audit_finds(server: EmbeddedPostgres, service: Service) -> None:
    """What is left behind, or was changed by half a transfer."""
    async with service(server.dsn, maxsize=2) as running:
        await running.sql("UPDATE accounts SET balance = balance + 1 WHERE id = 0")
        with pytest.raises(AssertionError):
            await running.audit()
        await running.sql("UPDATE accounts SET balance = balance - 1 WHERE id = 0")
        async with running.scope.acquire() as db:
            await db.fetchval("SELECT 1")
            with pytest.raises(AssertionError, match="quiet"):
                await running.audit(patience=0.2)
