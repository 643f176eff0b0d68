"""Sizing: the formulas against other sources of truth, and the page that explains them against the command."""

from __future__ import annotations

import heapq
import math
import random
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aiohttp_poolscope.capacity.limits import Limits
from aiohttp_poolscope.capacity.sizing import Demand, Plan, connections_for, erlang_c, plan, wait_quantile, workers_for
from aiohttp_poolscope.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "sizing.md"
SERVER = Limits(100, 3, 0, -1, -1)


def by_the_sum(servers: int, load: float) -> float:
    """Erlang C as textbooks write it: with factorials."""
    queue = load**servers / math.factorial(servers) * servers / (servers - load)
    return queue / (sum(load**n / math.factorial(n) for n in range(servers)) + queue)


@pytest.mark.parametrize(
    ("connections", "load", "waits"),
    [
        (1, 0.5, 0.5),  # of one server the busy share waits
        (2, 1.0, 1 / 3),
        (3, 2.0, 4 / 9),
        (5, 4.0, 0.5541),
        (10, 8.0, 0.4092),
        (4, 0.0, 0.0),
        (4, 4.0, 1.0),
        (4, 5.0, 1.0),
    ],
)
def test_known_values_of_erlang_c(connections: int, load: float, waits: float) -> None:
    """The values that tables of Erlang C have."""
    assert erlang_c(connections, load) == pytest.approx(waits, abs=5e-5)


@given(st.integers(1, 60), st.floats(0.001, 0.999))
def test_the_recursion_is_the_formula(connections: int, busy: float) -> None:
    """By way of Erlang B the same comes out as by the sum with factorials."""
    assert erlang_c(connections, connections * busy) == pytest.approx(by_the_sum(connections, connections * busy))


def queue(connections: int, rate: float, lease: float, arrivals: int) -> list[float]:
    """The waits of a queue that is played through, first come, first served."""
    rng = random.Random(7)
    free, now, waits = [0.0] * connections, 0.0, []
    for _ in range(arrivals):
        now += rng.expovariate(rate)
        begun = max(now, heapq.heappop(free))
        heapq.heappush(free, begun + rng.expovariate(1 / lease))
        waits.append(begun - now)
    return waits


@pytest.mark.parametrize(("connections", "rate"), [(2, 120.0), (5, 400.0), (10, 750.0)])
def test_a_queue_that_is_played_through_waits_as_predicted(connections: int, rate: float) -> None:
    """200,000 requests in a simulated queue: as many wait, and as long, as the formulas say."""
    lease = 0.01
    waits = sorted(queue(connections, rate, lease, 200_000))
    share = sum(wait > 0 for wait in waits) / len(waits)
    assert share == pytest.approx(erlang_c(connections, rate * lease), rel=0.05)
    p99 = waits[int(0.99 * len(waits))]
    assert p99 == pytest.approx(wait_quantile(connections, rate * lease, lease, 0.99), rel=0.1)


@given(st.floats(0.1, 20_000), st.floats(0.0001, 0.5), st.floats(0.0001, 0.5))
def test_it_is_the_fewest_connections_that_do(rate: float, lease: float, waiting: float) -> None:
    """With that many no more wait than may; with one fewer more do."""
    number = connections_for(rate, lease, waiting=waiting)
    assert number > rate * lease
    assert erlang_c(number, rate * lease) <= waiting
    assert number == 1 or erlang_c(number - 1, rate * lease) > waiting


@given(st.floats(0.1, 5_000), st.floats(0.0001, 0.1), st.floats(1, 4))
def test_more_needs_more(rate: float, lease: float, times: float) -> None:
    """A higher rate, a longer lease and less patience never need fewer connections."""
    needed = connections_for(rate, lease)
    assert connections_for(rate * times, lease) >= needed
    assert connections_for(rate, lease * times) >= needed
    assert connections_for(rate, lease, waiting=0.01 / times) >= needed


@given(st.integers(1, 50), st.floats(0, 60), st.floats(0, 0.99))
def test_who_waits_longest(connections: int, load: float, q: float) -> None:
    """A larger share waits longer, more connections shorten it, and too few are for ever."""
    assume(load > 0)
    wait = wait_quantile(connections, load, 0.01, q)
    assert wait_quantile(connections, load, 0.01, q + 0.005) >= wait
    assert wait_quantile(connections + 1, load, 0.01, q) <= wait
    assert math.isinf(wait) == (load >= connections)


def test_workers() -> None:
    """70 % of a core is what a process may use; exactly that much is one process."""
    assert [workers_for(rate, 0.0007) for rate in (0, 1, 1000, 1001, 4000)] == [1, 1, 1, 2, 4]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", 0), ("rate", -1), ("rate", math.inf), ("rate", math.nan), ("lease", 0), ("lease", math.nan),
        ("hosts", 0), ("processes", 0), ("replicas", -1), ("reads", 1.1), ("reads", -0.1), ("reads", 0.5),
        ("cpu", -1), ("waiting", 0), ("waiting", 1), ("budget", 0), ("budget", 1.5), ("budget", math.nan),
    ],
)  # fmt: skip
def test_a_wrong_demand_is_named(name: str, value: float) -> None:
    """A ValueError begins with the argument's name and has its value."""
    with pytest.raises(ValueError, match=rf"^{name}\b.*{value!r}"):
        Demand(**{"rate": 100, "lease": 0.01, name: value})


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: erlang_c(0, 1), "connections"),
        (lambda: erlang_c(1, -1), "load"),
        (lambda: connections_for(math.inf, 1), "rate"),
        (lambda: connections_for(1, -1), "lease"),
        (lambda: connections_for(1, 1, waiting=1), "waiting"),
        (lambda: wait_quantile(2, 1, 0.1, 1), "q"),
        (lambda: wait_quantile(2, 1, -1, 0.5), "lease"),
        (lambda: workers_for(-1, 1), "rate"),
        (lambda: workers_for(1, -1), "cpu"),
        (lambda: workers_for(1, 1, busy=0), "busy"),
    ],
)
def test_a_wrong_argument_is_named(call: object, name: str) -> None:
    """So it is in every function."""
    assert callable(call)
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        call()


