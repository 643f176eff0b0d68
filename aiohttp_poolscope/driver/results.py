"""Results: the cursors of one connection, and what is read through them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions
import psycopg2.sql

if TYPE_CHECKING:
    from collections.abc import Callable

    from .belongings import Belongings

__all__ = ("Results",)


class Results:
    """A connection's cursors. ``raw`` is psycopg2's connection; ``rows`` the class of its cursors, None: tuples."""

    __slots__ = (
        "__weakref__",
        "_belongings",
        "_cursor",
        "_factory",
        "_sent",
        "_sent_in_transaction",
        "is_lent",
        "listening",
        "raw",
        "touched",
    )

    _belongings: Belongings

    def __init__(self, raw: Any, rows: Any) -> None:
        self.raw = raw
        self._factory: dict[str, Any] = {"cursor_factory": rows} if rows else {}
        self._cursor: Any = None
        # The last statement: what it may have done counts until its rows are read.
        self._sent: str | None = None
        self._sent_in_transaction = False
        self.touched = self.listening = False
        self.is_lent: Callable[[], bool] | None = None

    def raw_cursor(self, cursor: Any) -> Any:
        """A cursor of psycopg2 as it is, until the end of the lease."""
        self.touched = True
        return self._belongings.show_cursor(cursor)

    def expects_messages(self) -> bool:
        """Whether somebody may read a notice or a notification that has come now."""
        if self.is_lent is not None and not self.is_lent():
            return False
        self.touched = True
        return True

    def end_lease(self, *, keep_settings: bool = False) -> bool:
        """Let go of what the lease had on this side. False: somebody has kept the connection itself."""
        if self.listening:
            self._hear()  # what libpq has read: it is nobody's from now on
        self.touched = self.listening = False
        cursors = int(self._cursor is not None)
        return self._belongings.reclaim(self, cursors=cursors, keep_settings=keep_settings)

    def _hear(self) -> None:
        raise NotImplementedError

    def _raise_ours(self, error: Exception, sent: str | None) -> None:
        raise NotImplementedError

    async def run(self, cursor: Any, sql: str | bytes, params: Any = None, timeout: float | None = None) -> None:
        """Send one statement and wait for all of its result."""
        raise NotImplementedError

    async def reset(self, sql: str, timeout: float | None = None) -> None:
        """Run what resets the session. Afterwards dates are in the style that psycopg2 reads."""
        await self.run(self.cursor(), sql, timeout=timeout)
        if not self.raw.closed and not (self.raw.get_parameter_status("DateStyle") or "ISO").startswith("ISO"):
            # psycopg2 says it once, when it connects. Not as an option: that would also set the order of day and month.
            await self.run(self.cursor(), "SET DateStyle TO 'ISO'")

    def cursor(self) -> Any:
        """The one psycopg2 cursor that statements share."""
        if self._cursor is None:
            self._cursor = self.new_cursor()
        return self._cursor

    def drop_result(self) -> None:
        """Let go of the shared cursor: it keeps its last result alive."""
        cursor, self._cursor = self._cursor, None
        if cursor is not None and not self.raw.closed:
            cursor.close()

    def new_cursor(self) -> Any:
        """A psycopg2 cursor of its own, for whoever reads a result bit by bit."""
        return self._calling(self.raw.cursor, **self._factory)

    def mogrify(self, sql: str, params: Any) -> bytes:
        """The statement with its parameters filled in."""
        filled: bytes = self._calling(self.cursor().mogrify, sql, params)
        return filled

    def text(self, sql: Any) -> str:
        """The text of a statement, its parameters not filled in: of a str, bytes or an object of psycopg2.sql."""
        if isinstance(sql, bytes):
            return sql.decode(psycopg2.extensions.encodings[self.raw.encoding])
        if isinstance(sql, psycopg2.sql.Composable):
            sql = self._calling(sql.as_string, self.raw)
        if not isinstance(sql, str):
            raise TypeError(f"a statement is a str, bytes or an object of psycopg2.sql, not {sql!r}")
        return sql

    def _calling(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return method(*args, **options)
        except psycopg2.Error as error:
            self._raise_ours(error, None)
            raise

    def reading(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a psycopg2 method that only reads what is here. The connection can have died since it arrived."""
        try:
            return method(*args)
        except psycopg2.Error as error:
            self._raise_ours(error, self._sent)
            raise

    def read_all(self, cursor: Any) -> list[Any]:
        """All rows of the shared cursor."""
        rows: list[Any] = self.reading(cursor.fetchall)
        if len(rows) > 1:
            self.drop_result()
        return rows

    def read_first(self, cursor: Any) -> Any:
        """The first row of the shared cursor, or None."""
        return self._first(cursor, cursor.fetchone)

    def read_value(self, cursor: Any) -> Any:
        """The first column of the first row of the shared cursor, or None; whatever its rows are."""
        if not self._factory:
            row = self._first(cursor, cursor.fetchone)
        else:  # a dict knows one of two columns with the same name, and it is not the first
            factory, cursor.row_factory = cursor.row_factory, None
            try:
                row = self._first(cursor, psycopg2.extensions.cursor.fetchone, cursor)
            finally:
                cursor.row_factory = factory
        return row[0] if row else None

    def _first(self, cursor: Any, fetchone: Callable[..., Any], *args: Any) -> Any:
        row = self.reading(fetchone, *args)
        if cursor.rowcount > 1:
            self.drop_result()
        return row
