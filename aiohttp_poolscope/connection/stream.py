"""Streams: a large result, row by row, from a cursor on the server."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any, Literal, Self

from aiohttp_poolscope.driver import FAILED
from aiohttp_poolscope.errors import ConnectionBusy, DatabaseUnavailable, OutcomeUnknown
from aiohttp_poolscope.sql.effects import may_have_written

if TYPE_CHECKING:
    from .connection import ScopedConnection

__all__ = ("ABANDONED", "NOT_STREAMING", "Stream")

NOT_STREAMING, ONGOING, ABANDONED = range(3)
"""Whether a stream with a transaction of its own has the connection; ABANDONED: it was dropped halfway."""

_stream_numbers = itertools.count(1)


class Stream:
    """Rows from a cursor on the server. Iterate once; ``aclose()`` (or ``async with``) ends it early."""

    __slots__ = ("_db", "_lease", "_name", "_own", "_params", "_rows", "_size", "_sql", "_state")

    def __init__(self, db: ScopedConnection, sql: Any, params: Any, size: int) -> None:
        self._own = False
        self._state: Literal["new", "open", "ended"] = "new"
        self._db = db
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
            await self._commit()
        rows.reverse()
        self._rows = rows

    async def _open(self) -> None:
        db = self._db
        link = await db._ensure()
        if db._streaming:
            await db._end_stream()
        if not link.closed:
            # While a statement runs nobody knows whether it is in a transaction: one more BEGIN would be no error, and
            # the ROLLBACK after it would end somebody else's.
            await link.cancel_and_wait()
        self._sql = link.text(self._sql)
        self._lease = db._lease
        self._own = not db.in_transaction
        self._name = f"poolscope_stream_{next(_stream_numbers)}"
        self._state = "open"
        if self._own:
            db._streaming, db._streamed = ONGOING, self._sql
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

    async def _commit(self) -> None:
        try:
            await self._end("COMMIT")
        except OutcomeUnknown as error:
            if may_have_written(self._sql, in_transaction=False):
                raise
            raise DatabaseUnavailable("the connection was lost at the end of a stream that only reads") from error

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
