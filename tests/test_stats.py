"""Numbers: histograms, their quantiles, and the snapshots that are handed out."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_poolscope.gate import Outcome
from aiohttp_poolscope.stats import BUCKETS, Histogram, HistogramSnapshot, Lease, PoolStats


def snapshot_of(*seconds: float) -> HistogramSnapshot:
    """What is seen after recording these."""
    histogram = Histogram()
    for duration in seconds:
        histogram.record(duration)
    return histogram.snapshot()


def test_a_duration_falls_at_or_below_its_bound() -> None:
    """The bounds are Prometheus's ``le``: 1 ms belongs to the bucket that ends at 1 ms."""
    snapshot = snapshot_of(0.001, 0.0010001, 100.0)
    assert snapshot.counts[BUCKETS.index(0.001)] == 1
    assert snapshot.counts[BUCKETS.index(0.0025)] == 1
    assert snapshot.counts[-1] == 1
    assert len(snapshot.counts) == len(snapshot.bounds) + 1


def test_count_and_sum() -> None:
    """They give the mean."""
    snapshot = snapshot_of(0.5, 1.5)
    assert (snapshot.count, snapshot.sum) == (2, 2.0)


def test_no_wait_at_all_is_counted_too() -> None:
    """Otherwise the quantiles would tell of those who waited only."""
    histogram = Histogram()
    for _ in range(99):
        histogram.record_zero()
    histogram.record(2.0)
    snapshot = histogram.snapshot()
    assert (snapshot.count, snapshot.sum) == (100, 2.0)
    assert snapshot.quantile(0.9) <= BUCKETS[0]


def test_a_snapshot_does_not_change() -> None:
    """What was handed out is a copy, and frozen."""
    histogram = Histogram()
    snapshot = histogram.snapshot()
    histogram.record(0.2)
    assert (snapshot.count, snapshot.sum) == (0, 0.0)
    with pytest.raises(FrozenInstanceError):
        snapshot.sum = 1.0  # type: ignore[misc]


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    """Ten between 0.1 and 0.25: the middle one is taken to be in the middle."""
    snapshot = snapshot_of(*[0.2] * 10)
    assert snapshot.quantile(0.5) == pytest.approx(0.175)
    assert snapshot.quantile(1.0) == pytest.approx(0.25)


def test_a_quantile_of_nothing_is_nothing() -> None:
    """A dashboard of a pool that has just started shows zeros."""
    assert snapshot_of().quantile(0.99) == 0.0


def test_beyond_the_last_bound_the_quantile_is_a_lower_limit() -> None:
    """It is never made up."""
    assert snapshot_of(0.01, 100.0, 200.0).quantile(0.99) == BUCKETS[-1]


@pytest.mark.parametrize("q", [-0.01, 1.01, 99, math.nan])
def test_a_share_is_between_nothing_and_everything(q: float) -> None:
    """99 instead of 0.99 is said, not answered."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        snapshot_of(0.1).quantile(q)


@given(
    seconds=st.lists(st.floats(0, 60), min_size=1, max_size=50),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_quantiles_grow_and_stay_in_the_right_bucket(seconds: list[float], shares: list[float]) -> None:
    """A larger share never has a smaller quantile, and each lies in the bucket of the true one."""
    snapshot = snapshot_of(*seconds)
    low, high = (snapshot.quantile(share) for share in shares)
    assert low <= high
    true = sorted(seconds)[max(0, math.ceil(shares[1] * len(seconds)) - 1)]
    bounds = (0.0, *BUCKETS)
    assert any(
        lower <= true <= upper and lower <= high <= upper * (1 + 1e-9)
        for lower, upper in zip(bounds, (*BUCKETS, math.inf), strict=True)
    )


def test_the_stats_have_a_number_for_every_outcome() -> None:
    """``borrows`` is the sum of exactly these."""
    assert {outcome.value for outcome in Outcome} <= {field.name for field in fields(PoolStats)}


def test_stats_and_leases_are_frozen() -> None:
    """They tell of one moment."""
    stats = PoolStats(maxsize=10, in_use=3)
    with pytest.raises(FrozenInstanceError):
        stats.in_use = 4  # type: ignore[misc]
    assert (stats.size, stats.breaker, stats.wait.count) == (0, "closed", 0)


def test_a_lease_shows_its_path() -> None:
    """The first question about a leak is: which request?"""
    lease = Lease(
        method="GET", path="/slow", route="/slow", request_id=None, task="Task-7", held=31.5, where="app.py:12 in slow"
    )
    assert "/slow" in repr(lease)
    assert "31.5" in repr(lease)
