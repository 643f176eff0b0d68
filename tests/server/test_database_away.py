"""A server's start and its end while its database is away, or there and silent."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.kit.processes import free_port, wait_for
from tests.kit.wire import wired

from .conftest import BOUND, KINDS
from .sockets import LONGEST, watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Database

    from .conftest import Launch, Server


@pytest.mark.parametrize("kind", KINDS)
def test_a_hung_database_does_not_hang_the_end(
    launch: Launch, clean: Callable[..., None], database: Database, kind: str
) -> None:
    """A database that answers nothing, not even a cancel: exit code 0 within the drain's time limit."""
    with wired(database) as wire:
        server = launch(kind, address=wire.dsn, drain_grace=0.5, drain_timeout=2, runner={"shutdown_timeout": 1.0})
        stuck = server.ask("/query/60")
        server.has_started("/query/60")
        wait_for(lambda: any("pg_sleep" in query for query in wire.queries), "the query")
        wire.frozen = wire.hang = wire.deaf_to_cancel = True
        begun = server.signal()
        assert server.ends() == 0, server.output
        assert time.monotonic() - begun < BOUND
    assert stuck.result().status in (0, 503)
    clean(server)
    (report,) = server.drained()
    assert (report.served, report.cancelled) == (0, 1)
    assert report.duration < 5


def test_a_database_that_ends_during_the_drain(launch: Launch, clean: Callable[..., None], database: Database) -> None:
    """It closes every connection while the drain waits: none stays half closed, and the end is as clean."""
    with wired(database) as wire:
        server = launch("run_app", address=wire.dsn, minsize=3, maxsize=4, drain_grace=4)
        held = server.ask("/late/2.5")
        server.has_started("/late/2.5")
        wait_for(lambda: wire.connected >= 3, "the pool")
        with watched(server) as watch:
            server.signal()
            wire.refuse()
            wire.cut(fin=True)
            assert held.result().status == 503  # it borrows when the database is away
            clean(server)
        wire.accept()
    assert watch.longest < LONGEST, watch.longest
    (report,) = server.drained()
    assert (report.cancelled, report.forced) == (0, 0)


ERROR = "aiohttp_poolscope.errors.DatabaseUnavailable: "

BOOT_ERRORS = (3, 1)
"""With which gunicorn ends when a worker cannot boot; the second if another one fails while it ends."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_without_a_database_fails(launch: Launch, kind: str) -> None:
    """The deployment fails at once, with a line that says why; gunicorn does not try again and again."""
    server = launch(kind, address=f"postgresql://nobody@127.0.0.1:{free_port()}/none", workers=2, fails=True)
    assert server.ends() in ((1,) if kind == "run_app" else BOOT_ERRORS), server.output
    assert "\ncannot connect to database 'none' as user 'nobody'" in server.output.replace(ERROR, "")
    assert server.output.count("Booting worker") <= 2
    assert ("Worker failed to boot" in server.output) == (kind != "run_app")
    assert server.ready == 0


@pytest.mark.slow
def test_a_start_with_a_silent_database_fails(launch: Launch, database: Database) -> None:
    """It is accepted and never answered: the start fails after connect_timeout."""
    with wired(database) as wire:
        wire.hang = True
        server = launch("gunicorn", address=wire.dsn, connect_timeout=0.5, fails=True)
        assert server.ends() == 3, server.output
        assert "no answer within 0.5 s (connect_timeout)" in server.output


def test_a_signal_while_run_app_waits_for_its_database(launch: Launch, database: Database) -> None:
    """It ends at once, without a word and with exit code 0: a deployment may be taken back."""
    with wired(database) as wire:
        wire.hang = True
        server = launch("run_app", address=wire.dsn, connect_timeout=60, fails=True)
        wait_for(lambda: wire.connects, "the attempt")
        server.signal()
        assert server.ends() == 0, server.output
    assert server.output == ""


@pytest.mark.slow
def test_a_reload_without_a_database_ends_gunicorn(
    launch: Launch, clean: Callable[..., None], database: Database
) -> None:
    """New workers that cannot boot take all of gunicorn with them; what was in flight is answered before."""
    with wired(database) as wire:
        server = launch("gunicorn", address=wire.dsn, drain_grace=5)
        answer = server.ask("/query/1")
        server.has_started("/query/1")
        wire.refuse()
        server.signal(signal.SIGHUP)
        assert answer.result()[::2] == (200, "done")
        assert server.ends() == 3, server.output
        wire.accept()
    assert server.output.count("Booting worker") == 2
    wait_for(lambda: gone(database, server), "the end of its connections", 5.0)


@pytest.mark.slow
def test_without_connect_at_start_the_database_may_be_away(
    launch: Launch, clean: Callable[..., None], database: Database
) -> None:
    """A worker that is made meanwhile starts, answers 503, and serves when the database is back."""
    with wired(database) as wire:
        server = launch("gunicorn", address=wire.dsn, connect_at_start=False, breaker_failures=1, acquire_timeout=2)
        first = server.get("/pid")
        assert first.status == 200
        wire.refuse()
        wire.cut()
        server.signal(signal.SIGHUP)
        wait_for(lambda: server.ready == 2, "another worker")
        wait_for(server.drained, "the end of the first")
        assert server.get("/pid").status == 503
        wire.accept()
        wait_for(lambda: (now := server.get("/pid")).status == 200 and now.body != first.body, "service")
        server.signal()
        clean(server)


def gone(database: Database, server: Server) -> bool:
    return not database.sql("SELECT 1 FROM pg_stat_activity WHERE application_name = %s", server.name)
