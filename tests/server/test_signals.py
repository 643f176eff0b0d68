"""Deployments: what a signal does to a server in a process of its own, under run_app and under gunicorn."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.kit.processes import wait_for

from .conftest import BOUND, KINDS, Answer
from .sockets import LONGEST, watched
from .traffic import traffic

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from concurrent.futures import Future

    from .conftest import Launch, Server

SIGNALS = [(kind, number) for kind in KINDS for number in (signal.SIGTERM, signal.SIGINT)]

RULE = {"shutdown_timeout": 0.6}
"""2 * shutdown_timeout + drain_grace + 1 < graceful_timeout, for the short graces below."""


def refused(answer: Answer) -> bool:
    return (
        answer.status == 503
        and answer.headers.get("connection", "").lower() == "close"
        and int(answer.headers["retry-after"]) >= 1
    )


@pytest.mark.parametrize(("kind", "number"), SIGNALS)
def test_what_is_in_flight_is_answered(
    launch: Launch, clean: Callable[..., None], kind: str, number: signal.Signals
) -> None:
    """Requests that are running at the signal get their full answers, the pool is drained, the exit code is 0."""
    server = launch(kind, workers=1 if kind == "run_app" else 2, drain_grace=8)
    answers = [server.ask("/query/0.7") for _ in range(2)] + [server.ask("/late/1.3") for _ in range(2)]
    server.has_started("/query/0.7", 2)
    server.has_started("/late/1.3", 2)
    if number == signal.SIGINT:
        for worker in server.workers:  # Ctrl-C in a terminal goes to all of them
            os.kill(worker, number)
    server.signal(number)
    assert [(answer.result().status, answer.result().body) for answer in answers] == [(200, "done")] * 4
    clean(server)
    drained = server.drained()
    assert len(drained) == (1 if kind == "run_app" else 2)
    # The worker looks once a second whether there was a SIGTERM: on a busy machine the late ones may be served before.
    prompt = kind == "run_app" or number == signal.SIGINT
    assert sum(report.served for report in drained) == 2 or not prompt
    assert [(report.cancelled, report.forced) for report in drained] == [(0, 0)] * len(drained)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_under_constant_load(launch: Launch, clean: Callable[..., None], kind: str) -> None:
    """Whatever the application has begun with is answered, all of it, by 200 or 503; no socket is left half closed."""
    # Room enough: on a busy machine, too, it is the end that is tried here, and no overload.
    server = launch(kind, maxsize=10, drain_grace=3, queue_target=None, runner=RULE)
    paths = {"/query/0.01": 5.0, "/late/0.1": 3.0, "/query/0.5": 1.0}
    with traffic(server, paths, rate=15) as kept, traffic(server, paths, rate=15, kept=False) as new:
        wait_for(lambda: all(run.statuses()[200] > 15 for run in (kept, new)), "some answers")
        long = server.ask("/query/1")
        server.has_started("/query/1")
        with watched(server) as watch:
            server.signal()
            assert long.result()[::2] == (200, "done")
            clean(server)
    for run in (kept, new):
        assert run.lost(server) == []
        assert run.statuses()[200] > 15
        assert set(run.statuses()) <= {200, 503, 0, -1}, run.statuses()  # 0: never seen by the application
    assert watch.looks > 5
    assert watch.longest < LONGEST, watch.longest
    (report,) = server.drained()
    assert (report.cancelled, report.forced) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_who_waits_is_refused_and_who_is_stuck_is_cancelled(
    launch: Launch, clean: Callable[..., None], kind: str
) -> None:
    """A request without a connection hears 503 at once; a handler stuck in a query ends with drain_grace (A4)."""
    server = launch(kind, maxsize=1, drain_grace=2)
    ended: dict[Future[Answer], float] = {}
    stuck = server.ask("/query/60")
    server.has_started("/query/60")
    waiting = [server.ask("/pid") for _ in range(3)]
    for each in (stuck, *waiting):
        each.add_done_callback(lambda done: ended.setdefault(done, time.monotonic()))
    time.sleep(0.3)  # no way to see from outside that they wait; had they not come, the listener would refuse them
    begun = server.signal()
    assert all(refused(answer.result()) for answer in waiting), [answer.result() for answer in waiting]
    clean(server)
    assert time.monotonic() - begun < BOUND
    assert stuck.result().status in (0, 503)
    assert all(ended[each] < ended[stuck] - 1 for each in waiting), ended  # not first when the grace was over
    (report,) = server.drained()
    assert (report.served, report.cancelled, report.forced) == (0, 1, 0)
    assert 1.9 <= report.duration < BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_is_left_behind_hangs_the_exit(launch: Launch, clean: Callable[..., None], kind: str) -> None:
    """A leaked connection (named in the log), a handler without a client, an idle connection, a websocket: it ends."""
    server = launch(kind, options=("--graceful-timeout", "8"), maxsize=3, drain_grace=0.5, runner=RULE)
    assert server.get("/leak").body == "leaked"
    with server.send(b"GET /query/60 HTTP/1.1\r\nHost: test\r\n\r\n"):
        server.has_started("/query/60")
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(server.send(b"GET /pid HTTP/1.1\r\nHost: test\r\n\r\n"))
        assert idle.recv(12) == b"HTTP/1.1 200"
        stack.enter_context(upgraded(server))
        watch = stack.enter_context(watched(server))
        begun = server.signal()
        clean(server)
        assert time.monotonic() - begun < BOUND
    assert watch.longest < LONGEST, watch.longest
    (report,) = server.drained()
    assert (report.cancelled, report.forced) == (1, 1)
    assert report.who == "GET /leak"
    assert report.duration < 5  # nobody is left who could give the leaked one back: no reason to wait for it
    assert "SIGKILL" not in server.output


@pytest.mark.slow
def test_an_idle_websocket_ends_under_gunicorn(launch: Launch, clean: Callable[..., None]) -> None:
    """The pool is drained within drain_grace; if gunicorn kills the worker for its websocket (A6), nothing is left."""
    server = launch("gunicorn", options=("--graceful-timeout", "4"), drain_grace=0.5)
    with upgraded(server):
        server.signal()
        wait_for(server.drained, "the drain")
        clean(server, also=("ResourceWarning",))
    (report,) = server.drained()
    assert (report.cancelled, report.forced) == (0, 0)


def upgraded(server: Server) -> socket.socket:
    """A websocket on which nothing happens."""
    client = server.send(
        b"GET /socket HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    server.has_started("/socket")
    return client


@pytest.mark.parametrize("layout", ["pair", "sub-setup", "sub-pair"])
def test_every_layout_drains(launch: Launch, clean: Callable[..., None], layout: str) -> None:
    """The explicit pair and sub-applications: what is in flight is answered, and the exit is clean."""
    server = launch("run_app", layout=layout)
    path = "/query/0.5" if layout == "pair" else "/sub/query/0.5"
    answer = server.ask(path)
    server.has_started(path)
    server.signal()
    assert answer.result()[::2] == (200, "done")
    clean(server)
    assert len(server.drained()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_request_on_a_busy_connection_is_not_just_dropped(
    launch: Launch, clean: Callable[..., None], kind: str
) -> None:
    """A7: behind a request in flight, it is answered, or the answer before it says that none will come."""
    server = launch(kind)
    with server.send(
        b"".join(b"GET %s HTTP/1.1\r\nHost: test\r\n\r\n" % path for path in (b"/query/0.6", b"/pid"))
    ) as busy:
        server.has_started("/query/0.6")
        server.signal()
        received = b""
        while data := busy.recv(65536):
            received += data
    first, _, second = received.partition(b"done")
    assert first.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in first.lower() or second.startswith(b"HTTP/1.1 ")
    clean(server)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGHUP])
def test_other_signals_of_gunicorn(launch: Launch, clean: Callable[..., None], number: signal.Signals) -> None:
    """SIGQUIT stops, and SIGHUP replaces the worker: the old one's pool is drained, the new one serves."""
    server = launch("gunicorn", drain_grace=3)
    before = server.get("/pid").body
    answer = server.ask("/query/0.5")
    server.has_started("/query/0.5")
    server.signal(number)
    assert answer.result()[::2] == (200, "done")
    wait_for(server.drained, "the drain")
    if number == signal.SIGHUP:
        wait_for(lambda: (now := server.get("/pid")).status == 200 and now.body != before, "a new worker")
        server.signal()
    clean(server)
    assert [report.forced for report in server.drained()] == [0] * (1 + (number == signal.SIGHUP))
