"""The example of gunicorn under both of aiohttp's workers; both loops are asked for, neither is taken for granted."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .test_examples import EXAMPLES, START_LIMIT, none_left

if TYPE_CHECKING:
    from tests.conftest import Database

pytestmark = pytest.mark.slow


class Gunicorn:
    """gunicorn with examples/gunicorn.conf.py, its log as far as it has been read, and its port."""

    def __init__(self, worker: str, dsn: str) -> None:
        environ = {name: value for name, value in os.environ.items() if name != "WEB_CONCURRENCY"}
        conf = ["-c", "examples/gunicorn.conf.py", "--worker-class", worker, "--no-control-socket"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *conf],
            env=environ | {"DATABASE_URL": dsn, "BIND": "127.0.0.1:0"},
            cwd=EXAMPLES.parent,
            stderr=subprocess.PIPE,
        )
        self.log = ""

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Until its log has this so many times."""
        assert self.process.stderr is not None
        end = time.monotonic() + START_LIMIT
        while len(found := re.findall(pattern, self.log)) < count:
            readable, _, _ = select.select([self.process.stderr], [], [], max(0.0, end - time.monotonic()))
            assert readable, self.log
            read = os.read(self.process.stderr.fileno(), 65536)
            assert read, self.log
            self.log += read.decode()
        return found

    def ask(self, port: int) -> tuple[int, int]:
        """The worker that answers, and its backend."""
        connection = HTTPConnection("127.0.0.1", port, timeout=START_LIMIT)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            answer = connection.getresponse()
            body = json.loads(answer.read())
            assert answer.status == 200, body
            return body["worker"], body["backend"]
        finally:
            connection.close()


def uses_uvloop(pid: int) -> bool:
    """Whether uvloop is loaded into that process."""
    return "uvloop" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into the workers by way of /proc")
@pytest.mark.parametrize("worker", ["aiohttp.GunicornWebWorker", "aiohttp.GunicornUVLoopWebWorker"])
def test_both_workers(worker: str, database: Database) -> None:
    """A pool in each of two workers, a reload that replaces both, and an end with exit code 0 and no backend left."""
    gunicorn = Gunicorn(worker, database.dsn)
    try:
        [port] = gunicorn.wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)")
        backends: dict[int, set[int]] = {}

        def serving(wanted: set[int]) -> bool:
            pid, backend = gunicorn.ask(int(port))
            backends.setdefault(pid, set()).add(backend)
            return wanted <= {*backends}

        pids = {int(pid) for pid in gunicorn.wait_for(r"Booting worker with pid: (\d+)", 2)}
        end = time.monotonic() + START_LIMIT
        while not serving(pids):
            assert time.monotonic() < end, backends
        first, second = (backends[pid] for pid in pids)
        assert not first & second
        assert {uses_uvloop(pid) for pid in pids} == {"UVLoop" in worker}
        gunicorn.process.send_signal(signal.SIGHUP)
        successors = {int(pid) for pid in gunicorn.wait_for(r"Booting worker with pid: (\d+)", 4)} - pids
        assert len(successors) == 2
        while not serving(successors):
            assert time.monotonic() < end + START_LIMIT, backends
        gunicorn.process.terminate()
        gunicorn.log += gunicorn.process.communicate(timeout=START_LIMIT)[1].decode()
    finally:
        gunicorn.process.kill()
        gunicorn.process.communicate()
    assert gunicorn.process.returncode == 0, gunicorn.log
    assert "Traceback" not in gunicorn.log
    assert "SIGKILL" not in gunicorn.log
    assert none_left(database)
