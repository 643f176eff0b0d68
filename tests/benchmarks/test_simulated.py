"""The simulation behind docs/overload.md, and what it says of the gate. Pure: no server, no socket."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from aiohttp_poolscope.gate import Gate
from benchmarks.simulated import tables
from benchmarks.simulated.__main__ import main
from benchmarks.simulated.loads import BEFORE, FIRST, exponential, lognormal, overload
from benchmarks.simulated.policies import POLICIES, play
from benchmarks.simulated.tables import VARIANTS
from benchmarks.simulated.world import Load, World

HARD = [
    overload(3.0, seconds=1.0, service=exponential(0.01)),
    overload(3.0, seconds=1.0, lease=0.1, patience=0.5, strays=0.2),
    overload(3.0, seconds=1.0, maxsize=30, servers=5, processor=0.0001),
    Load("an outage", ((2.0, 0.9),), away=(0.5, 1.0), stalls=(1.5,)),
    Load("a slow database", ((2.0, 0.6),), slow=(0.5, 1.5, 10.0)),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("load", HARD, ids=lambda load: load.name)
def test_every_request_ends_once(policy: str, load: Load) -> None:
    """Arrivals are outcomes, and afterwards nobody holds or waits for anything."""
    result = play(policy, load)
    assert sum(result.outcomes.values()) == len(result.arrived) > 100
    assert len(result.good) == result.outcomes["good"] > 0
    ends = {"good", "late", "gave up", "failed"}
    assert len(result.refused) == sum(count for end, count in result.outcomes.items() if end not in ends)
    assert all(came < answered <= came + load.patience + 2.0 * bool(load.strays) for came, answered in result.good)


def test_the_gate_is_left_as_it_was() -> None:
    """The simulation plays by the gate's rules: in the end every connection is idle, and the invariants hold."""
    for load in HARD:
        gate: Gate[int] = Gate(maxsize=load.maxsize, check_after_idle=float("inf"))
        World(gate, load).run()
        assert gate.violations() == []
        assert (gate.idle, gate.lent, gate.waiting) == (load.maxsize, 0, 0)


def test_a_seed_always_gives_the_same() -> None:
    """The figures can be had again; another seed is another run."""
    load = overload(3.0, seconds=1.0, service=exponential(0.01))
    assert play("the gate", load, 1) == play("the gate", load, 1) != play("the gate", load, 2)


def test_what_is_offered_is_what_was_asked_for() -> None:
    """Arrivals and leases have the rate and the mean that the load says."""
    load = Load("steady", ((20.0, 0.5),), 0.01, service=lognormal(0.01))
    requests = load.requests(1)
    assert len(requests) == pytest.approx(0.5 * load.capacity * load.length, rel=0.05)
    assert sum(service for _, service, _ in requests) / len(requests) == pytest.approx(0.01, rel=0.1)


def test_fifo_collapses_and_the_gate_does_not() -> None:
    """Three times the capacity: in order, everybody is served too late; by hand it does not even recover."""
    load = overload(3.0, seconds=FIRST)
    runs = {policy: play(policy, load) for policy in ("by hand", "FIFO", "the gate")}
    goodput = {policy: run.goodput(BEFORE, BEFORE + FIRST) for policy, run in runs.items()}
    afterwards = {policy: run.in_time(BEFORE + FIRST + 1.0) for policy, run in runs.items()}
    assert goodput["the gate"] > 0.93
    assert goodput["FIFO"] < 0.6
    assert goodput["by hand"] < 0.6
    assert afterwards["the gate"] > 0.99
    assert afterwards["by hand"] < 0.3
    assert runs["the gate"].quantile(0.5, BEFORE, BEFORE + FIRST) < 0.05


@pytest.mark.parametrize("policy", ["FIFO", "the gate"])
def test_a_burst_that_fits_is_served(policy: str) -> None:
    """30 requests of 1 s at once on 10 connections: slow queries make long waits normal."""
    result = play(policy, Load("burst", ((1.0, 0.0),), 1.0, 5.0, burst=30))
    assert result.outcomes == {"good": 30}
    assert result.quantile(1.0) == pytest.approx(3.0)


def test_load_below_the_capacity_is_not_refused() -> None:
    """What the gate does in an overload costs nobody anything without one."""
    result = play("the gate", Load("steady", ((10.0, 0.9),), service=exponential(0.01)))
    assert set(result.outcomes) == {"good"}


@pytest.mark.parametrize(
    "variant",
    [
        "queue_target 0.02",
        "normal: 1 leases",
        "late for 0 times that",
        "who gives up is not heeded",
        "a crowd makes no room",
        "stands until the oldest is young",
    ],
)
def test_each_constant_matters(variant: str) -> None:
    """None of the variants is the gate under another name."""
    assert any(play(VARIANTS[variant], load) != play("the gate", load) for load in HARD)


def test_the_variants_differ_where_they_should() -> None:
    """Clients that give up before the queue could stand: only who heeds them answers in time."""
    load = overload(3.0, seconds=FIRST, lease=0.1, patience=0.5)
    policies = VARIANTS["who gives up is not heeded"], "the gate"
    unheeding, heeding = (play(policy, load).goodput(BEFORE, BEFORE + FIRST) for policy in policies)
    assert unheeding < 0.5
    assert heeding > 0.8


def test_tables_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints what the documentation shows."""
    short = replace(overload(3.0), phases=((BEFORE, 0.6), (0.5, 3.0), (0.5, 0.45)))
    monkeypatch.setattr(tables, "overloads", lambda: [short])
    assert main(["--only", "overload", "--seeds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(f"| {short.name} |")]
    assert len(rows) == len(POLICIES)
    assert tables.seconds(math.nan) == ""
