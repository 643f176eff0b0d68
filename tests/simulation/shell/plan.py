"""A plan: the settings of one world, its visitors, and what will happen to them. Plain data, grown from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Fault", "Op", "Plan", "Visit", "draw")

Op = tuple[Any, ...]


@dataclass(frozen=True)
class Visit:
    """One request (or, with ``method`` None, a job beside them): when it comes, and what its handler does."""

    tag: str
    at: float
    method: str | None
    mark: str
    ops: tuple[Op, ...]
    complete: bool = True
    status: int = 200
    leaves: float | None = None
    cancelled: float | None = None


@dataclass(frozen=True)
class Fault:
    """Something that happens to everybody."""

    at: float
    what: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One world.

    ``second``: the visits of a second run of the same scope, counted from its start. ``patience``: aiohttp's
    ``shutdown_timeout``. ``calm``: seconds after which every handler, whatever was done to it, has ended.
    """

    seed: str
    settings: dict[str, Any]
    hosts: tuple[tuple[str, bool], ...]
    events: tuple[Visit | Fault, ...]
    hooks: tuple[str, ...] = ()
    second: tuple[Visit | Fault, ...] = ()
    handler_cancellation: bool = False
    length: float = 10.0
    patience: float = 5.0
    calm: float = 120.0

    def without(self, dropped: set[int]) -> Plan:
        """Without some of its events, by their numbers."""
        kept = tuple(it for n, it in enumerate(self.events) if n not in dropped)
        first = len(self.events)
        return replace(
            self, events=kept, second=tuple(it for n, it in enumerate(self.second, first) if n not in dropped)
        )


SIMPLE = ("fetch", "fetch", "sleep", "sleep", "slow", "slow", "cursor", "stream", "error", "release", "write", "set")
NESTED = ("tx", "tx", "tx", "nest", "nest", "try", "swallow", "both", "spawn", "retry", "shield")
RARE = ("raise", "begin", "leak", "conflict", "trouble", "check", "expire", "many", "raw", "late")
"""What a handler may do: as often as it stands here."""

WORDS = ("", "COMMIT", "COMMIT", "BEGIN", "INSERT", "ROLLBACK", "SELECT 1", "FETCH", "DISCARD")
"""Part of the statement over which a session dies."""

HOST, OTHER = "127.0.0.1", "127.0.0.2"


def draw(seed: str) -> Plan:
    """The plan that grows from a seed."""
    return _Draw(seed).plan()


