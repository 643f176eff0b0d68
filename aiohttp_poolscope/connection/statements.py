"""Statements: the methods that a connection and a transaction have in common.

Both say in ``_execute`` how a statement reaches the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from .cursor import CursorContext
from .limits import check_timeout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp_poolscope.driver import OpenConnection

    from .connection import ScopedConnection
    from .stream import Stream
    from .transaction import Transaction

__all__ = ("ISOLATIONS", "Batch", "Isolation", "Statements")

Isolation = Literal["read committed", "repeatable read", "serializable"]

ISOLATIONS = ("read committed", "repeatable read", "serializable")

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

    async def _execute(self, sql: str | bytes, params: Any, timeout: float | None) -> tuple[OpenConnection, Any]:
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
        return link.read_value(cursor)

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
        if timeout is not None:
            check_timeout(timeout)
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

    def stream(self, sql: Any, params: Any = None, size: int = 1000) -> Stream:
        """Iterate over a large result without holding it: ``async for row in db.stream(...)``.

        The rows come ``size`` at a time from a cursor on the server, in a transaction: outside of ``transaction()``
        the stream has one of its own, and the connection does nothing else until the stream has ended.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"stream(size=...) must be a whole number of at least 1, not {size!r}")
        return self._connection()._stream(sql, params, size)

    def transaction(
        self, isolation: Isolation | None = None, *, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """``async with db.transaction() as tx``: COMMIT at the end, ROLLBACK on any exception.

        Inside another transaction it is a savepoint, which has the isolation of the outermost one and takes no
        other. ``deferrable`` waits for a safe snapshot and needs ``"serializable"`` and ``readonly``.
        """
        if isolation is not None and isolation not in ISOLATIONS:
            raise ValueError(f"transaction(isolation={isolation!r}): must be one of {', '.join(map(repr, ISOLATIONS))}")
        return self._connection()._transaction(isolation, readonly=readonly, deferrable=deferrable)

    def cursor(self) -> CursorContext:
        """A cursor with aiopg's interface: ``async with db.cursor() as cur`` or ``cur = await db.cursor()``."""
        return CursorContext(self)
