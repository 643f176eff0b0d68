"""Driver: the only module that imports aiopg and psycopg2.

It shows the rest of the package a small protocol. ``Driver.open`` makes a Link; a Link runs one statement at a time,
says what transaction it is in, cancels, and closes. Each oddity of the libraries below is met here, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import inspect
import os
import re
import select
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import aiopg
import aiopg.connection
import psycopg2
import psycopg2.extensions
import psycopg2.extras
from aiopg.utils import ClosableQueue

from .errors import ConnectionBusy, DatabaseUnavailable, PoolScopeError, QueryTimeout
from .targets import Targets

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Sequence

    from .config import PoolConfig
    from .targets import Target

__all__ = ("FAILED", "IDLE", "IN_TRANSACTION", "DatabaseError", "Driver", "Link", "cancelled_by_server", "sqlstate")

IDLE: Final[int] = psycopg2.extensions.TRANSACTION_STATUS_IDLE
IN_TRANSACTION: Final[int] = psycopg2.extensions.TRANSACTION_STATUS_INTRANS
FAILED: Final[int] = psycopg2.extensions.TRANSACTION_STATUS_INERROR

DatabaseError = psycopg2.Error

CLOSED: Final = 1
"""psycopg2's ``closed``: 0 open, 1 closed by us, 2 found dead."""

CANCEL_MARGIN = 0.25
"""Seconds that a server has to end a statement it was asked to cancel; then the connection is closed."""

SETTLE_LIMIT = 1.0
"""Seconds that an abandoned statement has to end after it was cancelled; then the connection is closed."""

BUSY = (
    "another statement is running on this connection: await it first, "
    "or borrow a second connection with scope.acquire()"
)

CHECK_INTERVAL = "client_connection_check_interval"

ROWS: Final[dict[str, Any]] = {
    "tuple": None,
    "dict": psycopg2.extras.RealDictCursor,
    "namedtuple": psycopg2.extras.NamedTupleCursor,
}


class _PollingSelect:
    """What ``aiopg.connection`` sees as the select module.

    aiopg calls select() after each SQL error, only to learn whether the descriptor is still good. The real one raises
    ValueError for descriptors above 1023, inside a loop callback: the statement would never end.
    """

    @staticmethod
    def select(
        readers: Sequence[int], _writers: Sequence[int], _errors: Sequence[int], _timeout: float
    ) -> tuple[list[int], list[int], list[int]]:
        poller = select.poll()
        for descriptor in readers:
            poller.register(descriptor, select.POLLIN)
        ready = poller.poll(0)
        bad = [descriptor for descriptor, event in ready if event & select.POLLNVAL]
        for descriptor in bad:
            _forget(descriptor)
        if bad:
            raise OSError(errno.EBADF, "bad file descriptor")
        return [descriptor for descriptor, _ in ready], [], []


def _forget(descriptor: int) -> None:
    """Take a closed descriptor out of the loop. aiopg would leave the writer of a connect that was refused in it.

    With uvloop the first removal of two fails, since it cannot go on watching for the other, and the next socket
    that gets this number could not be watched.
    """
    loop = asyncio.get_running_loop()
    for remove in (loop.remove_reader, loop.remove_writer):
        with contextlib.suppress(OSError):
            remove(descriptor)


aiopg.connection.select = _PollingSelect  # type: ignore[attr-defined,assignment]


def _load_cancel() -> Any:
    """The cancel functions of libpq, found through psycopg2's own library.

    ``connection.cancel()`` of psycopg2 keeps the interpreter lock while it connects to the server: on a silent
    network it would stop the whole process, from whichever thread it is called. ctypes lets go of the lock.
    """
    try:
        lib = ctypes.CDLL(psycopg2._psycopg.__file__)
        lib.PQgetCancel.restype = ctypes.c_void_p
        lib.PQgetCancel.argtypes = [ctypes.c_void_p]
        lib.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        lib.PQfreeCancel.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):  # a psycopg2 linked statically: statements are ended by closing instead
        return None
    return lib


_libpq = _load_cancel()


def sqlstate(error: BaseException) -> str | None:
    """The five-character SQLSTATE of a database error, or of the database error that caused it."""
    while not isinstance(error, psycopg2.Error):
        if error.__cause__ is None:
            return None
        error = error.__cause__
    code: str | None = error.pgcode
    return code


def cancelled_by_server(error: asyncio.CancelledError) -> bool:
    """Whether it is aiopg's way of saying that the server cancelled a statement, and nobody cancelled the task."""
    task = asyncio.current_task()
    return (
        isinstance(error.__context__, psycopg2.extensions.QueryCanceledError)
        and task is not None
        and not task.cancelling()
    )


