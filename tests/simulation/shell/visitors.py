"""Visitors: handlers that do what a plan says, and remember what they were told of each thing they wrote."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg2
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import errors

from .request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiohttp_poolscope import PoolScope

    from .plan import Op, Visit

__all__ = ("Unit", "Visitor")

DONE, NOT_DONE, LOST, UNKNOWN = "done", "not done", "try again", "unknown"
"""What one may conclude from how a write ended. LOST: DatabaseUnavailable, which says 'try again'."""


class Trouble(Exception):
    """A mistake in a handler."""


@dataclass
class Unit:
    """What is to be written as a whole: one statement, or one transaction."""

    tag: str
    what: str
    numbers: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)
    told: str = UNKNOWN
    words: str = ""


def told(error: BaseException) -> str:
    """What may be concluded from an error about what was to be written."""
    if isinstance(error, errors.DatabaseUnavailable):
        return LOST
    # A time-out, a connection that was taken away, a cancellation: it may have happened.
    if isinstance(error, (errors.OutcomeUnknown, errors.QueryTimeout)) or not isinstance(error, Exception):
        return UNKNOWN
    return NOT_DONE


class Visitor:
    """One visit."""

    def __init__(
        self, visit: Visit, scope: PoolScope, spawn: Callable[..., asyncio.Task[Any]], findings: list[str]
    ) -> None:
        self.visit = visit
        self.findings = findings
        self.tag = visit.tag
        self.scope = scope
        self.units: list[Unit] = []
        self.task: asyncio.Task[Any] | None = None
        self.answer: Any = None
        self._spawn = spawn
        self._whole: Unit | None = None
        self._spoiled: list[Any] = []  # connections with a BEGIN that has no end
        self._children = 0
        self._written = 0
        handler: Any = self._handle
        if visit.mark == "transactional":
            self._whole = Unit(self.tag, "the request")
            self.units.append(self._whole)
        marks: dict[str, Any] = {
            "eager": poolscope.eager,
            "lazy": poolscope.lazy,
            "none": poolscope.no_connection,
            "transactional": poolscope.transactional,
        }
        if visit.mark in marks:
            handler = marks[visit.mark](handler)
        self.request = Request(self.tag, visit.method or "GET", handler, complete=visit.complete)

    async def run(self) -> None:
        """As aiohttp runs a handler, or as a job."""
        if self.visit.method is None:
            await self._work()
            return
        whole = self._whole
        handler = self.request.match_info.handler
        try:
            response = await self.scope.middleware(self.request, handler)  # type: ignore[arg-type]
        except web.HTTPException as raised:
            response = raised
        except asyncio.CancelledError:
            self.answer = "cancelled"
            raise
        except Exception as raised:  # noqa: BLE001 - aiohttp answers 500
            self._expect_ordinary(raised)
            self.answer = f"500 {type(raised).__name__}"
            if whole is not None:
                whole.told, whole.words = told(raised), repr(raised)
            return
        body = getattr(response, "body", None)
        self.answer = f"{response.status} {body!r}"
        if whole is not None:
            whole.words = self.answer
            if response.status < 400:
                whole.told = DONE
            elif isinstance(body, bytes) and b'"database-unavailable"' in body:
                whole.told = LOST
            elif isinstance(body, bytes) and (b'"query-timeout"' in body or b'"outcome-unknown"' in body):
                whole.told = UNKNOWN
            else:
                whole.told = NOT_DONE

    async def _work(self) -> None:
        self.answer = "refused"
        try:
            async with self.scope.acquire() as db:
                self.answer = "working"
                await self._perform(self.visit.ops, db, None)
            self.answer = "done"
        except Exception as error:  # noqa: BLE001 - a statement's, or one of ours
            self._expect_ordinary(error)
            self.answer = type(error).__name__

    async def _handle(self, request: Request) -> web.StreamResponse:
        db = request.get(self.scope.key)
        await self._perform(self.visit.ops, db, self._whole)
        if self.visit.status == 302:
            raise web.HTTPFound("/")
        return web.Response(status=self.visit.status)

    async def _perform(self, ops: tuple[Op, ...], db: Any, unit: Unit | None) -> None:
        for what, *arguments in ops:
            if db is None and what not in WITHOUT:
                continue
            await getattr(self, f"_do_{what}")(db, unit, *arguments)

    def _next(self, count: int = 1) -> int:
        first = self._written + 1
        self._written += count
        return first

    def _expect_ordinary(self, error: Exception) -> None:
        ordinary = isinstance(error, (errors.PoolScopeError, psycopg2.Error, Trouble, RuntimeError))
        self._expect(ordinary, f"{error!r} is no error that a handler should meet")

    def _expect(self, holds: bool, words: str) -> None:
        if not holds:
            self.findings.append(f"{self.tag}: {words}")

    # what a handler may do

    async def _do_sleep(self, db: Any, unit: Unit | None, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _do_fetch(self, db: Any, unit: Unit | None) -> None:
        """What others have left in the session is not to be seen, where returned connections are reset."""
        found = await db.fetchval("SELECT coalesce(current_setting('my.own', true), '')")
        as_it_came = self.scope.config.reset not in {"auto", "full"}
        self._expect(found in {"", self.tag} or as_it_came, f"the session was left by {found}")

    async def _do_set(self, db: Any, unit: Unit | None) -> None:
        await db.execute(f"SET my.own = '{self.tag}'")

    async def _do_slow(self, db: Any, unit: Unit | None, seconds: float, timeout: float | None) -> None:
        await db.fetchval(f"SELECT pg_sleep({seconds})", timeout=timeout)

    async def _do_cursor(self, db: Any, unit: Unit | None) -> None:
        async with db.cursor() as cursor:
            await cursor.execute("SELECT generate_series(1, 3)")
            rows = await cursor.fetchall()
            self._expect(rows == [(1,), (2,), (3,)], f"a cursor read {rows}")

    async def _do_stream(self, db: Any, unit: Unit | None, rows: int, size: int, how: str) -> None:
        stream, seen = db.stream(f"SELECT generate_series(1, {rows})", size=size), 0
        async for row in stream:
            seen += 1
            self._expect(row == (seen,), f"a stream's row {seen} is {row}")
            if how != "all" and seen == 2:
                break
        else:
            self._expect(seen == rows, f"a stream of {rows} rows gave {seen}")
        if how == "close":
            await stream.aclose()

    async def _do_error(self, db: Any, unit: Unit | None) -> None:
        await db.execute("SELECT 1/0")

    async def _do_conflict(self, db: Any, unit: Unit | None) -> None:
        await db.execute("SELECT conflict()")

    async def _do_release(self, db: Any, unit: Unit | None) -> None:
        db.release()

    async def _do_raise(self, db: Any, unit: Unit | None) -> None:
        raise Trouble

    async def _do_raw(self, db: Any, unit: Unit | None) -> None:
        await db.acquire()
        self._expect(db.raw.raw.closed in (0, 1, 2), "raw is not what it should be")

    async def _do_trouble(self, db: Any, unit: Unit | None) -> None:
        await self.scope.trouble()

    async def _do_check(self, db: Any, unit: Unit | None) -> None:
        await self.scope.check()

    async def _do_expire(self, db: Any, unit: Unit | None) -> None:
        self.scope.expire()

    async def _do_leak(self, db: Any, unit: Unit | None) -> None:
        await self.scope.acquire()

    async def _do_write(self, db: Any, unit: Unit | None) -> None:
        if unit is None:
            await self._alone(db, "a statement", 1)
        elif unit.what != SPOILED:
            number = self._next()
            # Only once it has returned: the handler may go on without it.
            await db.execute(f"INSERT INTO visits VALUES ('{self.tag}', {number})")
            unit.numbers.add(number)

    async def _do_many(self, db: Any, unit: Unit | None, count: int) -> None:
        if unit is None:
            await self._alone(db, "executemany", count)

    async def _alone(self, db: Any, what: str, count: int) -> None:
        if db in self._spoiled:
            return
        unit = Unit(self.tag, what)
        first = self._next(count)
        unit.numbers.update(range(first, first + count))
        self.units.append(unit)
        try:
            if what == "executemany":
                sql = "INSERT INTO visits VALUES (%s, %s)"
                await db.executemany(sql, [(self.tag, number) for number in sorted(unit.numbers)])
            else:
                await db.execute(f"INSERT INTO visits VALUES ('{self.tag}', {first})")
        except BaseException as error:
            unit.told, unit.words = told(error), repr(error)
            raise
        unit.told = DONE

    async def _do_begin(self, db: Any, unit: Unit | None) -> None:
        """A transaction without an end: nothing of it may ever be there."""
        if unit is not None or db in self._spoiled:
            return
        self._spoiled.append(db)
        mine = Unit(self.tag, "a BEGIN without an end", {self._next()}, told=NOT_DONE)
        self.units.append(mine)
        await db.execute("BEGIN")
        await db.execute(f"INSERT INTO visits VALUES ('{self.tag}', {min(mine.numbers)})")

    async def _do_tx(self, db: Any, unit: Unit | None, ops: tuple[Op, ...], end: str) -> None:
        if db in self._spoiled:
            return
        outermost = unit is None
        mine = Unit(self.tag, "a transaction")
        self.units.append(mine)
        try:
            async with db.transaction() as tx:
                # Inside, statements may be run on either.
                await self._perform(ops, tx if end == "commit" and _only_statements(ops) else db, mine)
                if end == "raise":
                    raise Trouble
        except BaseException as error:
            mine.told, mine.words = told(error), repr(error)
            if unit is not None:  # a savepoint: undone, whatever becomes of the rest
                self.units.remove(mine)
                unit.undone |= mine.numbers | mine.undone
            if isinstance(error, Trouble):
                return
            raise
        mine.told = DONE
        if not outermost:
            assert unit is not None
            self.units.remove(mine)
            unit.numbers |= mine.numbers
            unit.undone |= mine.undone

    async def _do_retry(self, db: Any, unit: Unit | None, ops: tuple[Op, ...]) -> None:
        """On a connection of its own, so it is no part of ``unit``."""
        mine = Unit(self.tag, "run_transaction")
        self.units.append(mine)

        async def work(tx: Any) -> None:
            mine.undone |= mine.numbers
            mine.numbers.clear()
            if not _only_statements(ops):
                return
            await self._perform(ops, tx, mine)

        try:
            await self.scope.run_transaction(work)
        except BaseException as error:
            mine.told, mine.words = told(error), repr(error)
            raise
        mine.told = DONE

    async def _do_nest(self, db: Any, unit: Unit | None, ops: tuple[Op, ...]) -> None:
        async with self.scope.acquire() as other:
            await self._perform(ops, other, None)

    async def _do_try(self, db: Any, unit: Unit | None, ops: tuple[Op, ...]) -> None:
        with contextlib.suppress(Exception):
            await self._perform(ops, db, unit)

    async def _do_swallow(self, db: Any, unit: Unit | None, ops: tuple[Op, ...]) -> None:
        """It holds on to its cancellation."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._perform(ops, db, unit)

    async def _do_both(self, db: Any, unit: Unit | None, first: tuple[Op, ...], second: tuple[Op, ...]) -> None:
        """Two tasks on one connection."""
        shared = Unit(self.tag, SPOILED)
        await asyncio.gather(
            self._child(self._perform(first, db, shared)),
            self._child(self._perform(second, db, shared)),
            return_exceptions=True,
        )

    async def _do_spawn(self, db: Any, unit: Unit | None, ops: tuple[Op, ...]) -> None:
        """A task that is left behind."""
        self._child(self._quietly(self._perform(ops, db, Unit(self.tag, SPOILED))))

    async def _do_shield(self, db: Any, unit: Unit | None, ops: tuple[Op, ...]) -> None:
        """Work that goes on when the handler is cancelled."""
        await asyncio.shield(self._child(self._perform(ops, db, Unit(self.tag, SPOILED))))

    async def _do_late(self, db: Any, unit: Unit | None, ops: tuple[Op, ...]) -> None:
        """Cleaning up that uses the connection, however the rest ends."""
        try:
            await self._perform(ops, db, unit)
        finally:
            with contextlib.suppress(Exception):
                await db.fetchval("SELECT 1")

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(Exception):
            await work

    def _child(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._children += 1
        task = self._spawn(work, f"{self.tag}/{self._children}")
        task.add_done_callback(lambda it: it.cancelled() or it.exception())  # it may outlive whoever awaits it
        return task


SPOILED = "shared by several tasks"
"""What is written here cannot be told apart, so nothing is."""

WITHOUT = ("sleep", "raise", "nest", "retry", "trouble", "check", "expire", "leak", "try", "swallow", "spawn", "both")
"""What a handler can do that has no connection."""


def _only_statements(ops: tuple[Op, ...]) -> bool:
    return all(what in ("fetch", "sleep", "slow", "write", "error", "conflict", "cursor", "set") for what, *_ in ops)
