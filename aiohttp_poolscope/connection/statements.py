"""What can be done on a connection: statements, transactions, streams.

``Statements`` is what a connection and a transaction have in common; both say in ``_execute`` how a statement
reaches the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from aiohttp_poolscope.driver import FAILED
from aiohttp_poolscope.errors import ConnectionBusy, DatabaseUnavailable, PoolScopeError, TransactionFailed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from aiohttp_poolscope.driver import Link

    from .connection import ScopedConnection
    from .cursor import ScopedCursor

__all__ = ("Isolation", "Statements", "Stream", "Transaction")

Isolation = Literal["read committed", "repeatable read", "serializable"]

ISOLATIONS = ("read committed", "repeatable read", "serializable")

NOT_STREAMING, ONGOING, ABANDONED = range(3)
"""Whether a stream with a transaction of its own has the connection; ABANDONED: it was dropped halfway."""

_stream_numbers = itertools.count(1)

BATCH = 100
"""Statements that executemany sends in one message: a round trip costs about as much as a hundred small INSERTs."""

BETWEEN = b"\n;"
"""On a line of its own: a statement may end in a ``--`` comment, which would swallow the next one."""


class Batch(bytes):
    """One statement many times, with values in it; ``statement`` is its text without them."""

    statement: str

    def __new__(cls, filled: Iterable[bytes], statement: str) -> Self:
        """Each of ``filled`` after the other."""
        made = super().__new__(cls, BETWEEN.join(filled))
        made.statement = statement
        return made


class Statements:
    """Statement methods. ``params`` is a sequence for ``%s`` or a mapping for ``%(name)s``; ``timeout`` in seconds.

    Each raises QueryTimeout when the statement took longer than ``timeout`` or the pool's ``statement_timeout``,
    ConnectionBusy when another statement is running, DatabaseUnavailable when the connection died, and otherwise
    whatever psycopg2 raises.
    """

    __slots__ = ()

    async def _execute(self, sql: str | bytes, params: Any, timeout: float | None) -> tuple[Link, Any]:
        raise NotImplementedError

    def _connection(self) -> ScopedConnection:
        raise NotImplementedError

    async def fetch(self, sql: str, params: Any = None, *, timeout: float | None = None) -> list[Any]:
        """All rows."""
        link, cursor = await self._execute(sql, params, timeout)
        return link.read_all(cursor)

    async def fetchrow(self, sql: str, params: Any = None, *, timeout: float | None = None) -> Any:
        """The first row, or None."""
        link, cursor = await self._execute(sql, params, timeout)
        return link.read_first(cursor)

    async def fetchval(self, sql: str, params: Any = None, *, timeout: float | None = None) -> Any:
        """The first column of the first row, or None."""
        link, cursor = await self._execute(sql, params, timeout)
        row = link.read_first(cursor)
        if row is None:
            return None
        return row[0] if isinstance(row, (tuple, list)) else next(iter(row.values()))

    async def execute(self, sql: str, params: Any = None, *, timeout: float | None = None) -> str:
        """Run a statement; returns its command status, such as ``"UPDATE 3"``."""
        link, cursor = await self._execute(sql, params, timeout)
        status: str = cursor.statusmessage
        if cursor.rowcount > 1:
            link.drop_result()
        return status

    async def executemany(
        self,
        sql: str,
        params: Iterable[Any],
        *,
        timeout: float | None = None,
    ) -> None:
        """Run a statement once for each of ``params``: all of them or, if one fails, none.

        They go to the server a hundred at a time; ``timeout`` is for each of these batches.
        """
        async with self.transaction() as tx:
            db = self._connection()
            batch: list[bytes] = []
            for each in params:
                batch.append(db._link_in_use().mogrify(sql, each))
                if len(batch) == BATCH:
                    await tx._execute(Batch(batch, sql), None, timeout)
                    batch.clear()
            if batch:
                await tx._execute(Batch(batch, sql), None, timeout)

    def stream(self, sql: str, params: Any = None, size: int = 1000) -> Stream:
        """Iterate over a large result without holding it: ``async for row in db.stream(...)``.

        The rows come ``size`` at a time from a cursor on the server, in a transaction: outside of ``transaction()``
        the stream has one of its own, and the connection does nothing else until the stream has ended.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"stream(size=...) must be a whole number of at least 1, not {size!r}")
        return Stream(self, sql, params, size)

    def transaction(
        self, isolation: Isolation | None = None, *, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """``async with db.transaction() as tx``: COMMIT at the end, ROLLBACK on any exception.

        Inside another transaction it is a savepoint, which has the isolation of the outermost one and takes no
        other. ``deferrable`` waits for a safe snapshot and needs ``"serializable"`` and ``readonly``.
        """
        if isolation is not None and isolation not in ISOLATIONS:
            raise ValueError(f"transaction(isolation={isolation!r}): must be one of {', '.join(map(repr, ISOLATIONS))}")
        return Transaction(self._connection(), isolation, readonly=readonly, deferrable=deferrable)

    def cursor(self) -> CursorContext:
        """A cursor with aiopg's interface: ``async with db.cursor() as cur`` or ``cur = await db.cursor()``."""
        return CursorContext(self)


class CursorContext:
    """Both an awaitable and an async context manager; the cursor is closed at the end of the block."""

    __slots__ = ("_cursor", "_statements")

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._cursor: ScopedCursor | None = None

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"no {name!r} here: what cursor() returns is no cursor yet. Write 'async with db.cursor() as cursor' or "
            "'cursor = await db.cursor()'"
        )

    async def _open(self) -> ScopedCursor:
        return await self._statements._connection()._open_cursor()

    def __await__(self) -> Any:
        return self._open().__await__()

    async def __aenter__(self) -> ScopedCursor:
        self._cursor = await self._open()
        return self._cursor

    async def __aexit__(self, *_: object) -> None:
        if self._cursor is not None:
            self._cursor.close()


