"""The verdict of the stress command: what makes a service sick, and what does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aiohttp_poolscope.cli.stress.client import Answer
from aiohttp_poolscope.cli.stress.phases import Phase
from aiohttp_poolscope.cli.stress.verdict import Seen, judge, not_testable
from aiohttp_poolscope.cli.stress.watch import Left, Watch


def phase(answered: int = 100, seconds: float = 0.01, status: int = 200, **outcomes: int) -> Phase:
    found = Phase("a phase", Counter(outcomes))
    for _ in range(answered):
        found.add(Answer("answered", seconds, status))
    return found


def seen(**phases: Any) -> Seen:
    """A service that is well, but for what is given."""
    gone = {"leaving": phase(10, left=90), "slow": phase(0, left=30)}
    well = {name: phase() for name in ("before", "staying", "staying_beside_slow", "after")}
    return Seen(**{**well, **gone, **phases})


def test_as_before_is_healthy() -> None:
    """The same answers as before: no reason, nothing to note. A little slower, or one lost of a hundred, is chance."""
    assert judge(seen()) == judge(seen(after=phase(99, 0.05, silent=1)))
    assert not judge(seen()).sick
    assert judge(seen()).notes == ()


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"after": phase(50, silent=50)}, "50 of 100 requests were answered well (before: 100%). They wait for"),
        ({"after": phase(0, refused=100)}, "does not listen any more"),
        ({"after": phase(0, cut=100)}, "closed without an answer"),
        (
            {"after": phase(100, status=503)},
            "0 of 100 requests were answered well (before: 100%). It answers with errors",
        ),
        ({"after": phase(100, 0.2)}, "an answer takes 200 ms, before 10 ms"),
        ({"staying": phase(90, silent=10)}, "while others left, 10 of 100 clients that stayed got no answer"),
        ({"staying_beside_slow": phase(5, silent=5)}, "while slow clients were there, 5 of 10"),
    ],
)
def test_each_reason_to_be_sick(trouble: dict[str, Phase], said: str) -> None:
    """One thing that is worse is one reason, with its numbers."""
    (reason,) = judge(seen(**trouble)).reasons
    assert said in reason


def test_the_server_is_heard() -> None:
    """Transactions and statements that outlive their clients are reasons; sessions that cannot be seen are noted."""
    watch = Watch(None)  # type: ignore[arg-type]  # it looks at nothing here
    watch.left = Left(0, 0)
    assert not judge(seen(watch=watch)).sick
    watch.left, watch.hidden = Left(2, 3), 4
    verdict = judge(seen(watch=watch))
    assert [reason.split()[:2] for reason in verdict.reasons] == [["2", "transactions"], ["3", "statements"]]
    assert "pg_read_all_stats" in verdict.notes[0]


def test_too_few_that_left_are_noted() -> None:
    """Where most were answered before they could leave, the verdict is worth less, and says so."""
    assert "a slower request would show more" in judge(seen(leaving=phase(80, left=20))).notes[0]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (phase(0, refused=50), "nobody listens there"),
        (phase(100, status=404), "100 times 404"),
        (phase(80, silent=20), "80 times 200, 20 silent"),
        (Phase("nothing"), "no request was sent"),
    ],
)
def test_what_cannot_be_tested(before: Phase, said: str) -> None:
    """A service that does not answer well to begin with can only get better: nothing is said of it."""
    assert said in (not_testable(before) or "")
    assert not_testable(phase(95, silent=5)) is None
