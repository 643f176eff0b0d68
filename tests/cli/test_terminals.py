"""Wherever the output goes, and whatever becomes of it there: an exit code as documented, and no traceback."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aiohttp_poolscope.cli.doctor import CANNOT_TELL, WELL

from .programs import LIMIT, REPOSITORY, START_LIMIT, Terminal, command, environment, interruptible

PLAN = ("doctor", "--max-connections", "100", "--rate", "10", "--lease", "0.01")


def through_a_shell(line: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in a shell, where ``line`` has a %."""
    return subprocess.run(
        ["/bin/sh", "-c", line.replace("%", shlex.join(command(*arguments)))],
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )


def test_a_reader_that_has_seen_enough(dsn: str) -> None:
    """`doctor | head -1` is one line, and nothing on stderr."""
    done = through_a_shell("% | head -1", "doctor", dsn)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_disk_that_is_full() -> None:
    """Exit code 2, and one line that says so."""
    done = through_a_shell("% > /dev/full", *PLAN)
    assert done.returncode == CANNOT_TELL
    assert re.fullmatch(r"aiohttp-poolscope: .*No space left on device\n", done.stderr)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed(dsn: str, closed: str) -> None:
    """Started without one of its three streams it does its work all the same, and says nothing where nobody asked."""
    done = through_a_shell(f"% {closed}", "doctor", dsn)
    assert (done.returncode, done.stderr) == (WELL, "")
    assert ("All is well." in done.stdout) is (closed in ("2>&-", "<&-"))
    failed = through_a_shell(f"% {closed}", "doctor", "postgresql://me:hunter2@127.0.0.1:1/x")
    assert (failed.returncode, failed.stdout) == (CANNOT_TELL, "")
    assert ("Connection refused" in failed.stderr) is (closed in (">&-", "<&-"))


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_without_colours(dsn: str, environ: dict[str, str]) -> None:
    """Where colours cannot be, or are not wanted, there are none."""
    with Terminal("doctor", dsn, **environ) as terminal:
        assert terminal.end() == WELL
        assert "All is well." in terminal.output
        assert "\x1b" not in terminal.output


def test_live_on_a_terminal_that_cannot_move_its_cursor(dsn: str) -> None:
    """There `top` prints one look after the other, as it does into a file, and Ctrl-C ends it."""
    with Terminal("top", dsn, "--interval", "0.05", TERM="dumb") as terminal:
        for _ in range(3):
            terminal.until(r"\d+ backends")
        terminal.key("\x03")
        assert terminal.end() == WELL
        assert "\x1b" not in terminal.output


def test_a_narrow_terminal(dsn: str) -> None:
    """40 columns: the doctor's lines are whole, for the terminal to wrap; `top` cuts them, to stay in its place."""
    with Terminal("doctor", dsn, columns=40) as terminal:
        terminal.until("client_connection_check_interval")
        assert terminal.end() == WELL
    with Terminal("top", dsn, "--interval", "0.05", columns=40) as terminal:
        terminal.until("\u2026")
        terminal.key("\x03")
        assert terminal.end() == WELL
    shown = [re.sub(r"\x1b\[[0-9?]*[A-Za-z]|\^C", "", line) for line in re.split(r"[\r\n]+", terminal.output)]
    assert max(map(len, shown)) <= 40


def test_ctrl_c_while_the_doctor_waits() -> None:
    """At a server that accepts and says nothing, Ctrl-C ends it with 2, as what could not be told."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(START_LIMIT)
        dsn = f"postgresql://me:hunter2@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable"
        with Terminal("doctor", dsn) as terminal, silent.accept()[0]:
            terminal.key("\x03")
            assert terminal.end() == CANNOT_TELL
        assert "doctor: interrupted" in terminal.output
        assert "Traceback" not in terminal.output
        assert "hunter2" not in terminal.output


SLOW_MODULE = """
import sys, time
class Slow:
    def find_spec(self, name, *_):
        if name == "aiohttp_poolscope.cli.doctor":
            print("reading", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from aiohttp_poolscope.cli import main
sys.exit(main(["doctor", "--help"]))
"""


def test_ctrl_c_while_it_still_reads_its_modules() -> None:
    """Interrupted before a command has begun, it ends with 130 and without a word."""
    arguments = [sys.executable, "-W", "error", "-c", SLOW_MODULE]
    with subprocess.Popen(
        [*interruptible()[:3], *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=START_LIMIT)
    assert (process.returncode, errors) == (130, "")
