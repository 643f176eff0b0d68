"""The page under gunicorn: each worker shows itself, says so, and ends with somebody watching."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SERVICE = """
import os
from aiohttp import web
import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import setup_dashboard

app = web.Application()
setup_dashboard(app, poolscope.setup(app, os.environ["DSN"], maxsize=2), allow="loopback")
"""
START_LIMIT = 30.0


@pytest.fixture
def gunicorn(dsn: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Two workers, and the port they listen at."""
    (tmp_path / "service.py").write_text(SERVICE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    how = "--worker-class aiohttp.GunicornWebWorker --log-level warning --graceful-timeout 60 --bind"
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "service:app", *how.split(), f"127.0.0.1:{port}"],
        cwd=tmp_path,
        env={**os.environ, "DSN": dsn, "WEB_CONCURRENCY": "2", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process, port
    finally:
        process.terminate()
        process.wait(START_LIMIT)


def worker(port: int) -> dict[str, Any] | None:
    """What the worker that answers says of itself; None while there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_pool/state.json", timeout=DEADLINE) as answer:
            told: dict[str, Any] = json.load(answer)["worker"]
            return told
    except (urllib.error.URLError, ConnectionError):
        return None


def test_each_worker_shows_itself(gunicorn: tuple[subprocess.Popen[bytes], int]) -> None:
    """Reloads reach either worker, a stream keeps to one, and with it open all end well within the grace."""
    process, port = gunicorn
    seen: dict[int, int] = {}
    end = time.monotonic() + START_LIMIT
    while len(seen) < 2:
        assert time.monotonic() < end, seen
        if (told := worker(port)) is not None:
            seen[told["pid"]] = told["workers"]
    assert set(seen.values()) == {2}
    assert process.pid not in seen
    with socket.create_connection(("127.0.0.1", port), timeout=START_LIMIT) as client:
        client.sendall(b"GET /_pool/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        pids, last = set(), {}
        with client.makefile("rb") as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    last = json.loads(line[6:])
                    if not pids:
                        process.send_signal(signal.SIGTERM)
                    pids.add(last["worker"]["pid"])
    assert last["ended"]
    assert len(pids & seen.keys()) == len(pids) == 1
    assert process.wait(START_LIMIT) == 0
