"""What every outage is held to: how the requests of a load must have ended, before, during and after it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.conftest import BUSY, until

if TYPE_CHECKING:
    from tests.kit.load import Result, Run

    from .service import Running

PATHS = {"/read": 5.0, "/write": 3.0, "/transfer": 3.0, "/slow/0.02": 1.0}

SOON = 1.0 + BUSY
"""Seconds from the database's return to the first success: the promise, and what a busy machine may add."""

DEAD, SHED = "database-unavailable", "pool-exhausted"
"""What a refusal says: it is the database's trouble, or only too much for this moment (and this machine)."""

UNKNOWN = "outcome-unknown"
"""What is said of a write whose answer was lost."""


def dead(run: Run) -> int:
    """How many requests met the outage."""
    return sum(result.code in {DEAD, UNKNOWN} for result in run.results)


async def warm(run: Run, count: int = 25) -> None:
    """The load has begun, and everything is well."""
    await until(lambda: len(run.results) >= count, f"{count} results")
    assert dead(run) == 0


async def more(run: Run, count: int, *, status: int | None = None, after: float | None = None) -> None:
    """So many more requests that begin now, or began after ``after``, have ended (with this status)."""
    begun = time.monotonic() if after is None else after
    wanted = (lambda: run.statuses(start=begun)[status]) if status else (lambda: run.statuses(start=begun).total())
    await until(lambda: wanted() >= count, f"{count} results {status or ''}")


async def recovered(run: Run, ready: float, outage: str, *, count: int = 25) -> Result:
    """The first success after the database's return, told and in time; and from then on nobody meets the outage."""
    first = await run.success_after(ready)
    print(f"first success after {outage}: {first.end - ready:.3f} s")
    assert first.end - ready < SOON, f"{first.end - ready:.3f} s"
    await more(run, count, after=first.end)
    return first


async def kept(run: Run, running: Running, healthy: float) -> None:
    """The load has ended. Everybody was answered, who began after ``healthy`` well, and what was said is true."""
    await more(run, 20, status=200, after=healthy)
    await run.stop()
    known = [result for result in run.results if result.code != UNKNOWN]
    assert {result.status for result in known} <= {200, 503, 504}, run.statuses()
    assert all(result.retry_after for result in run.results if result.status == 503)
    later = [result for result in run.results if result.at > healthy]
    # A machine with other work to do may shed many of them; that is no trouble with the database.
    wrong = [result for result in later if result.status != 200 and result.code != SHED]
    assert wrong == []
    assert await running.writes_lost(run) == []
    assert await running.writes_denied(run) == []
