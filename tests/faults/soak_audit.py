"""The audit at the end of a soak: while the service still runs, and when it is gone."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aiohttp_poolscope.connection import ScopedConnection
from tests.kit.audit import ended, left, left_behind, quiet

from .service import ACCOUNTS, BALANCE
from .soak_report import outcomes
from .soak_watch import descriptors, rss

if TYPE_CHECKING:
    from collections.abc import Callable

    from .soak import Soak

QUIET = 5.0
"""Seconds within which everything has come back: those who have left may have been in the middle of something."""


async def comes_true(condition: Callable[[], Any], limit: float, pause: float = 0.01) -> bool:
    """Whether it does within ``limit`` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(pause)
    return True


async def audit(soak: Soak) -> None:
    """The load has ended: everything has come back."""
    report, watch, scope, run = soak.report, soak.watch, soak.stage.scope, soak.watch.lifecycle
    # What a fault has leaked shortly before the end is taken back when its max_lease is over.
    held = soak.stage.leaked_at + (scope.config.max_lease or 0.0) - time.monotonic()
    back = await comes_true(lambda: quiet(run), max(0.0, held) + QUIET)
    stats = scope.stats()
    _tell_requests(soak)
    shown = f"{stats.in_use} in use, {stats.waiting} waiting, {stats.repairing} repairing"
    report.tell("back", ", ".join([shown, *left(run)]), ok=back and not left(run))
    report.tell("borrows", f"{stats.borrows:,} = {ended(stats):,} outcomes", ok=stats.borrows == ended(stats))
    wrong = watch.ledger.differences()
    report.tell("events", f"{watch.ledger.events:,}, other than counted: {wrong or 'none'}", ok=not wrong)
    report.tell("gate", f"{watch.samples:,} samples, most in use {watch.most_in_use}, waiting {watch.most_waiting}")
    report.tell("event loop", f"stood still {watch.stalls} times, {watch.longest_stall:.2f} s at most")
    report.tell(
        "pool",
        f"opened {stats.opened:,}, dead {stats.dead:,}, repaired {stats.repaired:,}, abandoned {stats.abandoned:,}, "
        f"leaked {stats.leaked:,}, longest lease {watch.longest_lease:.1f} s",
    )
    try:
        async with asyncio.timeout(5.0):
            report.tell("check", f"{1000 * await scope.check():.1f} ms", ok=True)
    except Exception as error:  # noqa: BLE001 - whatever it is
        report.tell("check", repr(error), ok=False)
    names = sorted(task.get_name() for task in run.pool.tasks)
    housekeeper = await comes_true(lambda: [t.get_name() for t in run.pool.tasks] == ["poolscope db: housekeeper"], 5.0)
    report.tell("tasks of the pool", ", ".join(names), ok=housekeeper)
    await _tell_backends(soak)
    _tell_data(soak)
    await _tell_memory(soak)


def _tell_requests(soak: Soak) -> None:
    report, ends = soak.report, soak.ends.ends
    report.tell("requests that waited", outcomes(soak.tally), ok=not {0, -1, 500} & soak.tally.statuses.keys())
    calm, shed = soak.tally.in_calm, soak.tally.shed_in_calm
    report.tell("  in calm seconds", f"{calm:,}, {calm - shed:,} served", ok=soak.tally.calm)
    report.tell("clients that left", f"{soak.left:,}")
    handlers = ", ".join(f"{name} {count:,}" for name, count in ends.most_common())
    report.tell("ends of handlers", handlers, ok=not any(name.startswith("500") for name in ends))


