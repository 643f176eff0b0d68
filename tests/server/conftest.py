"""Servers in processes of their own, that tests can signal; and clients for them that block, one thread each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.kit.drained import drains
from tests.kit.processes import PATIENCE, REPOSITORY, WORKERS, free_port, python, wait_for

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.kit.drained import Drained

KINDS = ("run_app", "gunicorn", "gunicorn-uvloop")

BOUND = 15.0
"""Seconds: far below the two minutes that aiohttp gives a stuck handler, and gunicorn's thirty."""


class Answer(NamedTuple):
    """What came back; status 0: nothing did."""

    status: int
    headers: dict[str, str]
    body: str


@dataclass
class Server:
    """A running server, its output, and clients for it."""

    process: subprocess.Popen[bytes]
    port: int
    file: IO[bytes]
    name: str
    threads: ThreadPoolExecutor

    @property
    def output(self) -> str:
        """Everything it has said so far."""
        return Path(self.file.name).read_text()

    def get(self, path: str) -> Answer:
        """Ask on a connection of its own, which the client would like to keep."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            return answered(connection.getresponse())
        except (OSError, HTTPException):
            return Answer(0, {}, "")
        finally:
            connection.close()

    def ask(self, path: str) -> Future[Answer]:
        """``get`` in a thread."""
        return self.threads.submit(self.get, path)

    def send(self, data: bytes) -> socket.socket:
        """A bare socket with ``data`` sent."""
        connected = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        connected.sendall(data)
        return connected

    def listens(self) -> bool:
        """Whether it takes connections. Not by a request: one that comes in the moment of the end may hang."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def has_started(self, path: str, times: int = 1) -> None:
        """Wait until that many handlers of this path run."""
        wait_for(lambda: self.output.count(f"started {path}\n") >= times, f"the start of {path}")

    def signal(self, number: int = signal.SIGTERM) -> float:
        """Send it a signal; when that was."""
        self.process.send_signal(number)
        return time.monotonic()

    def ends(self) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(PATIENCE)

    @property
    def ready(self) -> int:
        """How many processes have opened their pool so far."""
        return self.output.splitlines().count("ready")

    @property
    def workers(self) -> list[int]:
        """The process ids of gunicorn's workers."""
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def began(self) -> set[int]:
        """The requests of the traffic that have reached the application."""
        return {int(each) for each in re.findall(r"^began (\d+)$", self.output, re.MULTILINE)}

    def drained(self) -> list[Drained]:
        """What it has said about its drains."""
        return drains(self.output)


def answered(response: HTTPResponse) -> Answer:
    body = response.read().decode()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


Launch = Callable[..., Server]


def arguments(kind: str, port: int, workers: int, options: tuple[str, ...]) -> list[str]:
    """What Python is told to run."""
    if kind == "run_app":
        return ["-m", "tests.server.applications"]
    # Not -m gunicorn: that one cannot start itself again on SIGUSR2.
    gunicorn = [str(Path(sys.executable).with_name("gunicorn")), "tests.server.applications:factory"]
    settings = ["--worker-class", WORKERS[kind], "--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
    return [*gunicorn, *settings, "--no-control-socket", *options]


@pytest.fixture
def launch(dsn: str, database: Database) -> Iterator[Launch]:
    """``launch("run_app", drain_grace=1)``: a server that answers; none of its connections outlives it."""
    servers: list[Server] = []

    def launched(
        kind: str,
        *,
        layout: str = "setup",
        workers: int = 1,
        options: tuple[str, ...] = (),
        runner: dict[str, Any] | None = None,
        address: str = dsn,
        port: int | None = None,
        fails: bool = False,
        dev: bool = True,
        **settings: Any,
    ) -> Server:
        port = port or free_port()
        name = f"poolscope-{port}"
        env = os.environ | {
            "APP_DSN": address,
            "APP_PORT": str(port),
            "APP_LAYOUT": layout,
            "APP_RUNNER": json.dumps(runner or {}),
            "APP_SETTINGS": json.dumps({"maxsize": 2, "application_name": name, **settings}),
        }
        command = [*python(dev=dev), *arguments(kind, port, workers, options)]
        file = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - closed below
        process = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=file, stderr=subprocess.STDOUT)
        server = Server(process, port, file, name, ThreadPoolExecutor(16))
        servers.append(server)
        if fails:
            return server
        # All of them: gunicorn forgets a signal that comes while a worker starts.
        wait_for(lambda: process.poll() is not None or server.ready == workers, "the start")
        wait_for(lambda: process.poll() is not None or server.get("/").status, "the first answer")
        assert process.poll() is None, server.output
        return server

    yield launched
    for server in servers:
        if server.process.poll() is None:
            left = server.workers  # of a master that is killed they would end too, but at their leisure
            server.process.kill()
            server.process.wait()
            for worker in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        server.threads.shutdown(wait=False, cancel_futures=True)
        print(server.output)
        server.file.close()


@pytest.fixture
def clean(database: Database) -> Callable[..., None]:
    """What must hold of every server that was told to end. ``also``: what it may say all the same."""

    def check(server: Server, *, also: tuple[str, ...] = ()) -> None:
        assert server.ends() == 0, server.output
        left = database.sql("SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s", server.name)
        # What the server process was told by our exit, it does at once, but not in the same moment.
        wait_for(
            lambda: not database.sql("SELECT 1 FROM pg_stat_activity WHERE application_name = %s", server.name),
            f"the end of {left}",
            5.0,
        )
        # asyncio's own: who connects in the moment in which the listener is closed is forgotten, half accepted.
        too_late = ("Traceback", "ResourceWarning") if "Error on transport creation" in server.output else ()
        for bad in ("Traceback", "ResourceWarning", "never retrieved", "never awaited", "was destroyed"):
            assert bad in (*also, *too_late) or bad not in server.output, server.output

    return check
