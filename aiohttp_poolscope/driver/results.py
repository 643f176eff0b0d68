"""Results: the cursors of one connection, and what is read through them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Results",)


class Results:
    """A connection's cursors. ``raw`` is psycopg2's connection; ``rows`` the class of its cursors, None: tuples."""

    __slots__ = ("_cursor", "_factory", "_sent", "_sent_in_transaction", "raw")

    def __init__(self, raw: Any, rows: Any) -> None:
        self.raw = raw
        self._factory: dict[str, Any] = {"cursor_factory": rows} if rows else {}
        self._cursor: Any = None
        # The last statement: what it may have done counts until its rows are read.
        self._sent: str | None = None
        self._sent_in_transaction = False

    def _raise_ours(self, error: Exception, sent: str | None) -> None:
        raise NotImplementedError

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
        row = self.reading(cursor.fetchone)
        if cursor.rowcount > 1:
            self.drop_result()
        return row