async def _tell_backends(soak: Soak) -> None:
    watch, maxsize = soak.watch, soak.watch.pool.gate.maxsize
    found: dict[int, str] | None = None
    for _ in range(100):  # some may be about to end
        found = await asyncio.to_thread(watch.backends)
        if found is not None and len(found) <= maxsize and set(found.values()) <= {"idle"}:
            break
        await asyncio.sleep(0.05)
    ok = found is not None and len(found) <= maxsize and set(found.values()) <= {"idle"}
    states = "unreachable" if found is None else f"{len(found)} of {maxsize}, {', '.join(sorted(set(found.values())))}"
    report = soak.report
    report.tell("backends", f"{states}; {watch.looks_outside:,} looks, at most {watch.most_backends}", ok=ok)


def _tell_data(soak: Soak) -> None:
    file, report, sql = soak.acknowledged, soak.report, soak.stage.server.sql
    file.seek(0)
    told = {int(line) for line in file}
    there = {int(line) for line in sql("SELECT id FROM writes").splitlines()}
    lost = told - there
    report.tell("acknowledged writes", f"{len(told):,}, lost {len(lost)} {sorted(lost)[:5] or ''}", ok=not lost)
    total = int(sql("SELECT sum(balance) FROM accounts"))
    report.tell("sum of accounts", total, ok=total == ACCOUNTS * BALANCE)


async def _tell_memory(soak: Soak) -> None:
    report, watch = soak.report, soak.watch
    gc.collect()
    warm, warm_descriptors = soak.warm or (rss(), len(descriptors()))
    # asyncio keeps a cancelled timer, and with it the context of its request, until it would have ended: that of a
    # borrow that has waited, for acquire_timeout.
    maxsize, config = watch.pool.gate.maxsize, soak.stage.scope.config
    few = await comes_true(lambda: _few_alive(alive(), maxsize), config.acquire_timeout + QUIET, pause=0.25)
    count = alive()
    told = f"{count['Request']} requests, {count['ScopedConnection']} of their connections"
    report.tell("alive", told, ok=few)
    per_thousand, in_all = watch.growth()
    report.tell("memory", f"{warm / 1024:.1f} MiB warm, {rss() / 1024:.1f} MiB at the end")
    growth = f"{per_thousand:+.1f} KiB per 1,000 requests, {in_all:+.0f} KiB in the second half"
    report.tell("growth", growth, ok=not watch.leaks())
    report.tell(
        "descriptors",
        f"{warm_descriptors} warm, at most {watch.most_descriptors}, {len(descriptors())} without clients",
    )


def alive() -> Counter[str]:
    """Objects of requests that are still there."""
    return Counter(
        type(each).__name__ for each in gc.get_objects() if isinstance(each, (web.Request, ScopedConnection))
    )


def _few_alive(count: Counter[str], maxsize: int) -> bool:
    # An open connection, and the opener, keep the context of the request for which it was opened.
    return not count["Request"] and count["ScopedConnection"] <= maxsize + 1


async def audit_after(soak: Soak, before: tuple[set[str], int]) -> None:
    """The service is gone: nothing of it is left."""
    report, watch = soak.report, soak.watch
    left: dict[int, str] | None = None
    for _ in range(100):
        left = await asyncio.to_thread(watch.backends)
        if left == {}:
            break
        await asyncio.sleep(0.1)
    watch.close()
    report.tell("backends after the cleanup", left, ok=left == {})
    await comes_true(lambda: len(descriptors()) <= len(before[0]) and len(asyncio.all_tasks()) <= before[1], 5.0)
    now, tasks = descriptors(), len(asyncio.all_tasks())
    more = [now[number] for number in now.keys() - before[0]]
    ok = len(now) <= len(before[0])
    kept = f"{len(now)}, before it all {len(before[0])}{'' if ok else f'; new: {more}'}"
    report.tell("descriptors after the cleanup", kept, ok=ok)
    report.tell("tasks after the cleanup", f"{tasks}, before it all {before[1]}", ok=tasks <= before[1])
    stats = watch.lifecycle.stats()
    counted = f"opened {stats.opened:,}, closed {stats.closed:,}"
    report.tell("connections", counted, ok=not left_behind(watch.lifecycle))
