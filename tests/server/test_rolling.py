"""Rolling restarts under constant load: what becomes of every request, counted by its client."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.processes import alive, free_port, wait_for

from .loaded import check, check_unnoticed, loaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Launch

pytestmark = pytest.mark.slow

PATHS = {"/query/0.01": 6.0, "/late/0.05": 2.0, "/query/0.4": 1.0}

SETTINGS: dict[str, Any] = {
    "dev": False, "maxsize": 8, "drain_grace": 5, "queue_target": None, "acquire_timeout": 20
}  # fmt: skip
"""Room enough: who hears 503 here hears it because of the restart."""

SHUTDOWN = 3.0

AIOHTTP = {"shutdown_timeout": SHUTDOWN}

LINGERING = {**AIOHTTP, "linger": 1.5}


@pytest.mark.parametrize(
    ("kind", "runner"),
    [
        pytest.param("gunicorn", AIOHTTP, id="gunicorn-aiohttp"),
        pytest.param("gunicorn", LINGERING, id="gunicorn-lingering"),
        pytest.param("gunicorn-uvloop", LINGERING, id="uvloop-lingering"),
    ],
)
def test_a_reload_of_gunicorn(launch: Launch, clean: Callable[..., None], kind: str, runner: dict[str, float]) -> None:
    """SIGHUP: nothing in flight is lost, nothing is refused; with the runner of the example nobody notices at all."""
    server = launch(kind, workers=2, runner=runner, **SETTINGS)
    with loaded(server, PATHS) as run:
        old = server.workers
        server.signal(signal.SIGHUP)
        wait_for(lambda: server.ready == 4, "new workers")
        wait_for(lambda: not any(map(alive, old)), "the old workers' end")
    server.signal()
    clean(server)
    check(run, server)
    if "linger" in runner:
        check_unnoticed(run)
    assert [(report.cancelled, report.forced) for report in server.drained()] == [(0, 0)] * 4


def test_a_worker_that_replaces_itself(launch: Launch, clean: Callable[..., None]) -> None:
    """--max-requests: what is in flight is answered, the pool is drained, the worker's exit is clean, one follows."""
    server = launch("gunicorn", options=("--max-requests", "400"), runner=AIOHTTP, **SETTINGS)
    with loaded(server, PATHS) as run:
        (old,) = server.workers
        wait_for(lambda: server.get("/pid").status and "Max requests, shutting down" in server.output, "its last one")
        wait_for(lambda: not alive(old), "its end")
        wait_for(lambda: server.ready == 2, "another one")
    server.signal()
    clean(server)
    check(run, server)
    assert "exited with code" not in server.output
    assert "was sent" not in server.output
    assert [(report.cancelled, report.forced) for report in server.drained()] == [(0, 0)] * 2


def test_an_upgrade_of_gunicorn(launch: Launch) -> None:
    """SIGUSR2, then SIGQUIT to the old master: another gunicorn takes over the socket, and nobody notices."""
    server = launch("gunicorn", workers=2, runner=LINGERING, **SETTINGS)
    with loaded(server, PATHS) as run:
        old = server.workers
        server.signal(signal.SIGUSR2)
        wait_for(lambda: server.ready == 4, "the new workers")
        (new,) = set(server.workers) - set(old)
        server.signal(signal.SIGWINCH)  # heeded by a daemon only: the old workers go on
        server.signal(signal.SIGQUIT)
        assert server.ends() == 0, server.output
        wait_for(lambda: "Master has been promoted" in server.output, "the new master")
        assert len(server.drained()) == 2
    os.kill(new, signal.SIGTERM)
    wait_for(lambda: not alive(new), "the new master's end")
    check(run, server)
    check_unnoticed(run)
    assert [(report.cancelled, report.forced) for report in server.drained()] == [(0, 0)] * 4


def test_two_processes_on_one_port(launch: Launch, clean: Callable[..., None]) -> None:
    """reuse_port: replaced one after the other, they lose nothing in flight; the kernel may drop what it has queued."""
    port = free_port()
    runner = AIOHTTP | {"reuse_port": True}
    servers = [launch("run_app", port=port, runner=runner, **SETTINGS) for _ in range(2)]
    with loaded(servers[0], PATHS) as run:
        for old in servers[:2]:
            servers.append(launch("run_app", port=port, runner=runner, **SETTINGS))
            old.signal()
            old.ends()
    for server in servers[2:]:
        server.signal()
    for server in servers:
        clean(server)
        assert [(report.cancelled, report.forced) for report in server.drained()] == [(0, 0)]
    check(run, *servers)