class Link:
    """One open connection.

    ``running_since`` is the monotonic time at which the statement in flight was sent, None while there is none.
    ``cancelling`` is there while a request to cancel is on its way to the server.
    ``verdict`` is why somebody else closed it, as the error its user gets.
    """

    __slots__ = (
        "_cursor",
        "_factory",
        "_limit",
        "_loop",
        "_overdue",
        "_owner",
        "aio",
        "cancelling",
        "host",
        "raw",
        "running_since",
        "verdict",
    )

    def __init__(self, aio: aiopg.Connection, owner: aiopg.Pool, host: str, rows: Any) -> None:
        self.aio: Any = aio
        self.raw: Any = aio.raw
        self.host = host
        self.running_since: float | None = None
        self.verdict: PoolScopeError | None = None
        self._owner: aiopg.Pool | None = owner
        self._loop = asyncio.get_running_loop()
        self._factory: dict[str, Any] = {"cursor_factory": rows} if rows else {}
        self._cursor: Any = None
        self.cancelling: asyncio.Future[None] | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._limit = 0.0

    @property
    def closed(self) -> bool:
        """Whether it can never be used again: closed by us, or found dead."""
        return bool(self.raw.closed)

    @property
    def clean(self) -> bool:
        """Whether it can be lent again as it is: open, in no transaction, nothing in flight."""
        raw = self.raw
        return (
            raw.get_transaction_status() == IDLE
            and not raw.closed
            and self.running_since is None
            and self.aio._waiter is None
            and self.cancelling is None
        )

    @property
    def busy(self) -> bool:
        """Whether somebody awaits a statement on it, be it through ``aio``, past this link."""
        return self.running_since is not None or self.aio._waiter is not None

    @property
    def status(self) -> int:
        """IDLE, IN_TRANSACTION or FAILED; another number while a statement runs or when it is closed."""
        status: int = self.raw.get_transaction_status()
        return status

    @property
    def server_version(self) -> int:
        """As PostgreSQL counts: 150004 is 15.4."""
        version: int = self.raw.server_version
        return version

    async def is_standby(self) -> bool:
        """Whether the server is a read-only standby. It says so by itself since PostgreSQL 14."""
        told = self.raw.get_parameter_status("in_hot_standby")
        if told is None:
            cursor = self.raw.cursor()  # whose rows are tuples
            await self.run(cursor, "SELECT pg_is_in_recovery()")
            return self.reading(cursor.fetchone)[0] is True
        return bool(told == "on")

    def cursor(self) -> Any:
        """The one psycopg2 cursor that statements share."""
        if self._cursor is None:
            self._cursor = self.new_cursor()
        return self._cursor

    def drop_result(self) -> None:
        """Let go of the shared cursor: it keeps its last result alive."""
        cursor, self._cursor = self._cursor, None
        if cursor is not None and not self.closed:
            cursor.close()

    def new_cursor(self) -> Any:
        """A psycopg2 cursor of its own, for whoever reads a result bit by bit."""
        return self.reading(self.raw.cursor, **self._factory)

    def mogrify(self, sql: str, params: Any) -> bytes:
        """The statement with its parameters filled in."""
        filled: bytes = self.reading(self.cursor().mogrify, sql, params)
        return filled

    def reading(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a psycopg2 method that only reads what is here. The connection can have died since it arrived."""
        try:
            return method(*args, **options)
        except psycopg2.Error as error:
            self._blame(error)
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

    async def run(self, cursor: Any, sql: str | bytes, params: Any = None, timeout: float | None = None) -> None:
        """Send one statement and wait for all of its result, ``timeout`` seconds at most (QueryTimeout).

        This is aiopg's ``Cursor.execute`` without two of its habits: it raises a cancellation by the server as a
        CancelledError (which no handler can tell from its own), and it closes the connection when the task is
        cancelled (a statement still in flight can be cancelled on the server, and the connection kept).
        """
        aio = self.aio
        if self.busy:
            raise ConnectionBusy(BUSY)
        if self.cancelling is not None or self.raw.isexecuting():
            await self.settle()
        aio._waiter = waiter = self._loop.create_future()
        self.running_since = time.monotonic()
        timer = None if timeout is None else self._loop.call_later(timeout, self.overdue, timeout)
        try:
            cursor.execute(sql, params)
            aio._ready(aio._weakref)
            await waiter
        except psycopg2.Error as error:
            self._after(error)
            self._blame(error)
            raise
        finally:
            self.running_since = None
            aio._waiter = None
            del waiter  # it holds the error, whose traceback holds this frame
            if timer is not None:
                timer.cancel()
            if self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None

    def overdue(self, limit: float) -> None:
        """The statement in flight has had its ``limit`` seconds: cancel it on the server, or else close."""
        if self._overdue is None:
            self._limit = limit
            self._overdue = self._loop.call_later(CANCEL_MARGIN, self.fail, self._too_late())
            self.cancel()

    async def settle(self) -> None:
        """Wait until an abandoned statement has ended on the server, cancelling it; close if that takes too long."""
        if self.busy:
            raise ConnectionBusy(BUSY)
        self.running_since = time.monotonic()
        aio = self.aio
        try:
            async with asyncio.timeout(SETTLE_LIMIT):
                if self.raw.isexecuting():
                    if self.cancelling is None:
                        self.cancel()
                    aio._waiter = waiter = self._loop.create_future()
                    aio._ready(aio._weakref)
                    with contextlib.suppress(psycopg2.Error):  # how it ended is nobody's business any more
                        await waiter
                if self.cancelling is not None:
                    # Not before it has arrived: it would hit the next statement, which may be somebody else's.
                    await asyncio.wait((self.cancelling,))
        except TimeoutError:
            self.fail(DatabaseUnavailable(f"{self.host} did not end an abandoned statement in {SETTLE_LIMIT:g} s"))
        finally:
            self.running_since = None
            aio._waiter = None

    async def ping(self) -> None:
        """One round trip, or one of the errors of ``run``."""
        await self.run(self.cursor(), "SELECT 1")

    def cancel(self) -> None:
        """Ask the server to cancel the statement in flight. Returns at once; ``cancelling`` is done when it knows."""
        handle = None if _libpq is None or self.closed else _libpq.PQgetCancel(self.raw.pgconn_ptr)
        if not handle:
            return
        self.cancelling = done = self._loop.create_future()
        # The handle is a copy: the connection may be closed meanwhile. A daemon thread, because a server that never
        # answers must not keep the interpreter from exiting.
        threading.Thread(
            target=_cancel, args=(handle, self._loop, self._cancelled, done), name="poolscope-cancel", daemon=True
        ).start()

    def fail(self, verdict: PoolScopeError) -> None:
        """Close it under its user, who gets ``verdict``."""
        if self.verdict is None:
            self.verdict = verdict
        self._shut()

    def _cancelled(self, done: asyncio.Future[None]) -> None:
        if self.cancelling is done:
            self.cancelling = None
        if not done.done():
            done.set_result(None)

    def _too_late(self) -> QueryTimeout:
        return QueryTimeout(f"the statement did not end within {self._limit:g} s")

    def _after(self, error: psycopg2.Error) -> None:
        """Mend what aiopg leaves after an error."""
        error.__traceback__ = None  # aiopg's frames hold the future that holds the error
        aio = self.aio
        if self.closed:
            self._shut()  # at once: libpq has closed the descriptor, and its number may be somebody else's soon
        elif aio._notifies_proxy._close_event.done():
            # After any SQL error aiopg calls the queue of notifications closed, and keeps the error in it: the
            # frames of a request, for as long as the connection lives.
            aio._notifies_proxy = ClosableQueue(aio._notifies, self._loop)

    def _blame(self, error: psycopg2.Error) -> None:
        """Raise our own error if the connection or the time is at fault, not the statement."""
        if self.verdict is not None:
            raise self.verdict from error
        if isinstance(error, psycopg2.extensions.QueryCanceledError):
            if self._overdue is not None:
                raise self._too_late() from error
            raise QueryTimeout(f"the statement was cancelled: {_text(error)}") from error
        if self.closed:
            raise DatabaseUnavailable(f"the connection to {self.host} died: {_text(error)}") from error

    def close(self) -> None:
        """Close and hand back to the aiopg pool that owns it. May be repeated."""
        aio, owner = self.aio, self._owner
        if owner is None:
            return
        self._owner = self._cursor = None
        self._shut()
        owner.release(aio)

    def _shut(self) -> None:
        # A second close() of aiopg would take away the event-loop reader of whoever has the descriptor by now. So:
        # closed by anybody, nothing to do; found dead with its reader already gone, free libpq's memory; else close.
        aio = self.aio
        if self.raw.closed == CLOSED:
            return
        if aio._fileno is None:
            self.raw.close()
        else:
            aio.close()


def _cancel(handle: int, loop: asyncio.AbstractEventLoop, done: Callable[..., None], future: Future[None]) -> None:
    message = ctypes.create_string_buffer(256)
    _libpq.PQcancel(handle, message, len(message))
    _libpq.PQfreeCancel(handle)
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
        loop.call_soon_threadsafe(done, future)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Driver:
    """Opens links, one attempt at a time, and owns the aiopg pools behind them.

    aiopg fixes a pool's connection parameters when it is made, so there is one pool for each address, TLS mode and
    password in use. Nobody ever waits inside one: they are unbounded, hold no idle connection, and are closed when
    the last link has gone.
    """

    def __init__(self, config: PoolConfig, application_name: str) -> None:
        self._config = config
        self._targets = Targets(config)
        self._pools: dict[tuple[object, ...], aiopg.Pool] = {}
        self._check_interval = config.abandon_interval is not None
        self._params = dict(config.params)
        # What could make libpq change to a second socket, which aiopg would never see.
        self._params.pop("fallback_application_name", None)
        self._params.setdefault("gssencmode", "disable")
        self._params["target_session_attrs"] = "any"
        # Told that a parameter in the options is unknown, libpq suspects application_name and connects again without
        # it. So that one stands in the options, too, unless libpq would find another one by itself.
        self._name = application_name
        if config.pgbouncer or "PGAPPNAME" in os.environ:
            self._params["application_name"] = application_name
        self._rows = ROWS[config.rows] if isinstance(config.rows, str) else config.rows

    async def open(self) -> Link:
        """Connect to the first host that answers and has the wanted role, or raise DatabaseUnavailable."""
        try:
            return await self._targets.open(self._connect)
        finally:
            self.forget_empty()

    async def close(self, timeout: float) -> None:
        """Close every aiopg pool. Their links must be closed first, or this gives up after ``timeout`` seconds."""
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()
        async with asyncio.timeout(timeout):
            for pool in pools:
                await pool.wait_closed()

    def forget_empty(self) -> None:
        """Close the aiopg pools that have lost their last connection."""
        for key, pool in list(self._pools.items()):
            if pool.size == 0:
                pool.close()
                del self._pools[key]

    async def _connect(self, target: Target, mode: str) -> Link:
        password = await self._password()
        try:
            try:
                return await self._acquire(target, mode, password)
            except psycopg2.Error as error:
                if not (self._check_interval and CHECK_INTERVAL in str(error)):
                    raise
                self._check_interval = False  # before PostgreSQL 14, or a platform that cannot watch a socket
                return await self._acquire(target, mode, password)
        except (psycopg2.Error, RuntimeError, AssertionError) as error:  # aiopg asserts that it did not die at once
            raise DatabaseUnavailable(_text(error)) from error

    async def _password(self) -> str | None:
        given = self._config.password
        if not callable(given):
            return given
        try:
            password = given()
            return await password if inspect.isawaitable(password) else password
        except Exception as error:  # somebody else's code: a connect that failed, like any other
            raise DatabaseUnavailable(f"the password function failed: {error!r}") from error

    async def _acquire(self, target: Target, mode: str, password: str | None) -> Link:
        key = (target, mode, password, self._check_interval)
        pool = self._pools.get(key)
        if pool is None:
            params: dict[str, Any] = {**self._params, **target.parameters(), "sslmode": mode}
            # else wait_for: a timer for each statement, and lost cancellations on 3.11
            params["timeout"] = None
            if password is not None:
                params["password"] = password
            if options := self._options():
                params["options"] = options
            pool = self._pools[key] = await aiopg.create_pool(
                None,
                minsize=0,
                maxsize=0,
                enable_hstore=self._config.hstore,
                **params,
            )
        return Link(await pool.acquire(), pool, str(target), self._rows)

    def _options(self) -> str:
        """What the session starts with. DISCARD ALL returns to it, unlike to a SET."""
        config = self._config
        given = self._params.get("options", "")
        if config.pgbouncer:
            return given
        limits = {
            "statement_timeout": config.statement_timeout,
            "idle_in_transaction_session_timeout": config.idle_in_transaction_timeout,
            CHECK_INTERVAL: config.abandon_interval if self._check_interval else None,
        }
        ours = [f"-c {name}={max(1, round(limit * 1000))}" for name, limit in limits.items() if limit is not None]
        ours.append("-c application_name=" + re.sub(r"([\\\s])", r"\\\1", self._name))
        return " ".join([*ours, given]).strip()
