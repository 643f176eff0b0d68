"""The demo's audit: observations while it runs, and what they prove at the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.gate import Outcome

from .database import ACCOUNTS, OPENING

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from aiohttp_poolscope.web import PoolScope

    from .load import Tallies

__all__ = ("Audit", "Watch", "print_tallies")

_LOOK_EVERY = 0.03
_OUTCOMES = tuple(outcome.value for outcome in Outcome)
_EXPECTED = frozenset({"200", "409", "503", "101", "balance", "pool-exhausted", "queue-full"})
"""The answers of a service that is well, though it may be busy."""
_ACTIVITY = """
SELECT count(*),
       count(*) FILTER (WHERE state LIKE 'idle in transaction%%'),
       count(*) FILTER (WHERE state = 'active')
FROM pg_stat_activity WHERE application_name = %s AND backend_type = 'client backend'
"""
_BOOKS = """
SELECT (SELECT sum(balance)::bigint FROM poolscope_demo.accounts),
       (SELECT count(*) FROM poolscope_demo.transfers),
       (SELECT count(*) FROM poolscope_demo.accounts AS account
        LEFT JOIN (SELECT payer AS id, sum(amount) AS total FROM poolscope_demo.transfers GROUP BY 1) AS paid
               USING (id)
        LEFT JOIN (SELECT payee AS id, sum(amount) AS total FROM poolscope_demo.transfers GROUP BY 1) AS got
               USING (id)
        WHERE balance <> %s - coalesce(paid.total, 0) + coalesce(got.total, 0))
"""
_RECEIPTS = "SELECT count(*) FROM poolscope_demo.transfers WHERE id = ANY(%s)"


class Watch:
    """Looks at the service from both sides: its pool's numbers, and the server's list of sessions."""

    def __init__(self, observer: PoolScope, name: str, session: ClientSession, url: str) -> None:
        self._observer = observer
        self._name = name
        self._session = session
        self._url = url
        self.observations = 0
        self.most_backends = self.most_in_use = self.most_waiting = 0

    async def run(self) -> None:
        """Look, again and again."""
        while True:
            backends, _, _ = await self.backends()
            pool = await self.pool()
            self.observations += 1
            self.most_backends = max(self.most_backends, backends)
            self.most_in_use = max(self.most_in_use, pool["stats"]["in_use"])
            self.most_waiting = max(self.most_waiting, pool["stats"]["waiting"])
            await asyncio.sleep(_LOOK_EVERY)

    async def backends(self) -> tuple[int, int, int]:
        """How many sessions the service has on the server; those idle in a transaction; those busy."""
        total, idle_in_transaction, busy = await self._observer.fetchrow(_ACTIVITY, (self._name,))
        return total, idle_in_transaction, busy

    async def pool(self) -> dict[str, Any]:
        """What ``GET /pool`` says."""
        async with self._session.get(f"{self._url}/pool") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def quiet(self, limit: float) -> bool:
        """Wait until nothing is in use, waits, or is being repaired."""
        try:
            async with asyncio.timeout(limit):
                while True:
                    stats = (await self.pool())["stats"]
                    if not (stats["in_use"] or stats["waiting"] or stats["repairing"]):
                        return True
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            return False


@dataclass
class Audit:
    """Checks, each with its outcome and its numbers."""

    lines: list[tuple[bool, str, str]] = field(default_factory=list)

    def check(self, what: str, text: str, *, ok: bool) -> None:
        """Note one thing."""
        self.lines.append((ok, what, text))

    @property
    def passed(self) -> bool:
        """Whether all of it is true."""
        return all(ok for ok, _, _ in self.lines)

    def show(self) -> None:
        """Print it."""
        print("\nAudit")
        for ok, what, text in self.lines:
            print(f"  {'ok ' if ok else 'BAD'}  {what:<26} {text}")

    def check_answers(self, tallies: Tallies, aborts: int) -> None:
        """Everybody who stayed was answered, and enough left for the rest of this to mean something."""
        lost = sum(tally.lost for tally in tallies.values())
        aborted = sum(tally.aborted for tally in tallies.values())
        odd = {status for tally in tallies.values() for status in tally.answered} - _EXPECTED
        self.check("requests lost", f"{lost:,}", ok=lost == 0)
        self.check("answers", f"unexpected: {', '.join(sorted(odd))}" if odd else "as expected", ok=not odd)
        self.check("clients that left", f"{aborted:,} before their answer was complete", ok=2 * aborted >= aborts)

    def check_pool(self, pool: dict[str, Any], watch: Watch, *, quiet: bool) -> None:
        """Everything that was borrowed came back."""
        stats = pool["stats"]
        most, gone = watch.most_in_use, stats["client_gone"]
        self.check("quiet afterwards", "yes" if quiet else "not within the time for it", ok=quiet)
        self.check("connections in use", f"{stats['in_use']} (at most {most})", ok=not stats["in_use"])
        self.check(
            "requests waiting",
            f"{stats['waiting']} (at most {watch.most_waiting}; {gone:,} left while they waited)",
            ok=not stats["waiting"],
        )
        self.check("leases", f"{len(pool['leases'])}", ok=not pool["leases"])
        outcomes = [stats[name] for name in _OUTCOMES]
        shown = " + ".join(f"{stats[name]:,} {name}" for name in _OUTCOMES if stats[name])
        self.check("borrows = outcomes", f"{stats['borrows']:,} = {shown}", ok=stats["borrows"] == sum(outcomes))

    async def check_backends(self, watch: Watch, maxsize: int) -> None:
        """The server agrees."""
        most, seen = watch.most_backends, watch.observations
        self.check("backends", f"at most {most} of {maxsize} in {seen} looks", ok=0 < most <= maxsize and seen > 0)
        _, stuck, busy = await watch.backends()
        self.check("backends in transaction", f"{stuck}", ok=stuck == 0)
        self.check("backends still busy", f"{busy}", ok=busy == 0)

    async def check_books(self, observer: PoolScope, tallies: Tallies, receipts: list[int]) -> None:
        """No money came from nowhere, and whoever was told that he has paid has paid."""
        total, written, wrong = await observer.fetchrow(_BOOKS, (OPENING,))
        found = await observer.fetchval(_RECEIPTS, (receipts,))
        paid = [tally for name, tally in tallies.items() if "POST /transfer" in name]
        told = sum(tally.answered["200"] for tally in paid)
        unsure = sum(tally.aborted + tally.lost for tally in paid)
        expected = ACCOUNTS * OPENING
        self.check("sum of balances", f"{total:,}, at the start {expected:,}", ok=total == expected)
        self.check("accounts off their books", f"{wrong:,} of {ACCOUNTS:,}", ok=wrong == 0)
        self.check(
            "transfers written",
            f"{written:,}: {told:,} answered with 200, {written - told:,} of {unsure:,} whose client had left",
            ok=told <= written <= told + unsure,
        )
        self.check("receipts", f"{found:,} of {len(receipts):,} are in the books", ok=found == len(receipts))


def print_tallies(tallies: Tallies) -> None:
    """The table of what was sent and what became of it."""
    rows = [("", "sent", "answered", "aborted", "lost")]
    for name, tally in tallies.items():
        answered = ", ".join(f"{status}: {count:,}" for status, count in sorted(tally.answered.items())) or "-"
        rows.append((name, f"{tally.sent:,}", answered, f"{tally.aborted:,}", f"{tally.lost:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        cells = zip("<><>>", widths, row, strict=True)
        print("  " + "  ".join(f"{cell:{side}{width}}" for side, width, cell in cells).rstrip())
