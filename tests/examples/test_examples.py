"""Every example runs as it is written, does what it says, and ends without leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import WSCloseCode, web

from tests.conftest import DEADLINE, Database, Serve, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if not path.name.endswith(".conf.py"))
START_LIMIT = 30.0

audited = pytest.mark.usefixtures("poolscope_audit")
"""For those that run in this process: what a script leaves behind is seen by its exit, and on the server."""

RUN = """
import functools, runpy, socket, sys
from aiohttp import web
run_app = web.run_app
web.run_app = lambda app, **_: run_app(app, sock=socket.socket(fileno=int(sys.argv[1])))
runpy.run_path(sys.argv[2], run_name="__main__")
"""
"""Runs an example as `python examples/x.py` does, but at a port that is free."""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def none_left(database: Database) -> bool:
    """Whether all backends end; a server needs a moment to see that a connection is closed."""
    end = time.monotonic() + DEADLINE
    while database.backends() and time.monotonic() < end:
        time.sleep(0.01)
    return not database.backends()


def test_each_example_has_a_test() -> None:
    """An example that nobody runs is wrong sooner or later."""
    written = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    known = ('load("{}")', '"{}.py"', "examples.{}")
    stems = [name.removesuffix(".py") for name in SCRIPTS]
    assert [stem for stem in stems if not any(form.format(stem) in written for form in known)] == []


@dataclass
class Script:
    """An example that runs as a program of its own. What it has printed is known when it has ended."""

    address: tuple[str, int]
    printed: str = ""

    def ask(self, path: str, count: int = 1) -> list[bytes]:
        """The whole answers to so many requests that are under way at once."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(self.address)) for _ in range(count)]
            for client in clients:
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return [b"".join(iter(partial(client.recv, 4096), b"")) for client in clients]


@contextlib.contextmanager
def script(name: str, database: Database) -> Iterator[Script]:
    """`python examples/x.py`, ended by Ctrl-C after the block: exit code 0, no warning, no backend left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RUN, str(listener.fileno()), str(EXAMPLES / name)],
            env=os.environ | {"DATABASE_URL": database.dsn, "PYTHONUNBUFFERED": "1"},
            cwd=EXAMPLES.parent,
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], START_LIMIT)[0]
            assert "Running on" in process.stdout.readline()
            running = Script(listener.getsockname())
            yield running
            process.send_signal(signal.SIGINT)
            running.printed, errors = process.communicate(timeout=START_LIMIT)
        finally:
            process.kill()
            process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert none_left(database)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if "web.run_app(" in (EXAMPLES / name).read_text()])
def test_it_runs_as_a_script(name: str, database: Database) -> None:
    """Each of them serves, over a connection it has opened at start, and ends as it should."""
    with script(name, database) as running:
        assert database.backends()
        [answer] = running.ask("/nowhere")
        assert re.match(rb"HTTP/1.1 40\d ", answer)


@audited
async def test_basic(dsn: str, serve: Serve) -> None:
    """request["db"] answers, a slow statement is a 504, and a route without a connection works."""
    async with serve(load("basic").make_app(dsn)) as served:
        status, text = await served.get("/settings/max_connections")
        assert (status, json.loads(text)["name"]) == (200, "max_connections")
        assert await served.status("/settings/none") == 404
        assert await served.status("/slow") == 504
        assert "no connection" in (await served.get("/version"))[1]


@audited
async def test_explicit_pair(dsn: str, serve: Serve, database: Database) -> None:
    """Two pools side by side, each request in one of them, inside a middleware that sees every answer."""
    async with serve(load("explicit_pair").make_app(dsn)) as served:
        assert await served.get("/") == (200, f'"{database.sql("SELECT current_database()")[0][0]}"')
        async with served.client.get(served.url / "report") as response:
            assert (await response.json())["tables"] > 0
            assert response.headers["Server-Timing"].startswith("app;dur=")
        async with served.client.get(served.url / "nowhere") as response:
            assert response.headers["Server-Timing"].startswith("app;dur=")
        assert len(database.backends()) == 2


@audited
async def test_transactions(dsn: str, serve: Serve, database: Database) -> None:
    """What is refused is rolled back, and many who move coins at once lose none."""
    async with serve(load("transactions").make_app(dsn)) as served:

        async def post(path: str, **form: Any) -> int:
            async with served.client.post(served.url / path, data=form) as response:
                return response.status

        assert await post("put", to="left", amount=100) == 200
        assert await post("put", to="right", amount=100) == 200
        assert await post("put", to="left", amount=900) == 400
        assert await post("move", **{"from": "left", "to": "right", "amount": 101}) == 409
        moves = [{"from": a, "to": b, "amount": 1} for a, b in [("left", "right"), ("right", "left")] * 5]
        done = await asyncio.gather(*(post("move", **move) for move in moves))
        assert done.count(200) > 0
        assert await served.status("/") == 200
    assert database.sql("SELECT sum(coins) FROM poolscope_jars") == [(200,)]


@audited
async def test_background_task(dsn: str, serve: Serve, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It measures again and again, holds nothing in between, survives a lost connection, and ends with the app."""
    example = load("background_task")
    monkeypatch.setattr(example, "INTERVAL", 0.01)
    app = example.make_app(dsn)
    async with serve(app) as served:
        latest = app[example.LATEST]
        await until(lambda: latest.rounds >= 3, "the third round")
        assert json.loads((await served.get())[1])["bytes"] > 1_000_000
        rounds = latest.rounds
        database.kill(waiting=False)
        await until(lambda: latest.rounds > rounds + 3, "rounds after the connection was lost")
    rounds = latest.rounds
    assert none_left(database)
    await asyncio.sleep(0.05)
    assert latest.rounds == rounds


