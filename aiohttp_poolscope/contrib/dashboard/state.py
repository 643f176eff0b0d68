"""State: a scope at this moment, as the plain values that the page and ``state.json`` show."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.gate import LENT
from aiohttp_poolscope.web.outside import slots_of

from .verdict import Facts, verdict

if TYPE_CHECKING:
    from aiohttp_poolscope import Lease, PoolScope, PoolStats

    from .sampler import Recorder

__all__ = ("Seats", "state_of")

NOW = ("size", "idle", "in_use", "opening", "repairing", "waiting", "minsize", "maxsize", "breaker")


class Seats:
    """The cells of the page: a connection keeps the same one for as long as it is open."""

    def __init__(self, scope: PoolScope) -> None:
        self._scope = scope
        self._seats: list[int | None] = [None] * scope.config.maxsize

    def slots(self, now: float) -> list[dict[str, Any]]:
        """One for each connection that may be, up to ``maxsize``; ``since``: seconds it has been in its state."""
        # By number: the slot itself, kept here, would outlive its connection. One taken over is a cell reused.
        present = {id(slot): slot for slot in slots_of(self._scope)}
        self._seats = [seat if seat in present else None for seat in self._seats]
        for new in present.keys() - set(self._seats):
            self._seats[self._seats.index(None)] = new
        opening = self._scope.stats().opening
        found: list[dict[str, Any]] = []
        for seat in self._seats:
            if seat is not None:
                slot = present[seat]
                found.append({"state": slot.state.value, "since": round(max(0.0, now - slot.since), 3)})
            elif opening:
                opening -= 1
                found.append({"state": "opening", "since": None})
            else:
                found.append({"state": "empty", "since": None})
        return found


def state_of(recorder: Recorder, seats: Seats) -> dict[str, Any]:
    """One entry of ``scopes`` in ``state.json``; docs/dashboard.md describes it."""
    scope, now = recorder.scope, time.monotonic()
    stats, leases = scope.stats(), scope.leases()
    found = verdict(_facts(recorder, stats, leases, now))
    durations = {"oldest_wait": round(stats.oldest_wait, 3), "oldest_lease": round(stats.oldest_lease, 3)}
    return {
        "key": scope.config.key,
        "state": scope.state,
        "verdict": {"level": found.level, "kind": found.kind, "text": found.text, "advice": found.advice},
        "now": {name: getattr(stats, name) for name in NOW} | durations,
        "rates": recorder.rates(stats, now),
        **recorder.durations(stats),
        "leases": [_shown(lease) for lease in leases],
        "slots": seats.slots(now),
        "leak_threshold": scope.config.leak_threshold,
        "events": recorder.journal.entries(),
    }


def _shown(lease: Lease) -> dict[str, Any]:
    # Not its path: that may have ids and tokens in it. The route has their names.
    return {
        "method": lease.method,
        "route": lease.route,
        "request_id": lease.request_id,
        "task": lease.task,
        "held": round(lease.held, 3),
        "where": lease.where,
    }


def _facts(recorder: Recorder, stats: PoolStats, leases: tuple[Lease, ...], now: float) -> Facts:
    scope = recorder.scope
    limit = scope.config.leak_threshold
    lent = [slot.since for slot in slots_of(scope) if slot.state is LENT]
    return Facts(
        state=scope.state,
        stats=stats,
        recent=recorder.recent(stats),
        minute=recorder.minute(stats),
        away=None if recorder.away_since is None or stats.breaker == "closed" else now - recorder.away_since,
        leaks=() if limit is None else tuple(lease for lease in leases if lease.held > limit),
        moved=now - max(lent) if lent else 0.0,
        queue_target=scope.config.queue_target,
        statement_timeout=scope.config.statement_timeout,
    )
