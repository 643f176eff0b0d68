"""Ends without any teardown: what a dead process leaves on the server is gone within abandon_interval + 1 s."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.conftest import BUSY
from tests.kit.processes import alive, wait_for

from .conftest import BOUND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Database

    from .conftest import Launch, Server

pytestmark = pytest.mark.slow

ABANDON_INTERVAL = 1.0

CPU_BOUND = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b"

LOCK = 4711

SETTINGS = {"maxsize": 6, "minsize": 6, "abandon_interval": ABANDON_INTERVAL}


@contextmanager
def held(server: Server, database: Database) -> Iterator[dict[int, str]]:
    """A backend in each state that a dead process may leave: process id and state."""
    database.sql("CREATE TABLE written (n int)")
    database.sql("SELECT pg_advisory_lock(%s)", LOCK)
    for sql in ("SELECT pg_sleep(60)", CPU_BOUND, f"SELECT pg_advisory_lock({LOCK})"):
        server.ask(f"/statement?sql={quote(sql)}")
    server.ask("/transaction")

    def states() -> dict[int, str]:
        rows = database.sql(
            "SELECT pid, CASE WHEN wait_event_type = 'Lock' THEN 'waits for a lock' WHEN wait_event = 'PgSleep' "
            "THEN 'sleeps' WHEN state = 'active' THEN 'computes' ELSE state END "
            "FROM pg_stat_activity WHERE application_name = %s",
            server.name,
        )
        return dict(rows)

    wanted = sorted(["sleeps", "computes", "waits for a lock", "idle in transaction", "idle", "idle"])
    wait_for(lambda: sorted(states().values()) == wanted, f"{wanted}")
    try:
        yield states()
    finally:
        database.sql("SELECT pg_advisory_unlock(%s)", LOCK)


def ends(database: Database, backends: dict[int, str], since: float) -> dict[str, float]:
    """When each of them was gone, in seconds after ``since``."""
    ended: dict[str, float] = {}
    left = dict(backends)
    while left:
        there = {pid for (pid,) in database.sql("SELECT pid FROM pg_stat_activity")}
        now = time.monotonic()
        assert now - since < BOUND, left
        for pid in left.keys() - there:
            ended[left.pop(pid)] = now - since
        time.sleep(0.01)
    print("gone after", {state: round(seconds, 2) for state, seconds in ended.items()})
    return ended


def check(database: Database, backends: dict[int, str], since: float) -> None:
    ended = ends(database, backends, since)
    assert max(ended.values()) < ABANDON_INTERVAL + BUSY, ended
    assert database.sql("SELECT * FROM written") == []  # what was not committed is rolled back


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_under_run_app(launch: Launch, database: Database, number: signal.Signals) -> None:
    """SIGKILL, or a second SIGTERM or SIGINT during the drain: the process is gone at once, and so is its work."""
    server = launch("run_app", drain_grace=30, drain_timeout=40, **SETTINGS)
    with held(server, database) as backends:
        begun = server.signal()
        wait_for(lambda: not server.listens(), "the end of the listener")
        server.signal(number)
        code = server.ends()
        ended = time.monotonic()
        check(database, backends, ended)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 1), server.output
    assert ended - begun < BOUND
    assert server.drained() == []


def test_a_killed_worker(launch: Launch, clean: Callable[..., None], database: Database) -> None:
    """gunicorn starts another in its place, which serves while what the first has left is ended by the server."""
    server = launch("gunicorn", **SETTINGS)
    (first,) = server.workers
    with held(server, database) as backends:
        os.kill(first, signal.SIGKILL)
        check(database, backends, time.monotonic())
    wait_for(lambda: (now := server.get("/pid")).status == 200 and now.body != str(first), "a new worker")
    assert server.output.count("Booting worker") == 2
    server.signal()
    clean(server)


def test_an_impatient_operator_of_gunicorn(launch: Launch, database: Database) -> None:
    """SIGINT or SIGQUIT after SIGTERM gives the workers two seconds more, then SIGKILL."""
    server = launch("gunicorn", drain_grace=30, drain_timeout=40, **SETTINGS)
    (worker,) = server.workers
    with held(server, database) as backends:
        server.signal()
        wait_for(lambda: not server.listens(), "the end of the listener")
        begun = server.signal(signal.SIGINT)
        wait_for(lambda: not alive(worker), "the worker's end")
        ended = time.monotonic()
        check(database, backends, ended)
    assert server.ends() == 0, server.output
    assert 1.5 < ended - begun < BOUND
    assert server.drained() == []


def test_a_worker_whose_loop_stands_still(launch: Launch, clean: Callable[..., None], database: Database) -> None:
    """It is killed after --timeout (SIGABRT is not heard, SIGKILL is), and another one serves."""
    server = launch("gunicorn", options=("--timeout", "2"), **SETTINGS)
    (first,) = server.workers
    with held(server, database) as backends:
        server.ask("/block/60")
        server.has_started("/block/60")
        wait_for(lambda: not alive(first), "the worker's end")
        check(database, backends, time.monotonic())
    assert "WORKER TIMEOUT" in server.output
    wait_for(lambda: (now := server.get("/pid")).status == 200 and now.body != str(first), "a new worker")
    server.signal()
    clean(server)


def test_a_replaced_worker_that_takes_longer_than_the_time_out(
    launch: Launch, clean: Callable[..., None], database: Database
) -> None:
    """A worker that ends has no heartbeat: --timeout cuts its drain short, though graceful_timeout is far away."""
    server = launch("gunicorn", options=("--timeout", "2", "--max-requests", "8"), drain_grace=30, drain_timeout=40,
                    **SETTINGS)  # fmt: skip
    (first,) = server.workers
    with held(server, database) as backends:
        for _ in range(6):
            assert server.get("/pid").status == 200
        wait_for(lambda: "Max requests, shutting down" in server.output, "the last request")
        wait_for(lambda: not alive(first), "the worker's end")
        check(database, backends, time.monotonic())
    assert "WORKER TIMEOUT" in server.output
    wait_for(lambda: (now := server.get("/pid")).status == 200 and now.body != str(first), "a new worker")
    server.signal()
    assert server.ends() == 0, server.output


def test_workers_without_a_master(launch: Launch, database: Database) -> None:
    """They notice within a second or so, answer what is in flight, and drain."""
    server = launch("gunicorn", workers=2, drain_grace=5)
    workers = server.workers
    answer = server.ask("/query/3")
    server.has_started("/query/3")
    server.signal(signal.SIGKILL)
    assert answer.result()[::2] == (200, "done")
    wait_for(lambda: not any(map(alive, workers)), "the workers' end")
    assert [(report.cancelled, report.forced) for report in server.drained()] == [(0, 0)] * 2
    assert ends(database, {pid: "left" for pid, *_ in database.backends()}, time.monotonic()) == {}
