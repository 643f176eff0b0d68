"""A modelled PostgreSQL: sessions with transactions, and rows that know which request wrote them.

Its rules are PostgreSQL's as far as a pool can see them. ``test_faithful.py`` plays the same statements and accidents
against a real one, and compares.
"""

from __future__ import annotations

import re
import weakref
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

from .network import GRID, Wire

if TYPE_CHECKING:
    from .network import Host

__all__ = ("Answer", "Session", "Write", "error")

SLEEP = re.compile(r"pg_sleep\(([\d.]+)\)")
INSERT = re.compile(r"INSERT INTO visits VALUES \('([^']+)', (\d+)\)")
ROWS = re.compile(r"generate_series\(1, (\d+)\)")
COMMENT = re.compile(r"/\*.*?\*/")
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
    columns: bool = False
    error: psycopg2.Error | None = None
    fatal: bool = False


def error(kind: type[psycopg2.Error], code: str, words: str) -> psycopg2.Error:
    """An error as psycopg2 makes it of what a server says."""
    made = kind(words)
    made.__setstate__({"pgcode": code, "pgerror": words})  # type: ignore[attr-defined]
    return made


class Session:
    """One backend, and its client's end. Only the pool keeps that alive: it counts who has it."""

    def __init__(self, host: Host, raw: Any) -> None:
        self.host = host
        self._client = weakref.ref(raw)
        self.wire = Wire(host, self._lose)
        host.wires[self.wire] = self
        self.status = IDLE
        self.writes: list[Write] = []
        self.marks: list[tuple[str, int, frozenset[str], dict[str, str]]] = []
        self.settings: dict[str, str] = {}
        self._settings_before: dict[str, str] = {}
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
        sleep = None if self.status == FAILED else SLEEP.search(sql)
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
            self._over(undone=True)
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
        self.wire.send(1, self._tell, answer, self.host.standby)
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
        self.wire.send(1, self._tell, Answer(IDLE, error=said, fatal=True), self.host.standby)

    def _lose(self) -> None:
        self._tell(Answer(IDLE, fatal=True), self.host.standby)

    def _tell(self, answer: Answer, standby: bool) -> None:
        raw = self._client()
        if raw is not None:
            raw.receive(answer, standby)

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
        for command in COMMENT.sub("", sql).split(";"):
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
            self._settings_before = dict(self.settings)
        return Answer(self.status, message="BEGIN")

    def _on_commit(self, sql: str, tag: str | None) -> Answer:
        failed = self.status == FAILED
        if not failed:
            self.host.rows += self.writes
        self._over(undone=failed)
        return Answer(IDLE, message="ROLLBACK" if failed else "COMMIT")

    def _on_rollback(self, sql: str, tag: str | None) -> Answer:
        if sql.upper().startswith("ROLLBACK TO"):
            at = self._mark(sql)
            _, writes, cursors, settings = self.marks[at]
            self.settings = dict(settings)
            del self.writes[writes:], self.marks[at + 1 :]
            self.cursors = {name: rows for name, rows in self.cursors.items() if name in cursors}
            self.status = IN_TRANSACTION
        else:
            self._over(undone=self.status != IDLE)
        return Answer(self.status, message="ROLLBACK")

    def _over(self, *, undone: bool) -> None:
        if undone:
            self.settings = self._settings_before
        self.status, self.owner, self.writes, self.marks, self.cursors = IDLE, None, [], [], {}

    def _on_savepoint(self, sql: str, tag: str | None) -> Answer:
        if self.status == IDLE:
            raise error(pg.NoActiveSqlTransaction, "25P01", "SAVEPOINT can only be used in transaction blocks")
        self.marks.append((sql.rsplit(maxsplit=1)[-1], len(self.writes), frozenset(self.cursors), dict(self.settings)))
        return Answer(self.status, message="SAVEPOINT")

    def _on_release(self, sql: str, tag: str | None) -> Answer:
        del self.marks[self._mark(sql) :]
        return Answer(self.status, message="RELEASE")

    def _mark(self, sql: str) -> int:
        if self.status == IDLE:
            raise error(pg.NoActiveSqlTransaction, "25P01", "this can only be used in transaction blocks")
        name = sql.rsplit(maxsplit=1)[-1]
        for at in range(len(self.marks) - 1, -1, -1):
            if self.marks[at][0] == name:
                return at
        raise error(pg.InvalidSavepointSpecification, "3B001", f'savepoint "{name}" does not exist')

    def _on_declare(self, sql: str, tag: str | None) -> Answer:
        if self.status == IDLE:
            raise error(pg.NoActiveSqlTransaction, "25P01", "DECLARE CURSOR can only be used in transaction blocks")
        found, name = ROWS.search(sql), sql.split()[1]
        if name in self.cursors:
            raise error(pg.DuplicateCursor, "42P03", f'cursor "{name}" already exists')
        self.cursors[name] = [(n,) for n in range(1, int(found[1]) + 1)] if found else [(1,)]
        return Answer(self.status, message="DECLARE CURSOR")

    def _on_fetch(self, sql: str, tag: str | None) -> Answer:
        match = FETCH.search(sql)
        if match is None or match[2] not in self.cursors:
            raise error(pg.InvalidCursorName, "34000", "cursor does not exist")
        rows, wanted = self.cursors[match[2]], int(match[1])
        found, rows[:wanted] = rows[:wanted], []
        return Answer(self.status, found, f"FETCH {len(found)}", len(found), columns=True)

    def _on_close(self, sql: str, tag: str | None) -> Answer:
        if self.cursors.pop(sql.split()[1], None) is None:
            raise error(pg.InvalidCursorName, "34000", "cursor does not exist")
        return Answer(self.status, message="CLOSE CURSOR")

    def _on_discard(self, sql: str, tag: str | None) -> Answer:
        if self.status != IDLE:
            raise error(pg.ActiveSqlTransaction, "25001", "DISCARD ALL cannot run inside a transaction block")
        self.settings.clear()
        return Answer(self.status, message="DISCARD ALL")

    def _on_set(self, sql: str, tag: str | None) -> Answer:
        name, _, value = sql[4:].partition(" = ")
        self.settings[name] = value.strip("' ")
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
        elif "current_setting('my.own'" in sql:
            rows = [(self.settings.get("my.own", ""),)]
        elif SLEEP.search(sql):
            rows = [("",)]
        elif match := ROWS.search(sql):
            rows = [(n,) for n in range(1, int(match[1]) + 1)]
        return Answer(self.status, rows, f"SELECT {len(rows)}", len(rows), columns=True)
