"""Trial: what finds a mutant. The simulations first; then, if they find nothing, the tests.

A mutant is tried in a copy of the repository, where ``python -m`` finds the broken package before the installed one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .mutant import PACKAGE, ROOT, Mutant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ("SIMULATIONS", "Finding", "Simulation", "find", "lying_simulations", "lying_tests")

LIMIT = 300.0
"""Seconds that a simulation or the tests of a room may take: what lasts longer hangs."""

ENDS_WITHIN = 10.0
"""Seconds between an interrupt and a kill: the tests' servers are closed by an interrupt."""

LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "results", "images", "figures")
PYTEST = ("pytest", "-v", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-m", "not system")
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/\S+\.py::\w+(?:\[[^]]*\])?)", re.MULTILINE)


@dataclass(frozen=True)
class Simulation:
    """A module; it ends with 0 if it has found nothing. ``runs``: the files of the package, or rooms, that it runs."""

    name: str
    command: tuple[str, ...]
    runs: tuple[str, ...]


SIMULATIONS = (
    Simulation(
        "gate",
        ("tests.simulation", "--gate-only", "--schedules", "3000", "--jobs", "1"),
        ("gate/gate.py", "gate/overload.py"),
    ),
    Simulation("shell", ("tests.mutants.shell",), ("gate/", "pool/", "connection/", "web/", "driver/")),
)


@dataclass(frozen=True)
class Finding:
    """What has found a mutant: a simulation, or a ``test``; neither, if it is not found."""

    simulation: str = ""
    test: str = ""
    hung: bool = False

    def __str__(self) -> str:
        by = f"`{self.test.partition('[')[0]}`" if self.test else f"simulation of the {self.simulation}"
        return by + ", by a hang" * self.hung if self.test or self.simulation else "nothing"


@dataclass(frozen=True)
class Ended:
    """A process that has ended, by itself or by the limit."""

    code: int
    said: str
    hung: bool = False


def find(mutant: Mutant, excused: Collection[str] = ()) -> Finding:
    """What finds the mutant. ``excused`` are tests that say nothing."""
    with _copy() as broken:
        (broken / PACKAGE / mutant.file).write_text(mutant.source())
        for simulation in SIMULATIONS:
            if mutant.file.startswith(simulation.runs):
                ended = _run(broken, simulation.command)
                if ended.hung or ended.code:
                    return Finding(simulation=simulation.name, hung=ended.hung)
        for selection in _selections(mutant):
            ended = _run(broken, (*PYTEST, "-x", *(f"--deselect={test}" for test in excused), *selection))
            if ended.hung:
                begun = re.findall(r"^(tests/\S+?::\w+(?:\[[^]]*\])?)", ended.said, re.MULTILINE)
                return Finding(test=begun[-1], hung=True)
            if found := _failing(ended):
                return Finding(test=found[0])
    return Finding()


def _failing(ended: Ended) -> list[str]:
    """The tests that failed. Whatever else has ended pytest raises."""
    found: list[str] = FAILED.findall(ended.said)
    if ended.code and not found:
        raise RuntimeError(f"no test has failed, but pytest ended with {ended.code}:\n{ended.said[-2000:]}")
    return found


def lying_simulations() -> list[str]:
    """Those that find something where nothing is wrong."""
    with _copy() as whole:
        return [simulation.name for simulation in SIMULATIONS if _run(whole, simulation.command).code]


def lying_tests(tests: Collection[str]) -> list[str]:
    """Those of ``tests`` that fail where nothing is wrong."""
    if not tests:
        return []
    with _copy() as whole:
        return _failing(_run(whole, (*PYTEST, *sorted(tests)), limit=None))


def _selections(mutant: Mutant) -> Iterator[tuple[str, ...]]:
    """Tests to run, step by step: those that should find it, all of its room, those of its promise."""
    if mutant.tests:
        yield mutant.tests
    yield (mutant.room,)
    text = (ROOT / "docs" / "guarantees.md").read_text()
    row = re.search(rf"^\| {mutant.promise} \|.*$", text, re.MULTILINE) if mutant.promise else None
    promised = re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", row[0]) if row else ()
    if promised:
        yield tuple(dict.fromkeys(promised))


@contextlib.contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="poolscope-mutant-") as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        yield copy


def _run(folder: Path, command: tuple[str, ...], limit: float | None = LIMIT) -> Ended:
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            said = _read(output)  # what an interrupt adds would hide the test that hangs
            return Ended(_end(process), said, hung=True)
        except BaseException:
            _end(process)
            raise
        return Ended(code, _read(output))


def _read(output: IO[str]) -> str:
    output.seek(0)
    return output.read()


def _end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
