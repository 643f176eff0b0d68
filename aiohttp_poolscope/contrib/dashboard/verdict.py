"""Verdict: how a pool is, in one sentence for whoever is woken up at night, and what to do next. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aiohttp_poolscope.stats import PoolStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp_poolscope import Lease

__all__ = ("REFUSALS", "Facts", "Verdict", "seconds", "verdict")

Level = Literal["ok", "info", "warn", "bad"]
"""``ok``: nothing to do. ``info``: it starts or ends. ``warn``: look at it today. ``bad``: requests fail now."""

REFUSALS = ("timed_out", "refused", "shed")
"""Borrows that a pool with more room, or with shorter leases, would have served."""

NORMAL_WAIT = 0.1
"""Seconds a wait may last where ``queue_target`` is None: its default."""

LONGEST_NAME = 40
"""Characters of a route or a task that the headline has room for."""

STALL_MARGIN = 2.0
"""Seconds after the longest statement within which some connection must have come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the verdict is made of. Durations are seconds.

    ``recent`` and ``minute`` count what was added to the counters of PoolStats in the last 10 and 60 seconds, and
    statements that raised as ``"error:timeout"`` and the like. ``away`` is how long requests have been refused because
    the database is away. ``moved`` is how long ago a connection was lent or came back for the last time.
    """

    state: str = "serving"
    stats: PoolStats = field(default_factory=PoolStats)
    recent: Mapping[str, int] = field(default_factory=dict)
    minute: Mapping[str, int] = field(default_factory=dict)
    away: float | None = None
    leaks: tuple[Lease, ...] = ()
    moved: float = 0.0
    queue_target: float | None = NORMAL_WAIT
    statement_timeout: float | None = 30.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """``kind`` is the matter in a word, ``text`` the same with its numbers, ``advice`` what to do next."""

    level: Level
    kind: str
    text: str
    advice: str = ""


HEALTHY = Verdict("ok", "healthy", "Healthy")


def verdict(facts: Facts) -> Verdict:
    """The worst that is true of a pool now; of two matters the one that is the cause."""
    for judge in (_begins_or_ends, _away, _leaked, _stalled, _saturated, _refusing, _troubled):
        found = judge(facts)
        if found is not None:
            return found
    return HEALTHY


def seconds(value: float) -> str:
    """A duration for people: ``12 ms``, ``2.1 s``, ``41 s``, ``3 min``, ``2 h``."""
    if value < 0.9995:  # noqa: PLR2004 - above, it would be "1000 ms"
        return f"{value * 1000:.0f} ms"
    if value < 9.95:  # noqa: PLR2004
        return f"{value:.1f} s"
    if value < 119.5:  # noqa: PLR2004
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7170 else f"{value / 3600:.0f} h"  # noqa: PLR2004


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _shortened(name: str) -> str:
    """Its beginning and its end, which tell routes apart."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def _begins_or_ends(facts: Facts) -> Verdict | None:
    stats = facts.stats
    if facts.state == "starting":
        return Verdict("info", "starting", "Starting", "The pool opens its first connections.")
    if facts.state == "closed":
        return Verdict("info", "closed", "Closed", "The pool has ended, and no connection is left.")
    if facts.state != "draining":
        return None
    left = stats.in_use + stats.repairing
    if not left:
        return Verdict("info", "draining", "Draining: no connection to wait for", "This process is about to end.")
    advice = "New work is refused. Who holds the connections is below; after drain_grace they are cancelled."
    return Verdict("info", "draining", f"Draining: {_many(left, 'connection')} to wait for", advice)


def _away(facts: Facts) -> Verdict | None:
    stats = facts.stats
    alive = stats.size - stats.opening
    if facts.away is not None and not alive:
        return Verdict(
            "bad",
            "away",
            f"The database is away: requests have been refused for {seconds(facts.away)}",
            "Look whether PostgreSQL runs and can be reached from here. The log has the reason. Nothing needs a "
            "restart: once it answers, requests are served again within a second.",
        )
    if facts.recent.get("connect_failed", 0) and not alive:
        return Verdict(
            "bad",
            "away",
            f"The database does not answer: {_many(stats.waiting, 'request')} waiting for it",
            "Look whether PostgreSQL runs and can be reached from here. The log has the reason.",
        )
    if facts.recent.get("connect_failed", 0):
        return Verdict(
            "warn",
            "no new connections",
            f"No new connections: {alive} of {stats.maxsize} are left, and serve",
            "Attempts to connect fail. The log has the reason: often max_connections, a changed password or DNS.",
        )
    return None


