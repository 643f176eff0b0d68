"""The page's headline: each state in words with its numbers and the next step, the cause before what it causes."""

from __future__ import annotations

import pytest

from aiohttp_poolscope import Lease, PoolStats
from aiohttp_poolscope.contrib.dashboard.verdict import Facts, Verdict, seconds, verdict

ENDING = PoolStats(in_use=2, repairing=1)
BUSY = PoolStats(size=10, in_use=10, maxsize=10, waiting=4, oldest_wait=0.05)
FULL = PoolStats(size=10, in_use=10, maxsize=10, waiting=37, oldest_wait=2.1)
CALM = PoolStats(size=10, in_use=3, idle=7, maxsize=10)
GONE = PoolStats(maxsize=10, breaker="open")


def lease(held: float, route: str | None = "/report", task: str | None = "Task-7") -> Lease:
    method = "GET" if route else None
    return Lease(method=method, path=route, route=route, request_id="r", task=task, held=held, where="a.py:1 in a")


@pytest.mark.parametrize(
    ("facts", "level", "text"),
    [
        (Facts(stats=CALM), "ok", "Healthy"),
        (Facts(stats=PoolStats(size=10, in_use=10, maxsize=10)), "ok", "Healthy"),
        (Facts(stats=BUSY), "ok", "Healthy"),
        (Facts(stats=BUSY, leaks=(lease(41.2),)), "warn", "1 connection leaked: GET /report has held it for 41 s"),
        (Facts(state="starting"), "info", "Starting"),
        (Facts(state="closed"), "info", "Closed"),
        (Facts(state="draining", stats=ENDING), "info", "Draining: 3 connections to wait for"),
        (Facts(state="draining", stats=PoolStats(in_use=1)), "info", "Draining: 1 connection to wait for"),
        (Facts(state="draining"), "info", "Draining: no connection to wait for"),
        (Facts(stats=FULL), "warn", "Saturated: 10 of 10 in use, 37 waiting, the longest for 2.1 s"),
        (
            Facts(stats=FULL, recent={"shed": 1200, "timed_out": 31}),
            "bad",
            "Saturated: 10 of 10 in use, 37 waiting, the longest for 2.1 s; 1,231 refused in 10 s",
        ),
        (Facts(stats=CALM, recent={"refused": 1}), "warn", "1 request refused in the last 10 s"),
        (Facts(stats=GONE, away=12.2), "bad", "The database is away: requests have been refused for 12 s"),
        (
            Facts(stats=PoolStats(opening=1, size=1, waiting=5), recent={"connect_failed": 2}),
            "bad",
            "The database does not answer: 5 requests waiting for it",
        ),
        (
            Facts(stats=PoolStats(size=3, in_use=3, maxsize=10), recent={"connect_failed": 2}),
            "warn",
            "No new connections: 3 of 10 are left, and serve",
        ),
        (Facts(stats=CALM, recent={"failed": 7}), "warn", "The database is back: 7 requests failed in the last 10 s"),
        (Facts(stats=CALM, leaks=(lease(41.2),)), "warn", "1 connection leaked: GET /report has held it for 41 s"),
        (
            Facts(stats=FULL, leaks=(lease(300), lease(40))),
            "bad",
            "2 connections leaked: GET /report has held one for 5 min, 37 waiting",
        ),
        (Facts(leaks=(lease(41, None, "nightly"),)), "warn", "1 connection leaked: nightly has held it for 41 s"),
        (Facts(leaks=(lease(41, None, None),)), "warn", "1 connection leaked: a task has held it for 41 s"),
        (Facts(stats=FULL, moved=35.0), "bad", "Stalled: all 10 in use, and none has come back for 35 s"),
        (
            Facts(stats=CALM, minute={"dead": 3, "error:connection": 1}),
            "warn",
            "4 connections found dead in the last minute",
        ),
        (
            Facts(stats=CALM, minute={"error:timeout": 2}),
            "warn",
            "2 statements ran into the time limit in the last minute",
        ),
        (Facts(stats=CALM, minute={"error:statement": 9}), "ok", "Healthy"),
    ],
)  # fmt: skip
def test_each_state_has_its_words(facts: Facts, level: str, text: str) -> None:
    """The level and the words are what the state deserves, and whatever is not well comes with a next step."""
    found = verdict(facts)
    assert (found.level, found.text) == (level, text)
    assert bool(found.advice) is (level != "ok")


def test_the_cause_comes_first() -> None:
    """Where much is wrong at once, the end is said before an outage, that before leaks, those before a full pool."""
    everything = Facts(stats=FULL, recent={"shed": 9}, minute={"dead": 9}, leaks=(lease(99),), state="draining")
    kinds = [verdict(everything).kind]
    away = Facts(stats=GONE, away=1.0, leaks=(lease(99),), recent={"shed": 9})
    kinds.append(verdict(away).kind)
    leaking = Facts(stats=FULL, leaks=(lease(99),), moved=99.0, recent={"shed": 9})
    kinds.append(verdict(leaking).kind)
    stalled = Facts(stats=FULL, moved=99.0, recent={"shed": 9}, minute={"dead": 9})
    kinds.append(verdict(stalled).kind)
    full = Facts(stats=FULL, recent={"shed": 9}, minute={"dead": 9})
    kinds.append(verdict(full).kind)
    assert kinds == ["draining", "away", "leaked", "stalled", "saturated"]


def test_what_is_normal_follows_the_settings() -> None:
    """A wait below queue_target is no trouble; without that setting a tenth of a second is normal."""
    waiting = PoolStats(size=2, in_use=2, maxsize=2, waiting=1, oldest_wait=0.5)
    assert verdict(Facts(stats=waiting, queue_target=1.0)) == Verdict("ok", "healthy", "Healthy")
    assert verdict(Facts(stats=waiting, queue_target=None)).kind == "saturated"
    assert verdict(Facts(stats=waiting, queue_target=1.0, statement_timeout=0.1, moved=3.0)).kind == "stalled"
    assert verdict(Facts(stats=waiting, queue_target=1.0, statement_timeout=None, moved=3.0)).kind == "healthy"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0 ms"), (0.0124, "12 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (2.06, "2.1 s"), (9.96, "10 s"),
        (41.4, "41 s"), (119.6, "2 min"), (7169, "119 min"), (7200, "2 h"),
    ],
)  # fmt: skip
def test_durations_are_for_people(value: float, words: str) -> None:
    """Two digits or so, in the unit one would say it in, without a jump where the unit changes."""
    assert seconds(value) == words
