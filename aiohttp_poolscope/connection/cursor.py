"""Cursors: aiopg's interface, for as long as a lease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

from aiohttp_poolscope.errors import ConnectionBusy

from .limits import check_timeout

if TYPE_CHECKING:
    from .connection import ScopedConnection
    from .statements import Statements

__all__ = ("CursorContext", "ScopedCursor")


class ScopedCursor:
    """A cursor with aiopg's methods. It ends with the lease it was made in."""

    __slots__ = ("__weakref__", "_db", "_lease", "_raw")  # aiopg.sa has weak references to its cursors

    def __init__(self, db: ScopedConnection, raw: Any) -> None:
        self._db = db
        self._lease = db._lease
        self._raw = raw

    def _readable(self) -> Any:
        self._db._check_lease(self._lease)
        if self._db._link_in_use().running_since is not None:
            # psycopg2 would drop the row it has just read.
            raise ConnectionBusy("a statement is running on this connection: await it before you fetch")
        return self._raw

    async def _run(self, sql: str | bytes, params: Any, timeout: float | None) -> None:
        db = self._db
        db._check_lease(self._lease)
        if timeout is not None:
            check_timeout(timeout)
        if db._streaming:
            await db._end_stream()
        await db._link_in_use().run(self._raw, sql, params, timeout)

    async def execute(self, operation: str, parameters: Any = None, *, timeout: float | None = None) -> None:
        """Run a statement. ``timeout`` in seconds (QueryTimeout, 504)."""
        await self._run(operation, parameters, timeout)

    async def callproc(self, procname: str, parameters: Any = None, *, timeout: float | None = None) -> None:
        """Call a function: ``SELECT * FROM procname(parameters)``. A mapping gives them by their names."""
        named = isinstance(parameters, Mapping)
        given = list((parameters.values() if named else parameters) or ())
        passed = [f"{_quoted(name)} := %s" for name in parameters] if named else ["%s"] * len(given)
        arguments = ", ".join(passed)
        name = ".".join(map(_quoted, procname.split(".")))
        if not given:
            name = name.replace("%%", "%")
        await self._run(f"SELECT * FROM {name}({arguments})", given or None, timeout)  # noqa: S608

    def mogrify(self, operation: str, parameters: Any = None) -> bytes:
        """The statement as it would be sent."""
        filled: bytes = self._readable().mogrify(operation, parameters)
        return filled

    async def fetchone(self) -> Any:
        """The next row, or None."""
        return self._fetch("fetchone")

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Up to ``size`` rows (default ``arraysize``)."""
        rows: list[Any] = self._fetch("fetchmany", self._raw.arraysize if size is None else size)
        return rows

    async def fetchall(self) -> list[Any]:
        """The remaining rows."""
        rows: list[Any] = self._fetch("fetchall")
        return rows

    async def scroll(self, value: int, mode: str = "relative") -> None:
        """Move in the result, by ``value`` rows or (``mode="absolute"``) to that row."""
        self._fetch("scroll", value, mode)

    def _fetch(self, method: str, *args: Any) -> Any:
        raw = self._readable()
        return self._db._link_in_use().reading(getattr(raw, method), *args)

    def close(self) -> None:
        """Close it; harmless when repeated."""
        if not self.closed:
            self._raw.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed or has ended with its lease."""
        return self._db._lease != self._lease or bool(self._raw.closed)

    @property
    def connection(self) -> ScopedConnection:
        """The connection it was made on."""
        return self._db

    @property
    def raw(self) -> Any:
        """The psycopg2 cursor, closed with the lease."""
        return self._db._link_in_use().raw_cursor(self._readable())

    @property
    def description(self) -> Any:
        """The columns of the result, as in the DB-API."""
        return self._raw.description

    @property
    def rowcount(self) -> int:
        """Rows returned or affected; -1 before the first statement."""
        count: int = self._raw.rowcount
        return count

    @property
    def rownumber(self) -> int | None:
        """Index of the next row."""
        number: int | None = self._raw.rownumber
        return number

    @property
    def statusmessage(self) -> str | None:
        """The command status, such as ``"INSERT 0 1"``."""
        status: str | None = self._raw.statusmessage
        return status

    @property
    def query(self) -> bytes | None:
        """The last statement as it was sent."""
        query: bytes | None = self._raw.query
        return query

    @property
    def arraysize(self) -> int:
        """Rows that ``fetchmany()`` reads."""
        size: int = self._raw.arraysize
        return size

    @arraysize.setter
    def arraysize(self, value: int) -> None:
        self._raw.arraysize = value

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        row = self._fetch("fetchone")
        if row is None:
            raise StopAsyncIteration
        return row

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


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