@audited
async def test_background_task_ends_when_the_drain_is_first(dsn: str, serve: Serve) -> None:
    """A pool that closes before the task is cancelled ends it quietly."""
    example = load("background_task")
    app = web.Application()
    scope = app[example.SCOPE] = example.poolscope.setup(app, dsn)
    async with serve(app):
        scope.begin_drain()
        await asyncio.wait_for(example.measure(scope, example.Latest()), DEADLINE)


@audited
async def test_streaming_export(dsn: str, serve: Serve) -> None:
    """Both exports are complete, and a client that does not read the small one pins no connection."""
    example = load("streaming_export")
    app = example.make_app(dsn)
    async with serve(app) as served:
        for path, count in (("/small.csv", 100_000), ("/large.csv", 300_000)):
            status, text = await served.get(path)
            assert (status, text.count("\n")) == (200, count)
            assert text.splitlines()[-1].startswith(f"{count},")

        def reading_nothing(path: str) -> socket.socket:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.port))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return client

        scope = app[example.SCOPE]
        lent = scope.stats().lent
        with reading_nothing("/small.csv"):
            await until(lambda: (scope.stats().lent, scope.stats().in_use) == (lent + 1, 0), "the early release")
            assert scope._pool is not None
            assert scope._pool.attached  # its handler is still writing
        with reading_nothing("/large.csv"):
            await until(lambda: scope.stats().in_use == 1, "the borrow of the large one")
        await until(lambda: (scope.stats().in_use, scope._pool.attached) == (0, 0), "the end of both")


@audited
async def test_websocket(dsn: str, serve: Serve, database: Database) -> None:
    """Messages are answered one by one with nothing held in between, and the end is said goodbye to."""
    example = load("websocket")
    app = example.make_app(dsn)
    async with serve(app) as served, served.client.ws_connect(served.url) as socket:
        for name in ("max_connections", "port"):
            await socket.send_str(name)
            [(value,)] = database.sql("SELECT setting FROM pg_settings WHERE name = %s", name)
            assert await socket.receive_json(timeout=DEADLINE) == {"value": value}
            assert app[example.SCOPE].stats().in_use == 0
        goodbye = asyncio.create_task(socket.receive())
        await app.shutdown()
        message = await asyncio.wait_for(goodbye, DEADLINE)
        assert message.data == WSCloseCode.GOING_AWAY


@audited
async def test_gunicorn_app(dsn: str, serve: Serve) -> None:
    """The same app without gunicorn."""
    async with serve(load("gunicorn_app").make_app(dsn)) as served:
        assert json.loads((await served.get())[1])["worker"] == os.getpid()


def test_gunicorn_leaves_room_for_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 * shutdown_timeout + drain_grace + 1 s < graceful_timeout."""
    import runpy

    monkeypatch.setenv("WEB_CONCURRENCY", "2")  # it would set this itself, for all that comes after
    example = load("gunicorn_app")
    graceful = runpy.run_path(str(EXAMPLES / "gunicorn.conf.py"))["graceful_timeout"]
    assert graceful > 2 * example.SHUTDOWN_TIMEOUT + example.DRAIN_GRACE + 1


def test_gunicorn(database: Database) -> None:
    """Two workers, each with a pool of its own; SIGTERM ends them with exit code 0 and no backend left."""
    environ = {name: value for name, value in os.environ.items() if name != "WEB_CONCURRENCY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "examples/gunicorn.conf.py"],
        env=environ | {"DATABASE_URL": database.dsn, "BIND": "127.0.0.1:0"},
        cwd=EXAMPLES.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        log = ""
        while not (listening := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log)):
            assert select.select([process.stderr], [], [], START_LIMIT)[0], log
            read = os.read(process.stderr.fileno(), 65536).decode()
            assert read, log
            log += read
        workers: dict[int, set[int]] = {}
        end = time.monotonic() + START_LIMIT
        while len(workers) < 2:
            assert time.monotonic() < end, workers
            with socket.create_connection(("127.0.0.1", int(listening[1]))) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: client.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            workers.setdefault(body["worker"], set()).add(body["backend"])
        first, second = workers.values()
        assert not first & second
        process.terminate()
        log += process.communicate(timeout=START_LIMIT)[1]
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert "SIGKILL" not in log
    assert none_left(database)