class Transaction(Statements):
    """A transaction, or a savepoint inside one. Made by ``transaction()``, used with ``async with``."""

    __slots__ = ("_begin", "_db", "_lease", "_level", "_options", "_savepoint", "_state")

    def __init__(self, db: ScopedConnection, isolation: Isolation | None, *, readonly: bool, deferrable: bool) -> None:
        self._db = db
        self._options = bool(isolation or readonly or deferrable)
        self._begin = "BEGIN"
        if isolation is not None:
            self._begin += f" ISOLATION LEVEL {isolation.upper()}"
        if readonly:
            self._begin += " READ ONLY"
        if deferrable:
            self._begin += " DEFERRABLE"
        self._savepoint: str | None = None
        self._lease = 0
        self._level = 0
        self._state: Literal["new", "open", "ended"] = "new"

    def _connection(self) -> ScopedConnection:
        if self._state != "open":
            raise PoolScopeError(f"this transaction is {self._state}: use it inside its 'async with' block only")
        self._db._check_lease(self._lease)
        return self._db

    async def _execute(self, sql: str | bytes, params: Any, timeout: float | None) -> tuple[Link, Any]:
        return await self._connection()._execute(sql, params, timeout)

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise PoolScopeError("a transaction can be entered once: call transaction() again")
        db = self._db
        link = await db._borrowed()
        if db._streaming:
            await db._end_stream()
        begin = self._begin
        if db._depth or db.in_transaction:
            if self._options:
                raise PoolScopeError(
                    "isolation, readonly and deferrable belong to the outermost transaction(): a savepoint has none"
                )
            self._savepoint = f"poolscope_{db._depth + 1}"
            begin = f"SAVEPOINT {self._savepoint}"
        self._lease = db._lease
        db._depth += 1
        self._level = db._depth
        try:
            await db._execute(begin, None, None)
        except BaseException as error:
            # Cancelled after BEGIN was sent: the server may be in the transaction, and the release would find out.
            # Rolled back here already, so that whoever catches the cancellation does not go on inside it.
            if db._lease == self._lease:
                db._depth -= 1
            if self._savepoint is None and not isinstance(error, Exception):
                with contextlib.suppress(Exception):
                    await self._end(link, undo=True)
            raise
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        db, self._state = self._db, "ended"
        link = db._link
        if link is None or db._lease != self._lease or link.closed:
            if kind is None:
                db._check_lease(self._lease)
                raise TransactionFailed("the connection was lost inside the transaction: nothing was written")
            return  # gone, and the transaction with it
        try:
            await self._end(link, undo=kind is not None)
        except Exception:
            if kind is None:  # else the error that ends the block is the one to see
                raise
        finally:
            if db._lease == self._lease:
                db._depth -= 1

    async def _end(self, link: Link, *, undo: bool) -> None:
        """Commit or roll back; or close, if neither is certain: what ran next would be part of it, and lost with it."""
        try:
            if self._db._depth > self._level:
                raise ConnectionBusy(
                    "transaction() blocks of two tasks overlap on one connection: give each task its own with "
                    "scope.acquire()"
                )
            if not link.busy and link.raw.isexecuting():
                await link.settle()  # a statement whose cancellation was caught: to end it may fail the transaction
            failed = link.status == FAILED
            await link.run(link.cursor(), self._rollback if undo or failed else self._commit)
        except (ConnectionBusy, asyncio.CancelledError):
            link.fail(DatabaseUnavailable("closed: a transaction was ended while another task used the connection"))
            raise
        if failed and not undo:
            raise TransactionFailed(
                "a statement in this transaction had failed, so it was rolled back: PostgreSQL would have done that at "
                "COMMIT and reported nothing. Let the statement's error leave the transaction() block, or put the "
                "statement that may fail into a nested transaction()"
            )

    @property
    def _commit(self) -> str:
        return f"RELEASE {self._savepoint}" if self._savepoint else "COMMIT"

    @property
    def _rollback(self) -> str:
        name = self._savepoint
        return f"ROLLBACK TO {name}; RELEASE {name}" if name else "ROLLBACK"


