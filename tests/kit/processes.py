"""Programs that serve: how they are started, where, and waiting for what they do. Everything here blocks."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]

PATIENCE = 30.0
"""Seconds: longer than any of these processes lives, shorter than a hang."""

WORKERS = {"gunicorn": "aiohttp.GunicornWebWorker", "gunicorn-uvloop": "aiohttp.GunicornUVLoopWebWorker"}


def wait_for(condition: Callable[[], Any], what: str, deadline: float = PATIENCE) -> Any:
    """Wait for a condition, not for a time."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {deadline:g} s"
        time.sleep(0.01)
    return value


def python(*, dev: bool) -> list[str]:
    """Development mode finds more, and takes twice as long for everything."""
    return [sys.executable, *(("-X", "dev") if dev else ("-W", "always"))]


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
