"""Breaker: who asks a database that cannot be reached, and how often."""

from __future__ import annotations

import pytest

from aiohttp_poolscope.gate import Breaker, BreakerState


def opened(failures: int = 3, longest: float = 0.5) -> Breaker:
    """One that has just opened."""
    breaker = Breaker(failures, longest)
    assert [breaker.failed() for _ in range(failures)] == [False] * (failures - 1) + [True]
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    """A restart that is over soon is waited out; only what lasts refuses requests."""
    breaker = Breaker(3, 0.5)
    seen = [(breaker.failed(), breaker.closed) for _ in range(3)]
    assert seen == [(False, True), (False, True), (True, False)]
    assert breaker.state is BreakerState.OPEN


def test_a_success_forgets_the_failures() -> None:
    """What failed long ago says nothing about now."""
    breaker = Breaker(2, 0.5)
    for _ in range(5):
        assert not breaker.failed()
        assert not breaker.succeeded()
    assert breaker.closed


def test_a_probe_lets_nobody_wait_until_it_has_succeeded() -> None:
    """Requests do not pile up behind an attempt that will probably fail."""
    breaker = opened()
    breaker.probe()
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.closed
    assert breaker.succeeded()
    assert breaker.closed


def test_a_probe_that_fails_does_not_open_it_again() -> None:
    """It never closed: the event is told once an outage."""
    breaker = opened()
    for _ in range(10):
        breaker.probe()
        assert not breaker.failed()
        assert breaker.state is BreakerState.OPEN


def test_an_attempt_while_it_is_closed_is_no_probe() -> None:
    """The ordinary growth of a pool does not stop requests from waiting."""
    breaker = Breaker(3, 0.5)
    breaker.probe()
    assert breaker.closed


def test_pauses_double_up_to_the_longest() -> None:
    """Quick at first, and never further from the database's return than ``breaker_reset``."""
    breaker = Breaker(100, 0.5)
    pauses = []
    for _ in range(6):
        breaker.failed()
        pauses.append(breaker.pause(1.0))
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])


def test_a_pause_can_be_shorter_than_the_first() -> None:
    """``breaker_reset`` is the limit from the beginning."""
    breaker = opened(1, 0.01)
    assert breaker.pause(1.0) == pytest.approx(0.01)


def test_jitter_takes_at_most_a_quarter() -> None:
    """Many processes do not ask in step, and none asks much sooner than the others."""
    breaker = opened(1, 0.5)
    assert breaker.pause(0.0) == pytest.approx(0.75 * 0.05)
    assert 0.75 * 0.05 < breaker.pause(0.5) < breaker.pause(0.999) < 0.05


def test_an_outage_of_days_still_has_a_pause() -> None:
    """The opener outlives any number of failures: doubling for ever would overflow."""
    breaker = Breaker(5, 0.5)
    for _ in range(5000):
        breaker.probe()
        breaker.failed()
    assert breaker.pause(1.0) == pytest.approx(0.5)
