"""The soak itself: that it runs, that it says what it must say, and that it finds what is broken."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAULTS = "restart immediate,cut with rst,expired,kill active,password rotated"
"""And no overload: what is one depends on the machine, and on who else is at work there."""

ROWS = """requests that waited, in calm seconds, clients that left, ends of handlers, back, borrows, events, gate,
event loop, pool, check, tasks of the pool, backends, acknowledged writes, sum of accounts, alive, memory, growth,
descriptors, backends after the cleanup, descriptors after the cleanup, tasks after the cleanup, connections, log,
findings"""

BORROWED = "    def take_back(self, slot: Slot[OpenConnection]) -> None:\n"

LOST = """
        self.taken_back = getattr(self, "taken_back", 0) + 1
        if not self.taken_back % 50:
            return
"""


def soak(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A short one."""
    command = [sys.executable, "-m", "tests.faults.soak", "--seed=7", "--rate=40", "--calm=1.2", *options]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=110)


@pytest.mark.slow
def test_a_short_soak_passes(tmp_path: Path) -> None:
    """Twelve seconds of faults leave nothing behind, and the table has every line."""
    done = soak(ROOT, "--minutes=0.2", f"--faults={FAULTS}", f"--json={tmp_path / 'table'}")
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "table").read_text())
    assert [row["name"].strip() for row in table["rows"]] == [name.strip() for name in ROWS.split(",")]
    assert table["findings"] == []
    assert set(table["recoveries"]) <= set(FAULTS.split(","))
    assert len(table["recoveries"]) >= 2
    for row in table["rows"]:
        assert row["name"] in done.stdout
    assert "--minutes 0.2 --seed 7 --rate 40 --calm 1.2" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_a_soak_finds_a_connection_that_is_lost(tmp_path: Path) -> None:
    """A pool that forgets to take back one connection in fifty does not pass."""
    for folder in ("aiohttp_poolscope", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    pool = tmp_path / "aiohttp_poolscope" / "pool" / "pool.py"
    before, found, after = pool.read_text().partition(BORROWED)
    assert found
    said, end, rest = after.partition('"""\n')
    pool.write_text(f"{before}{found}{said}{end}{LOST}{rest}")
    done = soak(tmp_path, "--minutes=0.05", "--faults=expired")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"back +BAD \d+ in use", done.stdout), done.stdout


@pytest.mark.slow
def test_ctrl_c_ends_a_soak_in_order() -> None:
    """Ctrl-C in the terminal ends it with the table of what was so far, and leaves no server behind."""
    command = [sys.executable, "-m", "tests.faults.soak", "--minutes=5", "--seed=7", "--rate=40", "--calm=60"]
    outer, inner = pty.openpty()
    with os.fdopen(outer, "rb", buffering=0) as screen:
        process = subprocess.Popen(command, cwd=ROOT, stdin=inner, stdout=inner, stderr=inner, start_new_session=True)
        os.close(inner)
        said = b""
        interrupted = False
        while True:
            try:
                piece = screen.read(4096)
            except OSError:  # the terminal's other end is closed
                break
            said += piece
            if not interrupted and said.count(b"requests: 200") >= 2:
                os.killpg(process.pid, signal.SIGINT)
                interrupted = True
        assert process.wait(30) == 0, said.decode()
    assert b"Everything came back" in said
    assert b"findings" in said