class Stream:
    """Rows from a cursor on the server. Iterate once; ``aclose()`` (or ``async with``) ends it early."""

    __slots__ = ("_db", "_lease", "_name", "_own", "_params", "_rows", "_size", "_sql", "_state")

    def __init__(self, statements: Statements, sql: str, params: Any, size: int) -> None:
        self._own = False
        self._state: Literal["new", "open", "ended"] = "new"
        self._db = statements._connection()
        self._sql = sql
        self._params = params
        self._size = size
        self._name = ""
        self._lease = 0
        self._rows: list[Any] = []

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Any:
        if not self._rows:
            await self._fill()
            if not self._rows:
                raise StopAsyncIteration
        return self._rows.pop()

    async def aclose(self) -> None:
        """End it now. Harmless when repeated."""
        if self._state == "open":
            await self._end("ROLLBACK")
        self._state = "ended"
        self._rows = []

    def __del__(self) -> None:
        # 'break' in an 'async for' just drops the stream. Its transaction must not swallow what comes next.
        if self._own and self._state == "open" and self._db._lease == self._lease:
            self._db._streaming = ABANDONED

    async def _fill(self) -> None:
        if self._state == "new":
            await self._open()
        if self._state != "open":
            return
        try:
            rows = await self._run_all(f"FETCH FORWARD {self._size} FROM {self._name}")
        except ConnectionBusy:
            raise  # nothing was sent: whoever is reading it goes on
        except BaseException:
            await self._fail()
            raise
        if len(rows) < self._size:
            await self._end("COMMIT")
        rows.reverse()
        self._rows = rows

    async def _open(self) -> None:
        db = self._db
        link = await db._borrowed()
        if db._streaming:
            await db._end_stream()
        self._lease = db._lease
        self._own = not db.in_transaction
        self._name = f"poolscope_stream_{next(_stream_numbers)}"
        self._state = "open"
        if self._own:
            db._streaming = ONGOING
        begin = "BEGIN; " if self._own else ""
        try:
            await link.run(link.cursor(), f"{begin}DECLARE {self._name} NO SCROLL CURSOR FOR {self._sql}", self._params)
        except BaseException:
            await self._fail()
            raise

    async def _run_all(self, sql: str) -> list[Any]:
        self._db._check_lease(self._lease)
        link = self._db._link_in_use()
        await link.run(link.cursor(), sql)
        return link.read_all(link.cursor())

    async def _fail(self) -> None:
        with contextlib.suppress(Exception):
            await self._end("ROLLBACK")

    async def _end(self, how: str) -> None:
        """Close the server's cursor: with its transaction, or on its own inside somebody else's."""
        self._state = "ended"
        db, link = self._db, self._db._link
        if link is None or db._lease != self._lease or link.closed:
            return
        if self._own:
            db._streaming = ABANDONED  # until it is done: what came next would be in its transaction
            await link.run(link.cursor(), how)
            db._streaming = NOT_STREAMING
        elif link.status != FAILED:
            await link.run(link.cursor(), f"CLOSE {self._name}")
