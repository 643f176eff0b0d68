"""The command as a program of its own, the services it looks at, and a terminal to run it in."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.conftest import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

REPOSITORY = Path(__file__).parents[2]
LIMIT = 60.0
START_LIMIT = 30.0

SERVE = """
import runpy, socket, sys
from aiohttp import web
run_app = web.run_app
listener, program, cancelling = socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3] == "cancelling"
web.run_app = lambda app, **_: run_app(app, sock=listener, handler_cancellation=cancelling, access_log=None)
runpy.run_path(program, run_name="__main__")
"""
"""Runs a program as `python program.py` does, but at a port that is free."""

CONTROLLED = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.Handlers[sys.argv[1]])
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Makes the terminal the one whose Ctrl-C is a signal, and says what that does at first: tests that are run in the
background ignore it, and would hand that on."""

INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def environment(**more: str | None) -> dict[str, str]:
    """This process's, without what would choose a database or a number of processes."""
    without = {"DATABASE_URL", "WEB_CONCURRENCY", *more}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | {k: v for k, v in more.items() if v is not None}


def command(*arguments: str) -> list[str]:
    """How the command is run, with warnings as errors."""
    return [sys.executable, "-W", "error", "-m", "aiohttp_poolscope", *arguments]


def interruptible(*arguments: str) -> list[str]:
    """The same, with the SIGINT of a program that was started in the foreground."""
    return [sys.executable, "-c", INTERRUPTIBLE, *command(*arguments)]


def run(*arguments: str, cwd: Path = REPOSITORY, **more: str | None) -> subprocess.CompletedProcess[str]:
    """Run it to its end; never with a traceback."""
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Service(NamedTuple):
    """A service that runs."""

    url: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def service(program: Path, database: Database, *, cancelling: bool = False) -> Iterator[Service]:
    """A service as a process of its own. It is killed at the end: what it has lost would hold it up."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        arguments = [str(listener.fileno()), str(program), "cancelling" if cancelling else "default"]
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *arguments],
            env=environment(DATABASE_URL=database.dsn),
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], START_LIMIT)[0]
        assert "Running on" in process.stdout.readline()
        yield Service(url, process)
    finally:
        process.kill()
        process.communicate()
        database.kill(waiting=False)  # a statement whose client is dead may run on


class Terminal:
    """The command in a terminal of 24 lines and so many columns; ``background``: as a script starts it with an &."""

    def __init__(self, *arguments: str, background: bool = False, columns: int = 100, **environ: str | None) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED, "SIG_IGN" if background else "SIG_DFL", *command(*arguments)],
            cwd=REPOSITORY,
            env=environment(**{"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24", "NO_COLOR": None, **environ}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.output = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def until(self, pattern: str, limit: float = START_LIMIT) -> re.Match[str]:
        """Read what it shows until something is in it; what was read before does not count again."""
        end = time.monotonic() + limit
        while not (found := re.search(pattern, self.output)):
            said = self._read(max(0.0, end - time.monotonic()))
            assert said, self.output
            self.output += said
        self.output = self.output[found.end() :]
        return found

    def key(self, key: str) -> None:
        """Press a key."""
        os.write(self._master, key.encode())

    def end(self, limit: float = START_LIMIT) -> int:
        """Read the rest; its exit status."""
        end = time.monotonic() + limit
        while said := self._read():
            self.output += said
            assert time.monotonic() < end, "it does not end"
        return self.process.wait(DEADLINE)

    def _read(self, limit: float = START_LIMIT) -> str:
        assert select.select([self._master], [], [], limit)[0], f"it is silent after:\n{self.output}"
        try:
            return os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # Linux: nobody has the other side open any more
            return ""
