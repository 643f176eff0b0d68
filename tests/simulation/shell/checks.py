"""Checks: what must hold at every step, what must come true in time, and what may be told to whom."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from aiohttp_poolscope.gate import SlotState
from aiohttp_poolscope.pool.queue import QueuedBorrow

from .visitors import DONE, LOST, NOT_DONE, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp_poolscope.pool import Lifecycle

    from .driver import Raw
    from .server import Write

__all__ = ("OPEN", "Finding", "at_each_step", "statement", "truth")

LATE = 0.1
"""Seconds beyond its deadline that a borrow may wait."""

OPEN: Final[dict[str, str]] = {}
"""Lies that are known and open, each with a sentence: they are counted, and are no finding.

The keys are "the answer to a COMMIT was lost" and "the answer to a statement was lost": it was carried out, and
DatabaseUnavailable says 'try again'. Neither is open.
"""


class Finding(AssertionError):
    """Something that must not be."""


def at_each_step(run: Lifecycle, open_links: int, more_links: int, now: float) -> None:
    """Safety: after each step, whatever it was."""
    gate = run.pool.gate
    if broken := gate.violations():
        raise Finding(f"the gate: {broken}")
    if gate.size > gate.maxsize or open_links > gate.maxsize + more_links:
        raise Finding(f"{gate.size} connections and {open_links} links, maxsize is {gate.maxsize}")
    holders = [slot.holder for slot in gate.slots if slot.state is SlotState.LENT and slot.holder is not None]
    if gate.lent - len(holders) != gate.handed:
        raise Finding(f"{gate.lent} are lent, {len(holders)} have a holder, and {gate.handed} are under way")
    for slot in gate.slots:
        holder = slot.holder
        if holder is None:
            continue
        if slot.state is not SlotState.LENT or holder._slot is not slot:
            raise Finding(f"{holder} holds a connection that is {slot.state.value}")
        if holder.handling and holder._once is False and holder.task is not None and holder.task.done():
            raise Finding(f"{holder} has ended and holds a connection")
    for waiter in gate.waiters():
        if isinstance(waiter, QueuedBorrow) and now > waiter.end + LATE:
            raise Finding(f"a borrow waits {now - waiter.end:.2f} s after its deadline")


def statement(runs: Iterable[Lifecycle], raw: Raw, sql: str, tag: str | None) -> str | None:
    """What is wrong about ``tag`` running a statement on this connection; None: nothing."""
    slot: Any = None
    for run in runs:
        slot = next((slot for slot in run.pool.gate.slots if slot.link.raw is raw), slot)
    if tag is None:
        if slot is not None and slot.state is SlotState.LENT:
            return f"the pool runs {sql!r} on a connection that is lent"
        return None
    if slot is None or slot.state is not SlotState.LENT or slot.holder is None:
        return f"{tag} runs {sql!r} on a connection it does not have"
    if slot.holder.task is None:  # a task that was left behind got it for what has ended meanwhile
        return None
    owner = slot.holder.task.get_name().partition("/")[0]
    return None if owner == tag else f"{tag} runs {sql!r} on a connection that {owner} has"


def truth(units: Iterable[Unit], rows: list[Write]) -> tuple[list[str], Counter[str]]:
    """What was told and is not so; and how often each of the OPEN lies was met."""
    counted = Counter((row.tag, row.number) for row in rows)
    findings = [f"{tag}: row {number} was written {n} times" for (tag, number), n in counted.items() if n > 1]
    known: Counter[str] = Counter()
    for unit in units:
        there = {number for number in unit.numbers if (unit.tag, number) in counted}
        wrong = sorted(number for number in unit.undone if (unit.tag, number) in counted)
        who = f"{unit.tag}: {unit.what} was told {unit.told!r} {unit.words}, and of {sorted(unit.numbers)}"
        if wrong:
            findings.append(f"{unit.tag}: {wrong} of {unit.what} were undone, and are there")
        if there and there != unit.numbers:
            findings.append(f"{who} only {sorted(there)} are there")
        elif unit.told == DONE and there != unit.numbers:
            findings.append(f"{who} none is there")
        elif unit.told == NOT_DONE and there:
            findings.append(f"{who} all are there")
        elif unit.told == LOST and there:
            alone = unit.what == "a statement"
            lie = "the answer to a statement was lost" if alone else "the answer to a COMMIT was lost"
            if lie in OPEN:
                known[lie] += 1
            else:
                findings.append(f"{who} all are there: {lie}")
    return findings, known