@dataclass
class _Draw:
    seed: str
    rng: random.Random = field(init=False)
    leaks: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def plan(self) -> Plan:
        rng = self.rng
        settings = self._settings()
        hooks = tuple(hook for hook in ("on_connect", "on_acquire", "on_release") if rng.random() < 0.15)
        standby = rng.random() < 0.25
        hosts: tuple[tuple[str, bool], ...] = ((HOST, False),)
        if standby:
            hosts = ((HOST, False), (OTHER, True))
            settings["target"] = rng.choice(["primary", "prefer-standby", "any"])
        length = rng.choice([2.0, 5.0, 10.0, 30.0])
        self.leaks = settings["maxsize"] - 1 if rng.random() < 0.1 else 0
        visits = [self._visit(n, length) for n in range(rng.choice([5, 15, 30, 60]))]
        faults = [self._fault(length, len(visits), several=standby) for _ in range(rng.choice([0, 1, 3, 6]))]
        second: tuple[Visit, ...] = ()
        if rng.random() < 0.2:
            second = tuple(self._visit(1000 + n, 1.0) for n in range(5))
        return Plan(
            self.seed,
            settings,
            hosts,
            (*visits, *faults),
            hooks,
            second,
            handler_cancellation=rng.random() < 0.4,
            length=length,
            patience=rng.choice([0.05, 1.0, 5.0]),
        )

    def _settings(self) -> dict[str, Any]:
        rng = self.rng
        maxsize = rng.choice([1, 1, 2, 2, 3, 5])
        grace = rng.choice([0.0, 0.2, 2.0])
        return {
            "maxsize": maxsize,
            "minsize": rng.randint(0, maxsize),
            "acquire": rng.choice(["auto", "eager", "lazy"]),
            "acquire_timeout": rng.choice([0.05, 0.3, 1.0, 5.0]),
            "connect_timeout": rng.choice([0.2, 2.0]),
            "connect_at_start": rng.random() < 0.8,
            "max_waiting": rng.choice([0, 2, 10, 1000]),
            "queue_target": rng.choice([None, 0.02, 0.1]),
            "statement_timeout": rng.choice([None, 0.2, 1.0, 5.0]),
            "idle_in_transaction_timeout": rng.choice([None, 0.3, 60.0]),
            "abandon_interval": rng.choice([None, 0.2, 1.0]),
            "cancel_abandoned": rng.random() < 0.3,
            "idle_timeout": rng.choice([None, 0.5, 60.0]),
            "max_lifetime": rng.choice([None, 1.0, 5.0, 1800.0]),
            "check_after_idle": rng.choice([0.0, 0.1, 1.0]),
            "keepalive": rng.choice([None, 1.0, 120.0]),
            "reset": rng.choice(["auto", "auto", "rollback", "full", "SELECT reset()"]),
            "leak_threshold": rng.choice([None, 0.5, 30.0]),
            "max_lease": rng.choice([None, None, 0.5, 2.0]),
            "breaker_failures": rng.choice([1, 3, 5]),
            "breaker_reset": rng.choice([0.1, 0.5]),
            "drain_grace": grace,
            "drain_timeout": grace + rng.choice([0.0, 0.3, 2.0]),
            "request_tag": rng.choice(["off", "off", "application_name", "comment"]),
            "slow_threshold": rng.choice([None, 0.05]),
        }

    def _time(self, most: float) -> float:
        return round(self.rng.random() * most, 2)

    def _visit(self, number: int, length: float) -> Visit:
        rng = self.rng
        job = rng.random() < 0.1
        mark = rng.choice(["", "", "", "eager", "lazy", "none", "transactional", "transactional"])
        return Visit(
            f"v{number}",
            # Half of them come in bursts.
            round(self._time(length), 0 if rng.random() < 0.5 else 2),
            None if job else rng.choice(["GET", "GET", "POST"]),
            mark,
            self._ops(rng.randint(0, 4), 2, shared=False),
            complete=rng.random() < 0.8,
            status=rng.choice([200, 200, 200, 302, 404]),
            leaves=self._time(rng.choice([0.01, 0.1, 1.0])) if rng.random() < 0.2 else None,
            cancelled=self._time(rng.choice([0.01, 0.1, 1.0])) if rng.random() < 0.08 else None,
        )

    def _ops(self, count: int, depth: int, *, shared: bool) -> tuple[Op, ...]:
        return tuple(self._op(depth, shared=shared) for _ in range(count))

    def _op(self, depth: int, *, shared: bool) -> Op:
        """``shared``: other tasks use the same connection, so that what is written cannot be told apart."""
        rng = self.rng
        what = rng.choice(SIMPLE if rng.random() < 0.6 else RARE if not depth or rng.random() < 0.25 else NESTED)
        if shared and what in {"write", "tx", "begin", "many", "retry"}:
            what = "fetch"
        if what == "leak":
            self.leaks -= 1
            what = "leak" if self.leaks >= 0 else "fetch"
        return (what, *self._arguments(what, max(0, depth - 1), shared=shared))

    def _arguments(self, what: str, depth: int, *, shared: bool) -> Op:
        rng = self.rng
        if what in {"nest", "try", "swallow", "shield", "retry", "late"}:
            return (self._ops(rng.randint(1, 3), depth, shared=shared),)
        drawn: dict[str, Callable[[], Op]] = {
            "sleep": lambda: (rng.choice([0.0, 0.001, 0.01, 0.05, 0.05, 0.2, 1.0]),),
            "slow": lambda: (rng.choice([0.01, 0.05, 0.2, 0.5, 2.0]), rng.choice([None, None, 0.02, 0.2])),
            "stream": lambda: (rng.randint(0, 7), rng.randint(1, 3), rng.choice(["all", "break", "close"])),
            "many": lambda: (rng.choice([1, 3, 150]),),
            "tx": lambda: (
                self._ops(rng.randint(1, 3), depth, shared=False),
                rng.choice(["commit", "commit", "raise"]),
            ),
            "both": lambda: (self._ops(rng.randint(1, 3), depth, shared=True), self._ops(1, depth, shared=True)),
            "spawn": lambda: (self._ops(rng.randint(1, 3), depth, shared=True),),
        }
        return drawn[what]() if what in drawn else ()

    def _fault(self, length: float, visits: int, *, several: bool) -> Fault:
        rng = self.rng
        at, lasts = self._time(length), rng.choice([0.05, 0.5, 3.0])
        what = rng.choice(
            ["refuse", "hang", "silent", "silent", "slow", "die", "die", "doom", "doom", "doom", "full", "expire"]
            + ["hook", "hook"]
            + ["drain"] * (rng.random() < 0.3)
            + ["failover", "failover", "promote"] * several
        )
        drawn: dict[str, Callable[[], Op]] = {
            "silent": lambda: (lasts, rng.random() < 0.5),
            "slow": lambda: (lasts, rng.choice([5.0, 50.0, 300.0])),
            "doom": lambda: (rng.choice(["before", "after"]), rng.choice(WORDS)),
            "full": lambda: (lasts, rng.randint(0, 2)),
            "hook": lambda: (lasts, rng.choice(["fail", "hang", "open", "slow", "cancel", "release"])),
            "die": tuple,
            "expire": tuple,
            "drain": tuple,
            "promote": tuple,
        }
        return Fault(at, what, drawn[what]() if what in drawn else (lasts,))
