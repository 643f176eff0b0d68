"""The service of prometheus_service.py under gunicorn, for tests that ask it and end its workers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import IO

from tests.kit.processes import PATIENCE, REPOSITORY, WORKERS, alive, free_port, python, wait_for

from .test_prometheus import Numbers, series


def pids(numbers: Numbers) -> set[int]:
    """Which processes have series of the pool."""
    return {int(dict(labels)["pid"]) for name, labels in numbers if name == "poolscope_state"}


def counters(numbers: Numbers) -> Numbers:
    endings = ("_total", "_seconds_count", "_seconds_bucket", "_seconds_sum")
    return {key: number for key, number in numbers.items() if key[0].endswith(endings)}


def of(numbers: Numbers, name: str, **labels: str) -> dict[int, float]:
    """The values of one series of the pool "db", by process."""
    wanted = (labels | {"db_client_connection_pool_name": "db"}).items()
    return {
        int(dict(key)["pid"]): number for (each, key), number in numbers.items() if each == name and wanted <= set(key)
    }


@dataclass
class Gunicorn:
    """Several workers that share a directory."""

    process: subprocess.Popen[bytes]
    port: int
    file: IO[bytes]
    directory: Path

    def get(self, path: str = "/") -> str:
        """Ask on a connection of its own: the kernel chooses the worker."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, text
            return text
        finally:
            connection.close()

    def scrape(self) -> Numbers:
        return series(self.get("/metrics"))

    @property
    def output(self) -> str:
        return Path(self.file.name).read_text()

    @property
    def started(self) -> list[int]:
        """Every worker that has been ready so far."""
        return [int(pid) for pid in re.findall(r"^ready (\d+)$", self.output, re.MULTILINE)]

    @property
    def workers(self) -> set[int]:
        """Those that run."""
        return {pid for pid in self.started if alive(pid)}

    def files(self) -> set[int]:
        """Of which processes there are files."""
        return {int(path.name.split("-")[1]) for path in self.directory.glob("poolscope-*")}


Launch = Callable[..., Gunicorn]


@contextlib.contextmanager
def launching(dsn: str, directory: Path) -> Iterator[Launch]:
    """``with launching(dsn, directory) as launch: launch(workers=2)``: a service whose workers are ready."""
    running: list[Gunicorn] = []

    def launched(
        *options: str, workers: int = 2, kind: str = "gunicorn", dev: bool = True, interval: float = 0.2
    ) -> Gunicorn:
        port = free_port()
        file = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - closed below
        program = str(Path(sys.executable).with_name("gunicorn"))
        command = [*python(dev=dev), program, "tests.contrib.prometheus_service:factory", "--no-control-socket"]
        command += ["--worker-class", WORKERS[kind], "--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
        env = os.environ | {"APP_DSN": dsn, "APP_INTERVAL": str(interval), "PROMETHEUS_MULTIPROC_DIR": str(directory)}
        process = subprocess.Popen([*command, *options], cwd=REPOSITORY, env=env, stdout=file, stderr=subprocess.STDOUT)
        server = Gunicorn(process, port, file, directory)
        running.append(server)
        wait_for(lambda: process.poll() is not None or len(server.started) == workers, "the start")
        assert process.poll() is None, server.output
        return server

    yield launched
    for server in running:
        server.process.terminate()
        try:
            server.process.wait(PATIENCE)
        finally:
            server.process.kill()
            server.process.wait()
            for worker in server.workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            print(server.output)
            server.file.close()
