"""The whole pool in virtual time: thousands of visits in random worlds, and faults aimed at each step of small ones."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.gate import Gate
from aiohttp_poolscope.pool.housekeeper import Housekeeper
from aiohttp_poolscope.pool.pool import Pool

from .shell import aimed, schedules
from .shell.plan import HOST, Fault, Plan, Visit, draw
from .shell.shrink import shrunk
from .shell.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

RANDOM, STRIDE = 300, 5
"""Random schedules, and every which aimed one: some twenty seconds of work."""


@pytest.fixture(autouse=True)
def audit() -> None:
    """Each world has its own, and a pool that is broken on purpose may leave behind what it likes."""


def told(tally: schedules.Tally) -> str:
    """The failures, to be replayed."""
    return "\n".join(schedules.report(seed, findings) for seed, findings in tally.failures[:3])


@pytest.mark.slow
def test_random_worlds_keep_every_promise() -> None:
    """Whatever comes together: nobody gets another's connection, all end in time, nothing is left, no answer lies."""
    tally = schedules.run_many("pytest", range(RANDOM))
    assert not tally.failures, told(tally)
    assert tally.visits > 20 * RANDOM
    assert tally.seconds > 60 * RANDOM
    assert {"200", "404", "302", "499", "500", "503", "504", "cancelled", "done"} <= tally.answers.keys()


@pytest.mark.slow
def test_a_fault_at_any_step() -> None:
    """Two connections, three requests: a cancellation, a loss, a drain at each of their steps."""
    tally = schedules.aimed_many(itertools.islice(aimed.aims(), 0, None, STRIDE))
    assert not tally.failures, told(tally)
    assert tally.schedules > 1000


@pytest.mark.slow
def test_two_faults_at_one_step() -> None:
    """Any two of them at one step, in both orders."""
    tally = schedules.aimed_many(itertools.islice(aimed.aims(pairs=True), 0, None, 20 * STRIDE))
    assert not tally.failures, told(tally)
    assert tally.schedules > 800


def test_a_seed_always_grows_the_same_world() -> None:
    """In this process and in any other: a failure can be replayed."""
    program = "from tests.simulation.shell import schedules; print(schedules.run_many('pytest', range(20)).digest)"
    digests = {schedules.run_many("pytest", range(20)).digest}
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
        )
        digests.add(ran.stdout.strip())
    assert len(digests) == 1
    assert schedules.run_many("pytest", range(20)).digest in digests
    assert schedules.run_many("pytest", range(20, 40)).digest not in digests


def _plan(*visits: Visit | Fault, **settings: Any) -> Plan:
    return Plan("regression", {"maxsize": 1} | settings, ((HOST, False),), visits, length=2.0, calm=20.0)


REGRESSIONS = {
    "a stream begun while another task's statement runs ended the request's transaction": _plan(
        Visit(
            "a",
            0.1,
            "POST",
            "transactional",
            (("both", (("fetch",), ("fetch",)), (("stream", 3, 3, "all"),)), ("write",), ("error",)),
        )
    ),
    "a start whose connection dies while it tries the reset said that an outcome is unknown": _plan(
        Fault(0.0, "doom", ("after", "reset()")), reset="SELECT reset()"
    ),
}
"""What was found, each as small as it can be told."""


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_was_found_stays_mended(name: str) -> None:
    """Each finding is a schedule of its own."""
    result = World(REGRESSIONS[name]).run()
    assert not result.findings
    assert result.steps


def _lends_as_it_came(pool: Pool, slot: Any) -> None:
    slot.holder = None
    pool.gate.give(slot, pool.clock.monotonic())


def _never_sweeps(housekeeper: Housekeeper, now: float) -> None:
    pass


def _strands_the_next(gate: Gate[Any], waiter: Any, outcome: Any, now: float) -> None:
    if waiter.slot is None:
        withdraw(gate, waiter, outcome, now)
    else:
        waiter.slot = None
        gate.handed -= 1
        gate._end(waiter, outcome)


withdraw = Gate.withdraw

BROKEN: dict[str, tuple[type, str, Callable[..., Any], str]] = {
    "a dirty connection goes to the next": (Pool, "take_back", _lends_as_it_came, "repair"),
    "nobody sweeps": (Housekeeper, "sweep", _never_sweeps, "one"),
    "a hand-over is lost with its waiter": (Gate, "withdraw", _strands_the_next, "one"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pool_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks find what they are there for."""
    kind, method, broken, scenario = BROKEN[name]
    monkeypatch.setattr(kind, method, broken)
    assert any(schedules.aimed_many([aim]).failures for aim in aimed.aims([scenario]))


def test_a_finding_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that happens in a world, the few events are named that it takes."""
    monkeypatch.setattr(Pool, "take_back", _lends_as_it_came, "repair")
    seed, findings = schedules.run_many("broken", range(20)).failures[0]
    plan = draw(seed)
    kept = shrunk(plan, findings)
    assert 1 <= len(kept) <= 4 < len(plan.events)
    assert f"--replay '{seed}@{','.join(map(str, kept))}'" in schedules.report(seed, findings)
