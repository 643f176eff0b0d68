"""Transactions and savepoints: ``async with db.transaction() as tx``."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Literal, Self

from aiohttp_poolscope.driver import FAILED
from aiohttp_poolscope.errors import ConnectionBusy, DatabaseUnavailable, PoolScopeError, TransactionFailed

from .statements import Statements

if TYPE_CHECKING:
    from types import TracebackType

    from aiohttp_poolscope.driver import OpenConnection

    from .connection import ScopedConnection
    from .statements import Isolation

__all__ = ("Transaction",)


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

    async def _execute(self, sql: str | bytes, params: Any, timeout: float | None) -> tuple[OpenConnection, Any]:
        return await self._connection()._execute(sql, params, timeout)

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise PoolScopeError("a transaction can be entered once: call transaction() again")
        db = self._db
        link = await db._ensure()
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

    async def _end(self, link: OpenConnection, *, undo: bool) -> None:
        """Commit or roll back; or close, if neither is certain: what ran next would be part of it, and lost with it."""
        try:
            if self._db._depth > self._level:
                raise ConnectionBusy(
                    "transaction() blocks of two tasks overlap on one connection: give each task its own with "
                    "scope.acquire()"
                )
            if not link.busy and link.executing:
                await link.cancel_and_wait()  # its cancellation was caught; this may fail the transaction
            failed = link.status == FAILED
            await link.run(link.cursor(), self._rollback if undo or failed else self._commit)
        except ConnectionBusy:
            link.fail(DatabaseUnavailable("closed: a transaction was ended while another task used the connection"))
            raise
        except asyncio.CancelledError:
            link.fail(DatabaseUnavailable("closed: the task was cancelled while its transaction ended"))
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
