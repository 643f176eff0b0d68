"""Tests that are there without PgBouncer, run through it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.bouncer import PROGRAM, WANTED

from .through_bouncer import EXCEPT

ROOT = Path(__file__).parents[2]

GROUPS = {
    "statements": (
        *("connection/statements", "connection/transactions", "connection/transactions_edges", "connection/stream"),
        "web/outside",
    ),
    "requests": (
        *("web/middleware", "web/middleware_acquire", "web/middleware_streaming", "web/middleware_transactional"),
        *("web/responses", "web/responses_drain", "web/disconnects", "web/no_connection_errors", "pool/drain"),
    ),
    "pool": (
        *("connection/connection", "connection/cursor", "pool/hooks", "pool/hooks_edges", "pool/leases"),
        *("pool/pool", "pool/edges", "pool/faults"),
    ),
    "load": ("load/abort_storm", "load/cancellation_fuzz"),
}
"""Files, as far as they are about something that PgBouncer could change."""

AT_LEAST = {"statements": 105, "requests": 175, "pool": 85, "load": 7}
"""Tests that pass: a run that skips what it should try is found out."""


def files(group: str) -> list[str]:
    return [f"tests/{room}/test_{name}.py" for room, name in (each.split("/") for each in GROUPS[group])]


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.skipif(PROGRAM is None, reason=WANTED)
@pytest.mark.parametrize("group", GROUPS)
def test_the_suite_through_pgbouncer(group: str) -> None:
    """What is promised of statements, transactions, requests and aborted requests is so through PgBouncer as well."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.faults.through_bouncer", "-p", "no:cacheprovider"),
            *("-k", "not uvloop", *files(group)),  # once: what a loop does differently is no matter of PgBouncer
        ],
        cwd=ROOT,
        env={**os.environ, "POOLSCOPE_STORM": "900", "POOLSCOPE_FUZZ": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"what cannot hold belongs into EXCEPT, with the reason\n{run.stdout}{run.stderr}"
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|statements)", run.stdout)}
    assert counts["passed"] >= AT_LEAST[group], run.stdout
    assert counts["statements"] > counts["passed"], run.stdout


def test_exceptions_are_of_files_that_are_run() -> None:
    """A test that is excepted is in a file that is run: there its name is checked."""
    run = {file for group in GROUPS for file in files(group)}
    assert {name.partition("::")[0] for names in EXCEPT.values() for name in names} <= run
