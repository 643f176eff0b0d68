"""The examples of deployments lose no request: gunicorn_app.py under gunicorn, rolling.py twice on one port."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.conftest import until
from tests.kit.clients import head, read_answer
from tests.kit.load import DROPPED
from tests.kit.processes import alive, free_port, wait_for
from tests.server.conftest import Server
from tests.server.loaded import check_unnoticed, loaded

from .test_examples import EXAMPLES, load, none_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Database

ROOT = str(EXAMPLES.parent)

LINGER = 0.3


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def talk(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.close()
    return socket


@contextlib.asynccontextmanager
async def lingering() -> Any:
    """A runner of the example's kind that serves, and its port."""
    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/talk", talk)
    runner = load("gunicorn_app").LingeringRunner(app, linger=LINGER, shutdown_timeout=5.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner, runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_who_is_connected_is_answered_once_more() -> None:
    """During the linger a kept connection gets its answer, with Connection: close; a websocket keeps its own header."""
    async with contextlib.AsyncExitStack() as stack:
        runner, port = await stack.enter_async_context(lingering())
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, writer in kept:
            stack.callback(writer.close)
            writer.write(head("/"))
            assert "connection" not in (await read_answer(reader)).headers
        end = asyncio.create_task(runner.cleanup())
        await until(lambda: not runner.addresses, "the end of the listener")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        for (reader, writer), path in zip(kept, ("/", "/nowhere"), strict=False):
            writer.write(head(path))
            answer = await read_answer(reader)
            assert (answer.status, answer.headers["connection"]) == (200 if path == "/" else 404, "close")
            assert await reader.read() == b""
        reader, writer = kept[2]
        wanted = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
        writer.write(head("/talk", Connection="Upgrade", Upgrade="websocket", **wanted))
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"].lower()) == (101, "upgrade")
        writer.close()
        await end


async def test_who_is_not_accepted_yet_is_answered_too() -> None:
    """What has come before the end begins, and was not looked at by a busy loop, is accepted before it stops."""
    async with lingering() as (runner, port):
        clients = [asyncio.to_thread(ask, port) for _ in range(4)]
        answers = asyncio.gather(*clients)
        await asyncio.sleep(0)  # the threads start
        time.sleep(0.2)  # noqa: ASYNC251 - a busy loop
        await runner.cleanup()
        assert [answer[:12] for answer in await answers] == [b"HTTP/1.1 200"] * 4


def ask(port: int) -> bytes:
    import socket

    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head("/"))
        return b"".join(iter(lambda: client.recv(4096), b""))


@pytest.fixture
def start(database: Database) -> Iterator[Callable[..., Server]]:
    """``start(port, "examples/rolling.py")``: a process, its output, and a port for its clients."""
    with contextlib.ExitStack() as stack:

        def started(port: int, *arguments: str, **environ: str) -> Server:
            file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".log"))
            environ = {"DATABASE_URL": database.dsn, "WEB_CONCURRENCY": "2", "PYTHONPATH": ROOT, **environ}
            command = [sys.executable, *arguments]
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environ, stdout=file, stderr=subprocess.STDOUT
            )
            server = Server(process, port, file, "", stack.enter_context(ThreadPoolExecutor(1)))
            stack.callback(lambda: process.poll() is None and process.kill())
            stack.callback(lambda: print(server.output))
            return server

        yield started


@pytest.mark.slow
def test_gunicorn_is_reloaded_and_nobody_notices(start: Callable[..., Server], database: Database) -> None:
    """SIGHUP under load, with gunicorn.conf.py as it is: every request has its 200; at the end no backend is left."""
    port = free_port()
    conf = ("-c", "examples/gunicorn.conf.py", "--no-control-socket")
    server = start(port, "-m", "gunicorn", *conf, BIND=f"127.0.0.1:{port}")
    wait_for(lambda: server.get("/").status == 200, "the first answer")
    with loaded(server, {"/": 1}) as run:
        old = server.workers
        server.signal(signal.SIGHUP)
        wait_for(lambda: not any(map(alive, old)), "the old workers' end")
        assert server.get("/readyz").status == 200
    check_unnoticed(run)
    server.signal()
    assert server.ends() == 0, server.output
    assert "SIGKILL" not in server.output
    assert none_left(database)


@pytest.mark.slow
def test_two_processes_are_replaced_and_nobody_notices(start: Callable[..., Server], database: Database) -> None:
    """As its head says: another one starts, then an old one ends; only the kernel may drop what nobody has accepted."""
    port = free_port()
    servers: list[Server] = []

    def another() -> None:
        servers.append(start(port, "-W", "error", str(EXAMPLES / "rolling.py"), PORT=str(port)))
        wait_for(lambda: "Running on" in servers[-1].output, "the start")

    another()
    another()
    with loaded(servers[0], {"/": 1}) as run:
        for old in servers[:2]:
            another()
            old.signal()
            assert old.ends() == 0, old.output
    assert [each for each in run.kept.results if each.used and each.status != 200] == []
    assert {*run.kept.statuses(), *run.new.statuses()} <= {200, DROPPED}
    assert run.kept.unanswered() == run.new.unanswered() == []
    for server in servers[2:]:
        server.signal()
        server.signal(signal.SIGINT)  # an impatient one changes nothing
        assert server.ends() == 0, server.output
    assert none_left(database)


def test_the_numbers_fit_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule of docs/shutdown.md holds for gunicorn.conf.py, and the pod lives long enough for it."""
    monkeypatch.setenv("WEB_CONCURRENCY", "2")  # it would set this itself, for all that comes after
    example = load("gunicorn_app")
    conf = runpy.run_path(str(EXAMPLES / "gunicorn.conf.py"))
    end = example.LINGER + 2 * example.SHUTDOWN_TIMEOUT + example.DRAIN_GRACE + 1
    assert end < conf["graceful_timeout"]
    assert end < conf["timeout"]
    manifest = (EXAMPLES / "kubernetes.yaml").read_text()
    pause = int(re.findall(r'sleep, "(\d+)"', manifest)[0])
    grace = int(re.findall(r"terminationGracePeriodSeconds: (\d+)", manifest)[0])
    assert grace >= pause + conf["graceful_timeout"] + 2


def test_the_probes_ask_what_is_there() -> None:
    """Every path of a probe is a route of the application that the manifest runs."""
    paths = re.findall(r"httpGet: \{path: (\S+),", (EXAMPLES / "kubernetes.yaml").read_text())
    app = load("gunicorn_app").make_app("postgresql://localhost/app")
    assert len(paths) == 3
    assert set(paths) <= {resource.canonical for resource in app.router.resources()}


def test_rolling_is_the_same_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves what gunicorn_app.py makes, so that both have one end."""
    monkeypatch.syspath_prepend(EXAMPLES)
    assert importlib.import_module("rolling").make_runner.__module__ == "gunicorn_app"
