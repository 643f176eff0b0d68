"""What `stress` makes of what it has seen. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp_poolscope.capacity.sizing import seconds

if TYPE_CHECKING:
    from .phases import Phase
    from .watch import Watch

__all__ = ("Seen", "Verdict", "judge", "not_testable")

TOLERATED = 0.02
"""The share of requests that may fail by chance, on a machine that has other work, too."""

SLOWER, SLOWER_BY = 3.0, 0.05
"""Times, and seconds on top, that an answer may take longer afterwards."""

USABLE = 0.9
"""The share of good answers below which there is nothing to compare with."""

BAD_REQUEST = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All phases, in their order, and the server's side where it was watched."""

    before: Phase
    leaving: Phase
    staying: Phase
    slow: Phase
    staying_beside_slow: Phase
    after: Phase
    watch: Watch | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """To be shown."""
        return (self.before, self.leaving, self.staying, self.slow, self.staying_beside_slow, self.after)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the service is sick, with the reasons; and what else was noticed."""

    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sick(self) -> bool:
        """Whether there is any reason to say so."""
        return bool(self.reasons)


def not_testable(before: Phase) -> str | None:
    """Why nothing can be said of a service that is like this under normal load; None if something can."""
    good = sum(count for status, count in before.statuses.items() if status < BAD_REQUEST)
    if not before.sent:
        return "no request was sent: use a higher --rate or a longer --duration"
    if good >= USABLE * before.sent:
        return None
    if before.outcomes["refused"] == before.sent:
        return "nobody listens there: start the service first"
    said = ", ".join(
        [f"{count} times {status}" for status, count in sorted(before.statuses.items())]
        + [f"{count} {outcome}" for outcome, count in sorted(before.outcomes.items()) if outcome != "answered"]
    )
    return (
        f"under normal load it answered {before.sent} requests with: {said}. Give a URL (and --method, --data, "
        "--header) that it answers with 200, and that uses the database"
    )


def judge(seen: Seen) -> Verdict:
    """Compare what it answers afterwards with what it answered before; and look at who stayed meanwhile."""
    reasons = [*_recovery(seen), *_meanwhile(seen.staying, "others left"), *_starved(seen)]
    notes = []
    if seen.watch is not None:
        reasons += _leftovers(seen.watch)
        if seen.watch.hidden:
            notes.append(f"{seen.watch.hidden} sessions do not show their state: use a role with pg_read_all_stats")
    if seen.leaving.outcomes["left"] * 2 < seen.leaving.sent:
        notes.append(
            f"only {seen.leaving.outcomes['left']} of {seen.leaving.sent} clients left before their answer: "
            "a slower request would show more"
        )
    return Verdict(tuple(reasons), tuple(notes))


def _recovery(seen: Seen) -> list[str]:
    before, after = seen.before, seen.after
    left = seen.leaving.outcomes["left"] + seen.slow.outcomes["left"]
    if after.served < before.served - TOLERATED:
        good = after.sent - after.lost - after.failed
        numbers = f"{good} of {after.sent} requests were answered well (before: {before.served:.0%})"
        return [f"after {left} clients had left and a pause, {numbers}. {_why(after)}"]
    usual, now = before.quantile(0.5), after.quantile(0.5)
    if usual is not None and now is not None and now > SLOWER * usual + SLOWER_BY:
        return [f"after {left} clients had left and a pause, an answer takes {seconds(now)}, before {seconds(usual)}"]
    return []


def _why(after: Phase) -> str:
    worst = max(
        ("silent", "cut", "refused", "failed"),
        key=lambda name: after.failed if name == "failed" else after.outcomes[name],
    )
    return {
        "silent": "They wait for something that does not come back: what was borrowed for those who left "
        "was not returned. Look for an acquire whose release is not in a finally, or an async with",
        "cut": "Their connections are closed without an answer: look into the service's log",
        "refused": "It does not listen any more: it has ended, or was ended",
        "failed": "It answers with errors: look into the service's log",
    }[worst]


def _meanwhile(staying: Phase, what: str) -> list[str]:
    if staying.sent and staying.lost > TOLERATED * staying.sent:
        return [f"while {what}, {staying.lost} of {staying.sent} clients that stayed got no answer"]
    return []


def _starved(seen: Seen) -> list[str]:
    said = _meanwhile(seen.staying_beside_slow, "slow clients were there")
    return [f"{each}: a connection that is borrowed before the body has come is held by who sends it" for each in said]


def _leftovers(watch: Watch) -> list[str]:
    left, reasons = watch.left, []
    if left is not None and left.idle_in_transaction:
        reasons.append(f"{left.idle_in_transaction} transactions of clients that left are still open on the server")
    if left is not None and left.active:
        reasons.append(f"{left.active} statements of clients that left still run on the server")
    return reasons