def test_an_absurd_load_is_no_endless_search() -> None:
    """A slip of the keyboard is refused at once, with both numbers."""
    with pytest.raises(ValueError, match=r"^rate=1e\+18 times lease=1"):
        connections_for(1e18, 1)


def made(rate: float = 2000, lease: float = 0.005, hosts: int = 4, processes: int = 4, **others: object) -> Plan:
    return plan(Demand(rate=rate, lease=lease, hosts=hosts, processes=processes, **others), SERVER)  # type: ignore[arg-type]


def test_a_load_that_fits() -> None:
    """Each process gets its part of the rate; nothing else is needed."""
    found = made()
    assert found.fits
    assert found.primary.maxsize == connections_for(125, 0.005) == 4
    assert (found.primary.connections, found.primary.allowed) == (64, 77)
    assert (found.replica, found.workers, found.primary.default_pool_size) == (None, None, None)


def test_too_many_processes_need_pgbouncer() -> None:
    """What exceeds the budget only because nobody shares fits through PgBouncer, at most two to one."""
    alone, through = made(8000), made(8000, pgbouncer=True)
    assert not alone.fits
    assert "PgBouncer" in alone.problems[0]
    assert through.fits
    assert through.primary.default_pool_size is not None
    assert connections_for(8000, 0.005) <= through.primary.default_pool_size <= 77
    assert through.primary.connections <= 2 * through.primary.default_pool_size


def test_more_processes_than_connections() -> None:
    """Where there is not one connection for each process it is said so, and PgBouncer helps."""
    (problem,) = made(100, hosts=100).problems
    assert "not even one for each process" in problem
    through = made(100, hosts=100, pgbouncer=True)
    assert (through.fits, through.primary.maxsize) == (True, 1)


def test_too_much_for_the_server_fits_by_no_means() -> None:
    """Where even shared connections do not suffice PgBouncer is no answer."""
    for pgbouncer in (False, True):
        (problem,) = made(20_000, pgbouncer=pgbouncer).problems
        assert "even if all processes share them" in problem


def test_replicas_take_their_share() -> None:
    """The primary gets what is not read, each replica its part of the processes and of the reads."""
    found = made(6000, reads=0.8, replicas=2)
    assert found.replica is not None
    assert found.primary.rate == pytest.approx(1200)
    assert found.replica.rate == pytest.approx(2400)
    assert found.replica.processes == 8
    assert found.replica.maxsize == connections_for(300, 0.005)
    assert found.fits


def test_the_processor_counts() -> None:
    """Processes that cannot do the work are a problem, whatever the connections."""
    found = made(cpu=0.01)
    assert found.workers == 29
    assert found.problems == ("16 processes are too few: the processor time needs 29",)
    assert made(cpu=0.0001).fits


DEMANDS = st.builds(
    Demand,
    rate=st.floats(1, 50_000),
    lease=st.floats(0.0001, 0.1),
    hosts=st.integers(1, 50),
    processes=st.integers(1, 16),
    reads=st.floats(0, 1),
    replicas=st.integers(1, 10),
    pgbouncer=st.booleans(),
)


@given(DEMANDS, st.integers(5, 2000))
def test_what_fits_does_fit(demand: Demand, most: int) -> None:
    """A plan that fits stays in the budget, its queues do not grow, and no more wait than may."""
    limits = Limits(most, 3, 0, -1, -1)
    found = plan(demand, limits)
    for share in (found.primary, found.replica):
        if share is None:
            continue
        assert 0 <= share.minsize <= share.maxsize
        assert share.connections == share.processes * share.maxsize
        if found.fits:
            taken = share.connections if share.default_pool_size is None else share.default_pool_size
            assert taken <= share.allowed <= limits.available
            assert math.isfinite(share.longest_wait)
            assert share.default_pool_size is not None or share.waits <= demand.waiting


def test_one_process_cannot_be_spread_over_replicas() -> None:
    """A process reads from one replica: where its pool would be too small for that, the plan does not fit."""
    demand = Demand(rate=2836, lease=1 / 64, hosts=1, processes=1, reads=0.8125, replicas=4, pgbouncer=True)
    found = plan(demand, Limits(26, 3, 0, -1, -1))
    assert not found.fits
    assert found.problems[0].startswith("each replica: 2304.25/s of 15.6 ms in one process keep 36 connections")


def test_the_page_says_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Every worked example of docs/sizing.md is the output of the command above it."""
    examples = re.findall(
        r"^```sh\naiohttp-poolscope (doctor .*?)\n```\n+```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(examples) >= 3
    for command, shown in examples:
        main(shlex.split(command.replace("\\\n", " ")))
        assert capsys.readouterr().out.strip() == shown.strip()
