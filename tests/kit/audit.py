"""What must hold of a pool: at every moment, when nobody wants anything of it, and when it has ended.

Each function lists what is wrong: nothing, if all is well.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from aiohttp_poolscope.events import Event, StatementFailed
from aiohttp_poolscope.gate import Outcome

if TYPE_CHECKING:
    from aiohttp_poolscope import PoolScope, PoolStats
    from aiohttp_poolscope.pool import Lifecycle


def ended(stats: PoolStats) -> int:
    """How many borrows have ended, in whichever way."""
    return sum(getattr(stats, outcome.value) for outcome in Outcome)


def unbalanced(run: Lifecycle) -> list[str]:
    """At every moment: the gate's own invariants, and each borrow has one outcome."""
    stats = run.stats()
    found = [f"gate: not {violation}" for violation in run.pool.gate.violations()]
    return [*found, *said("borrows are not the sum of their outcomes", when=stats.borrows != ended(stats))]


def quiet(run: Lifecycle) -> bool:
    """Whether nobody wants anything of it, and it has nothing to do."""
    gate = run.pool.gate
    return gate.lent == gate.waiting == gate.repairing == gate.opening == run.pool.attached == 0


def left(run: Lifecycle) -> list[str]:
    """When it is quiet: every connection is idle, and is counted."""
    stats = run.stats()
    here = stats.size == stats.idle == stats.opened - stats.closed <= stats.maxsize
    found = [
        *unbalanced(run),
        *said("something is under way", when=(stats.in_use, stats.waiting, stats.repairing) != (0, 0, 0)),
        *said("connections are missing, or too many", when=not here),
    ]
    return [*found, repr(stats)] if found else []


def left_behind(run: Lifecycle) -> list[str]:
    """When it has ended: besides, no connection is open."""
    stats = run.stats()
    return [*left(run), *said("connections are open", when=stats.size != 0)]


def said(finding: str, *, when: bool) -> list[str]:
    return [finding] if when else []


class Ledger:
    """Counts the events of a scope, from now on: as many as the numbers have grown by since."""

    def __init__(self, scope: PoolScope) -> None:
        self._scope = scope
        self._told: Counter[str] = Counter()
        self._before = counted(scope.stats())
        scope.on_event(self._hear)

    def _hear(self, event: Event) -> None:
        self._told[f"{event.kind} {event.fault}" if isinstance(event, StatementFailed) else event.kind] += 1

    @property
    def events(self) -> int:
        """How many there were."""
        return self._told.total()

    def differences(self) -> dict[str, tuple[int, int]]:
        """Kinds of which there are other than the numbers say: events, and what was counted."""
        now = counted(self._scope.stats())
        pairs = {kind: (self._told[kind], now[kind] - self._before[kind]) for kind in now}
        return {kind: pair for kind, pair in pairs.items() if pair[0] != pair[1]}


def counted(stats: PoolStats) -> dict[str, int]:
    """The numbers, by the kind of event that belongs to each."""
    same = ("timed_out", "refused", "shed", "client_gone", "cancelled", "failed", "opened", "connect_failed", "closed",
            "leaked")  # fmt: skip
    return {
        **{kind: getattr(stats, kind) for kind in same},
        **{f"error {fault}": count for fault, count in stats.errors.items()},
        "acquired": stats.lent,
        "released": stats.lease.count,
    }