def _leaked(facts: Facts) -> Verdict | None:
    if not facts.leaks:
        return None
    first = facts.leaks[0]
    who = _shortened(f"{first.method} {first.route}" if first.method and first.route else (first.task or "a task"))
    count = len(facts.leaks)
    text = f"{_many(count, 'connection')} leaked: {who} has held {'it' if count == 1 else 'one'} for "
    text += seconds(first.held)
    pressing = _pressing(facts)
    if pressing:
        text += f", {facts.stats.waiting:,} waiting"
    advice = "For longer than leak_threshold. Below is where it was borrowed: give it back there earlier, or set "
    advice += "max_lease to have it taken away."
    return Verdict("bad" if pressing else "warn", "leaked", text, advice)


def _full(stats: PoolStats) -> bool:
    return stats.in_use + stats.repairing >= stats.maxsize


def _pressing(facts: Facts) -> bool:
    """Whether somebody waits for longer than is normal, or was refused lately and others wait."""
    normal = NORMAL_WAIT if facts.queue_target is None else facts.queue_target
    stats = facts.stats
    return _full(stats) and stats.waiting > 0 and (stats.oldest_wait > normal or _refused(facts) > 0)


def _refused(facts: Facts) -> int:
    return sum(facts.recent.get(kind, 0) for kind in REFUSALS)


def _stalled(facts: Facts) -> Verdict | None:
    longest = (facts.statement_timeout or 30.0) + STALL_MARGIN
    if not _full(facts.stats) or not facts.stats.waiting or facts.moved <= longest:
        return None
    return Verdict(
        "bad",
        "stalled",
        f"Stalled: all {facts.stats.maxsize} in use, and none has come back for {seconds(facts.moved)}",
        "That is longer than a statement may take. Who holds them is below: look what these handlers wait for.",
    )


def _saturated(facts: Facts) -> Verdict | None:
    if not _pressing(facts):
        return None
    stats, refused = facts.stats, _refused(facts)
    text = f"Saturated: {stats.in_use} of {stats.maxsize} in use, {stats.waiting:,} waiting, the longest for "
    text += seconds(stats.oldest_wait)
    advice = "Requests come faster than their connections return. See below which routes hold them the longest: "
    advice += "shorten those, or raise maxsize if the server has room."
    if refused:
        text += f"; {refused:,} refused in 10 s"
    return Verdict("bad" if refused else "warn", "saturated", text, advice)


def _refusing(facts: Facts) -> Verdict | None:
    refused = _refused(facts)
    failed = facts.recent.get("failed", 0)
    if failed:
        return Verdict(
            "warn",
            "back",
            f"The database is back: {_many(failed, 'request')} failed in the last 10 s",
            "It was away for a moment. Nothing to do here; look why it was.",
        )
    if refused:
        return Verdict(
            "warn",
            "refused",
            f"{_many(refused, 'request')} refused in the last 10 s",
            "The pool was full, its queue too long. If it comes again: shorten the longest leases, or raise maxsize.",
        )
    return None


def _troubled(facts: Facts) -> Verdict | None:
    minute = facts.minute
    dead = minute.get("dead", 0) + minute.get("error:connection", 0)
    if dead:
        return Verdict(
            "warn",
            "dead",
            f"{_many(dead, 'connection')} found dead in the last minute",
            "The server, or a firewall in between, closes them. If all die after the same idle time, set keepalive "
            "or idle_timeout below it.",
        )
    late = minute.get("error:timeout", 0)
    if late:
        return Verdict(
            "warn",
            "time limit",
            f"{_many(late, 'statement')} ran into the time limit in the last minute",
            "The recent events have the statements. Look at their plans and at locks before raising statement_timeout.",
        )
    return None
