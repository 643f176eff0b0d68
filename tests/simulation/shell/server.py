"""A modelled PostgreSQL: sessions with transactions, rows that know which request wrote them, and faults.

Its rules are PostgreSQL's as far as a pool can see them. ``test_faithful.py`` plays the same statements and accidents
against a real one, and compares.
"""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import errors as pg
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE as IDLE,
)
from psycopg2.extensions import (
    TRANSACTION_STATUS_INERROR as FAILED,
)
from psycopg2.extensions import (
    TRANSACTION_STATUS_INTRANS as IN_TRANSACTION,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .loop import Loop

__all__ = ("Answer", "Host", "Session", "Wire", "Write", "error")

GRID = 0.001
"""Seconds that all delays are multiples of, so that many things happen in one instant."""

SLEEP = re.compile(r"pg_sleep\(([\d.]+)\)")
INSERT = re.compile(r"INSERT INTO visits VALUES \('([^']+)', (\d+)\)")
ROWS = re.compile(r"generate_series\(1, (\d+)\)")
UNSTOPPABLE = re.compile(r"BEGIN$|ROLLBACK")
"""Statements that are over before anybody could cancel them."""

FETCH = re.compile(r"FETCH FORWARD (\d+) FROM (\w+)")


@dataclass(frozen=True)
class Write:
    """A row: who wrote it, and as which of its writes."""

    tag: str
    number: int


@dataclass
class Answer:
    """What a statement comes to, and the transaction status that the server tells with it."""

    status: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    message: str = ""
    count: int = -1
    error: psycopg2.Error | None = None
    fatal: bool = False


def error(kind: type[psycopg2.Error], code: str, words: str) -> psycopg2.Error:
    """An error as psycopg2 makes it of what a server says."""
    made = kind(words)
    made.__setstate__({"pgcode": code, "pgerror": words})  # type: ignore[attr-defined]
    return made


class Wire:
    """A connection's two directions. What is sent arrives in order, after a while, unless the network is silent."""

    def __init__(self, host: Host, lost: Callable[[], object]) -> None:
        self.host = host
        self.silent = host.silent
        self._lost = lost
        self._ways: tuple[collections.deque[Any], collections.deque[Any]] = (collections.deque(), collections.deque())
        self._last = [0.0, 0.0]
        self._held: list[int] = []
        self._forgotten = False

    def send(self, way: int, deliver: Callable[..., object], *args: Any) -> None:
        """Up (0) or down (1)."""
        if self._forgotten:
            deliver, args, way = self._lost, (), 1
        loop = self.host.loop
        self._last[way] = at = max(self._last[way], loop.time() + self.host.delay())
        self._ways[way].append((deliver, args))
        loop.call_at(at, self._arrive, way)

    def _arrive(self, way: int) -> None:
        if self.silent:
            self._held.append(way)
        elif self._ways[way]:
            deliver, args = self._ways[way].popleft()
            deliver(*args)

    def speak(self) -> None:
        """The network is back: what was sent meanwhile arrives now."""
        self.silent = False
        held, self._held = self._held, []
        for way in held:
            self._arrive(way)

    def forget(self) -> None:
        """A firewall has dropped it: what is sent from now on is answered with a reset, and so is what was."""
        sent = self._ways[0] or self._held
        self.silent, self._held = False, []
        self._forgotten = True
        self._ways = (collections.deque(), collections.deque())
        if sent:
            self.send(1, self._lost)

    def notice(self) -> None:
        """TCP's keepalive: a client that only waits for an answer learns that it is gone, in the end."""
        if self._forgotten:
            self.send(1, self._lost)


class Host:
    """One server: where connections lead to. ``standby`` takes no writes; ``rows`` are those of the whole cluster."""

    def __init__(self, name: str, loop: Loop, rng: random.Random, rows: list[Write], *, standby: bool = False) -> None:
        self.name = name
        self.loop = loop
        self.rng = rng
        self.rows = rows
        self.standby = standby
        self.sessions: dict[Session, None] = {}
        self.wires: dict[Wire, Session] = {}
        self.limit = 100
        self.refusing = False
        self.hanging = False
        self.silent = False
        self.slowness = 1.0
        self.check_interval: float | None = None
        self.statement_timeout: float | None = None
        self.idle_in_transaction_timeout: float | None = None
        self.deaths: list[tuple[str, str]] = []
        self.findings: list[str] = []
        self.statements = 0

    def delay(self) -> float:
        """Seconds that a message is under way: few, now and then many."""
        most = 30 if self.rng.random() < 0.02 else 3
        return GRID * round(self.rng.randint(0, most) * self.slowness)

    def die(self) -> None:
        """Every session ends."""
        for session in list(self.sessions):
            session.die()

    def silence(self) -> None:
        """Nothing arrives any more, in either direction."""
        self.silent = True
        for wire in self.wires:
            wire.silent = True

    def speak(self, *, forgotten: bool) -> None:
        """The network is back. ``forgotten``: the connections that were open are not: a firewall has dropped them."""
        self.silent = False
        for wire, session in list(self.wires.items()):
            if wire.silent and forgotten:
                session.end()
                wire.forget()
            elif wire.silent:
                wire.speak()

    def heal(self) -> None:
        """All is well again."""
        self.refusing = self.hanging = False
        self.slowness, self.limit = 1.0, 100
        self.deaths.clear()
        if self.silent:
            self.speak(forgotten=True)
        for wire in self.wires:
            wire.notice()

    def doomed(self, sql: str) -> str | None:
        """How the session dies over this statement, if it does: "before" it is executed, or "after"."""
        for death in self.deaths:
            if death[1] in sql:
                self.deaths.remove(death)
                return death[0]
        return None


class Session:
    """One backend, and its client's end in ``raw``."""

    def __init__(self, host: Host, raw: Any) -> None:
        self.host = host
        self.raw = raw
        self.wire = Wire(host, self._lose)
        host.wires[self.wire] = self
        self.status = IDLE
        self.writes: list[Write] = []
        self.marks: list[tuple[str, int]] = []
        self.cursors: dict[str, list[tuple[Any, ...]]] = {}
        self.owner: str | None = None
        self.ended = False
        self.client_left = False
        self._ending: Any = None
        self._running: tuple[str, str | None, bool] | None = None
        self._timers: list[Any] = []
        self._idling: Any = None
        host.sessions[self] = None

    # what arrives

    def execute(self, sql: str, tag: str | None) -> None:
        """A statement has arrived."""
        if self.ended:
            return
        assert self._running is None, "two statements at once"
        host, loop = self.host, self.host.loop
        host.statements += 1
        self._idle(False)
        doom = host.doomed(sql)
        if doom == "before":
            self.die()
            return
        sleep = SLEEP.search(sql)
        takes = float(sleep[1]) if sleep else GRID * round(host.rng.randint(0, 2) * host.slowness)
        self._running = (sql, tag, doom == "after")
        self._timers = [loop.call_later(takes, self._done)]
        limit = host.statement_timeout
        if limit is not None and takes > limit:
            self._timers.append(loop.call_later(limit, self._cancelled, "statement timeout"))

    def cancel(self) -> None:
        """A request to cancel has arrived; whatever runs now is hit, if it lasts: what is over in no time is missed."""
        if self._running is None or UNSTOPPABLE.match(self._running[0]):
            return
        if SLEEP.search(self._running[0]) or self.host.rng.random() < 0.2:
            self._cancelled("user request")

    def client_closes(self) -> None:
        """The client's end is closed: a backend that works learns of it when it looks, or has done."""
        self.host.wires.pop(self.wire, None)
        self.client_left = True
        if self._running is None:
            self.end()
        elif self.host.check_interval is not None:
            self._timers.append(self.host.loop.call_later(self.host.check_interval, self.end))

    # what happens

    def _done(self) -> None:
        assert self._running is not None
        sql, tag, dies = self._running
        self._stop()
        try:
            answer = self._run(sql, tag)
        except psycopg2.Error as raised:
            answer = self._fail(raised)
        if dies:
            self.die()
        elif self.client_left:
            self.end()
        else:
            self._answer(answer)

    def _cancelled(self, why: str) -> None:
        over = self._running is not None and self._running[0].startswith("COMMIT")
        self._stop()
        if over:
            self._over()
        if self.client_left:
            self.end()
        else:
            self._answer(self._fail(error(pg.QueryCanceled, "57014", f"canceling statement due to {why}")))

    def _stop(self) -> None:
        self._running = None
        for timer in self._timers:
            timer.cancel()
        self._timers = []

    def _fail(self, raised: psycopg2.Error) -> Answer:
        if self.status == IN_TRANSACTION:
            self.status = FAILED
        return Answer(self.status, error=raised)

    def _answer(self, answer: Answer) -> None:
        answer.status = self.status
        self.wire.send(1, self.raw.receive, answer, self.host.standby)
        self._idle(self.status != IDLE)

    def _idle(self, begins: bool) -> None:
        if self._idling is not None:
            self._idling.cancel()
            self._idling = None
        limit = self.host.idle_in_transaction_timeout
        if begins and limit is not None:
            self._idling = self.host.loop.call_later(limit, self._idled)

    def _idled(self) -> None:
        said = error(
            pg.IdleInTransactionSessionTimeout, "25P03", "terminating connection due to idle-in-transaction timeout"
        )
        self.die(said)

    def die(self, said: psycopg2.Error | None = None) -> None:
        """It ends from this side: what it has not committed is undone, and the client hears of it."""
        if self.ended:
            return
        self.end()
        if said is None and self.host.rng.random() < 0.5:
            said = error(pg.AdminShutdown, "57P01", "terminating connection due to administrator command")
        self.wire.send(1, self.raw.receive, Answer(IDLE, error=said, fatal=True), self.host.standby)

    def _lose(self) -> None:
        self.raw.receive(Answer(IDLE, fatal=True), self.host.standby)

    def end(self) -> None:
        """It ends."""
        if not self.ended:
            self.ended = True
            self._stop()
            self._idle(False)
            self.writes.clear()
            del self.host.sessions[self]

    # SQL

    def _run(self, sql: str, tag: str | None) -> Answer:
        answer = Answer(self.status)
        for command in sql.split(";"):
            if command := command.strip():
                answer = self._command(command, tag)
        return answer

    def _command(self, sql: str, tag: str | None) -> Answer:
        self._look(sql, tag)
        word = sql.split(None, 1)[0].upper()
        if self.status == FAILED and word not in {"COMMIT", "ROLLBACK"}:
            raise error(pg.InFailedSqlTransaction, "25P02", "current transaction is aborted")
        known = getattr(self, f"_on_{word.lower()}", None)
        answer: Answer = self._on_select(sql, tag) if known is None else known(sql, tag)
        return answer

    def _look(self, sql: str, tag: str | None) -> None:
        """Nobody may work in a transaction of somebody else; the pool may only end it."""
        if self.status == IDLE or self.owner == tag:
            return
        if tag is None and sql.upper().startswith("ROLLBACK"):
            return
        self.host.findings.append(f"{sql!r} of {tag} was run in a transaction of {self.owner}")

    def _on_begin(self, sql: str, tag: str | None) -> Answer:
        if self.status == IDLE:
            self.status, self.owner = IN_TRANSACTION, tag
        return Answer(self.status, message="BEGIN")

    def _on_commit(self, sql: str, tag: str | None) -> Answer:
        failed = self.status == FAILED
        if not failed:
            self.host.rows += self.writes
        self._over()
        return Answer(IDLE, message="ROLLBACK" if failed else "COMMIT")

    def _on_rollback(self, sql: str, tag: str | None) -> Answer:
        if sql.upper().startswith("ROLLBACK TO"):
            at = self._mark(sql)
            del self.writes[self.marks[at][1] :], self.marks[at + 1 :]
            self.status = IN_TRANSACTION
        else:
            self._over()
        return Answer(self.status, message="ROLLBACK")

    def _over(self) -> None:
        self.status, self.owner, self.writes, self.marks, self.cursors = IDLE, None, [], [], {}

    def _on_savepoint(self, sql: str, tag: str | None) -> Answer:
        if self.status == IDLE:
            raise error(pg.NoActiveSqlTransaction, "25P01", "SAVEPOINT can only be used in transaction blocks")
        self.marks.append((sql.rsplit(maxsplit=1)[-1], len(self.writes)))
        return Answer(self.status, message="SAVEPOINT")

    def _on_release(self, sql: str, tag: str | None) -> Answer:
        del self.marks[self._mark(sql) :]
        return Answer(self.status, message="RELEASE")

    def _mark(self, sql: str) -> int:
        name = sql.rsplit(maxsplit=1)[-1]
        for at in range(len(self.marks) - 1, -1, -1):
            if self.marks[at][0] == name:
                return at
        raise error(pg.InvalidSavepointSpecification, "3B001", f'savepoint "{name}" does not exist')

    def _on_declare(self, sql: str, tag: str | None) -> Answer:
        if self.status == IDLE:
            raise error(pg.NoActiveSqlTransaction, "25P01", "DECLARE CURSOR can only be used in transaction blocks")
        found = ROWS.search(sql)
        self.cursors[sql.split()[1]] = [(n,) for n in range(1, int(found[1]) + 1)] if found else [(1,)]
        return Answer(self.status, message="DECLARE CURSOR")

    def _on_fetch(self, sql: str, tag: str | None) -> Answer:
        match = FETCH.search(sql)
        if match is None or match[2] not in self.cursors:
            raise error(pg.InvalidCursorName, "34000", "cursor does not exist")
        rows, wanted = self.cursors[match[2]], int(match[1])
        found, rows[:wanted] = rows[:wanted], []
        return Answer(self.status, found, f"FETCH {len(found)}", len(found))

    def _on_close(self, sql: str, tag: str | None) -> Answer:
        if self.cursors.pop(sql.split()[1], None) is None:
            raise error(pg.InvalidCursorName, "34000", "cursor does not exist")
        return Answer(self.status, message="CLOSE CURSOR")

    def _on_discard(self, sql: str, tag: str | None) -> Answer:
        if self.status != IDLE:
            raise error(pg.ActiveSqlTransaction, "25001", "DISCARD ALL cannot run inside a transaction block")
        return Answer(self.status, message="DISCARD ALL")

    def _on_set(self, sql: str, tag: str | None) -> Answer:
        return Answer(self.status, message="SET")

    def _on_insert(self, sql: str, tag: str | None) -> Answer:
        if self.host.standby:
            raise error(pg.ReadOnlySqlTransaction, "25006", "cannot execute INSERT in a read-only transaction")
        match = INSERT.search(sql)
        assert match is not None, sql
        write = Write(match[1], int(match[2]))
        if self.status == IDLE:
            self.host.rows.append(write)
        else:
            self.writes.append(write)
        return Answer(self.status, message="INSERT 0 1", count=1)

    def _on_select(self, sql: str, tag: str | None) -> Answer:
        if "1/0" in sql:
            raise error(pg.DivisionByZero, "22012", "division by zero")
        if "conflict()" in sql:
            raise error(pg.SerializationFailure, "40001", "could not serialize access")
        rows: list[tuple[Any, ...]] = [(1,)]
        if "pg_is_in_recovery" in sql:
            rows = [(self.host.standby,)]
        elif "max_connections" in sql:
            rows = [(100, 3, 0, -1, -1, 0)]
        elif match := ROWS.search(sql):
            rows = [(n,) for n in range(1, int(match[1]) + 1)]
        return Answer(self.status, rows, f"SELECT {len(rows)}", len(rows))
