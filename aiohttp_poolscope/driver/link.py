"""Link: one open connection, one statement at a time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Literal

import psycopg2
import psycopg2.extensions

from aiohttp_poolscope.clock import SYSTEM
from aiohttp_poolscope.errors import ConnectionBusy, DatabaseUnavailable, PoolScopeError, QueryTimeout
from aiohttp_poolscope.sql.changes import changes_session
from aiohttp_poolscope.sql.session import needs_session

from .belongings import Belongings
from .errors import BUSY, OTHER_LOOP, in_words
from .libpq import request_cancel
from .outcome import check_size, named, own_error, refuse_unless_rollback
from .patches import go_on
from .results import Results
from .statement import text_of, with_comment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import aiopg

    from aiohttp_poolscope.clock import Clock

    from .address import Target
    from .belongings import RawConnection
    from .port import BeforeStatement, OpenConnection, StatementObserver

__all__ = ("FAILED", "IDLE", "IN_TRANSACTION", "Link")

IDLE: Final[int] = psycopg2.extensions.TRANSACTION_STATUS_IDLE
IN_TRANSACTION: Final[int] = psycopg2.extensions.TRANSACTION_STATUS_INTRANS
FAILED: Final[int] = psycopg2.extensions.TRANSACTION_STATUS_INERROR

CLOSED: Final = 1
"""psycopg2's ``closed``: 0 open, 1 closed by us, 2 found dead."""

CANCEL_MARGIN = 0.25
"""Seconds that a server has to end a statement it was asked to cancel; then the connection is closed."""

READ_ONLY: Final = "25006"
"""SQLSTATE of a write in a read-only transaction, which is all that a standby has."""

SETTLE_LIMIT = 1.0
"""Seconds that an abandoned statement has to end after it was cancelled; then the connection is closed."""


class Link(Results):
    """One open connection.

    ``running_since`` is the monotonic time at which the statement in flight was sent, None while there is none.
    ``cancelling`` is there while a request to cancel is on its way to the server.
    ``closing_error`` is why somebody else closed it, as the error its user gets.
    ``on_read_only_error`` is called when a write meets a read-only transaction; None where that is no surprise.
    ``generation``: which of the addresses that a DSN function has named it came from.
    ``session_changed``: a statement, or whoever had ``raw``, may have left something in the session; only looked for
    with ``watch_session``.
    ``comment``: what is added to each statement's text; ``before``: what is awaited before each is sent; ``observer``
    is told of those that fail, or take longer than ``slow_after`` seconds. ``listening``: somebody may wait for
    notifications. ``pool``: the key of its pool, for errors.
    ``role``: whether it was to be a standby, None if no matter; ``role_matches``: whether it was when it was opened.
    """

    __slots__ = (
        "_closing",
        "_late",
        "_loop",
        "_now",
        "_owner",
        "_spoiled",
        "aio",
        "before",
        "cancelling",
        "closing_error",
        "comment",
        "generation",
        "observer",
        "on_read_only_error",
        "pgbouncer",
        "pool",
        "role",
        "role_matches",
        "running_since",
        "session_changed",
        "slow_after",
        "target",
        "watch_session",
    )

    def __init__(
        self,
        aio: aiopg.Connection,
        owner: aiopg.Pool,
        target: Target,
        rows: Any = None,
        *,
        pgbouncer: bool = False,
        clock: Clock = SYSTEM,
    ) -> None:
        self.aio: Any = aio
        super().__init__(aio.raw, rows)
        self.target = target
        self.pgbouncer = pgbouncer
        self.role: bool | None = None
        self.role_matches = True
        self.generation = 0
        self.on_read_only_error: Callable[[OpenConnection], None] | None = None
        self.observer: StatementObserver | None = None
        self.slow_after: float | None = None
        self.pool: str | None = None
        self.before: Sequence[BeforeStatement] = ()
        self.comment = ""
        self.running_since: float | None = None
        self.closing_error: PoolScopeError | None = None
        self._owner: aiopg.Pool | None = owner
        self._loop = asyncio.get_running_loop()
        self._now = clock.monotonic
        self.cancelling: asyncio.Future[None] | None = None
        self._late: QueryTimeout | None = None
        # A statement of this transaction ended well, but late, or when its task had been cancelled: whoever ran it was
        # told otherwise. On this side the transaction has failed.
        self._spoiled = False
        self.session_changed = False
        self.watch_session = False
        self._closing: asyncio.TimerHandle | None = None
        self._belongings = Belongings(self, aio)

    @property
    def closed(self) -> bool:
        """Whether it can never be used again: closed by us, or found dead."""
        return bool(self.raw.closed)

    @property
    def in_flight(self) -> object:
        """The statement in flight; None: there is none."""
        return None if self.running_since is None else self._sent

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
            and not self._spoiled
        )

    @property
    def executing(self) -> bool:
        """Whether a statement is in flight that nobody need wait for any more."""
        executing: bool = self.raw.isexecuting()
        return executing

    @property
    def busy(self) -> bool:
        """Whether somebody awaits a statement on it, be it through ``aio``, past this link."""
        return self.running_since is not None or self.aio._waiter is not None

    @property
    def status(self) -> int:
        """IDLE, IN_TRANSACTION or FAILED; another number while a statement runs or when it is closed."""
        status: int = self.raw.get_transaction_status()
        return FAILED if self._spoiled and status == IN_TRANSACTION else status

    @property
    def in_standby(self) -> bool | None:
        """Whether the server says of itself that it is a standby. None: it does not say (before PostgreSQL 14)."""
        # PgBouncer repeats what some server told it once.
        told = None if self.pgbouncer or self.closed else self.raw.get_parameter_status("in_hot_standby")
        return None if told is None else bool(told == "on")

    @property
    def in_role(self) -> bool:
        """Whether the server has the role that was looked for, as far as it has said so."""
        told = self.in_standby
        return self.role_matches if told is None or self.role is None else told is self.role

    async def is_standby(self) -> bool:
        """Whether the server is a read-only standby, asking it if need be. Raises DatabaseUnavailable."""
        told = self.in_standby
        if told is not None:
            return told
        try:
            cursor = self.raw.cursor()  # whose rows are tuples
            await self.run(cursor, "SELECT pg_is_in_recovery()")
            return self.reading(cursor.fetchone)[0] is True
        except (psycopg2.Error, QueryTimeout) as error:
            raise DatabaseUnavailable(f"{self.target} does not tell its role: {in_words(error)}") from error

    def raw_connection(self) -> RawConnection:
        """Aiopg's connection until the end of the lease, for whoever may wait for notifications on it."""
        self.listening = self.touched = True
        self.session_changed = self.watch_session or self.session_changed
        self._hear()
        return self._belongings.lend()

    def _hear(self) -> None:
        # A notification that arrives together with an answer is read with it, and stays in libpq until the next poll:
        # whoever waited for it would wait for another one.
        if not self.busy and not self.closed:
            go_on(self.aio._weakref)

    async def run(self, cursor: Any, sql: str | bytes, params: Any = None, timeout: float | None = None) -> None:
        """Send one statement and wait for all of its result, ``timeout`` seconds at most (QueryTimeout).

        With ``pgbouncer`` a statement that needs a session of its own is refused (PoolScopeError).

        This is aiopg's ``Cursor.execute`` without two of its habits: it raises a cancellation by the server as a
        CancelledError (which no handler can tell from its own), and it closes the connection when the task is
        cancelled (a statement still in flight can be cancelled on the server, and the connection kept).
        """
        aio = self.aio
        if self.before:
            timeout = await self._await_before(sql, timeout)
        self._check(sql)
        if not self.closed and (self.cancelling is not None or self.raw.isexecuting()):
            await self.cancel_and_wait()
        text = sql if type(sql) is str else text_of(sql)
        if self.watch_session and not self.session_changed:
            self.session_changed = changes_session(text)
        in_transaction = self.raw.get_transaction_status() == IN_TRANSACTION
        if self._spoiled:
            self._unspoil(text, in_transaction=in_transaction)
        self._sent = None
        aio._waiter = waiter = self._loop.create_future()
        self.running_since = begun = self._now()
        timer = None if timeout is None else self._loop.call_later(timeout, self.time_out, timeout)
        try:
            cursor.execute(with_comment(sql, self.comment, params) if self.comment else sql, params)
            self._sent, self._sent_in_transaction = text, in_transaction
            go_on(aio._weakref)  # what has not been sent yet; and a look: uvloop tells of a connection's end only once
            await waiter
            if self._late is not None:
                # PostgreSQL reports as success what was committed here and not on a standby that it was to wait for.
                self._spoiled = self.status == IN_TRANSACTION
                raise self._late
        except (psycopg2.Error, QueryTimeout) as error:
            self._failed(error, sql, self._now() - begun)
            check_size(cursor.query if self.closed else None)
            self._raise_ours(error, self._sent)
            raise
        except asyncio.CancelledError:
            self._spoiled = in_transaction or self.status == IN_TRANSACTION
            raise
        finally:
            self.running_since = None
            aio._waiter = None
            del waiter  # it holds the error, whose traceback holds this frame
            if timer is not None or self._closing is not None or self.listening:
                self._wind_up(timer)
            if self.slow_after is not None and (took := self._now() - begun) >= self.slow_after and self.observer:
                self.observer.slow(self, sql, took)

    def _check(self, sql: str | bytes) -> None:
        if self.busy:
            raise ConnectionBusy(BUSY)
        if asyncio.get_running_loop() is not self._loop:
            raise PoolScopeError(OTHER_LOOP)
        if self.pgbouncer and (problem := needs_session(sql)) is not None:
            raise PoolScopeError(f"refused with pgbouncer=True: {problem}")

    def _failed(self, error: Exception, sql: object, took: float) -> None:
        self._after(error)
        if self.observer is not None:
            self.observer.failed(self, sql, took, error)

    def _unspoil(self, text: str, *, in_transaction: bool) -> None:
        if in_transaction:
            refuse_unless_rollback(text)
        self._spoiled = False

    async def _await_before(self, sql: object, timeout: float | None) -> float | None:
        for each in tuple(self.before):
            timeout = await each(self, sql, timeout)
        return timeout

    def time_out(self, limit: float) -> None:
        """The statement in flight has had its ``limit`` seconds: cancel it on the server, or else close."""
        waiter = self.aio._waiter
        if waiter is not None and not waiter.done():
            go_on(self.aio._weakref)  # where something has held up the loop, the answer may lie here since long
        if self._late is None and not (waiter is not None and waiter.done()):
            self._late = QueryTimeout(f"the statement did not end within {limit:g} s")
            self._closing = self._loop.call_later(CANCEL_MARGIN, self.fail, self._late)
            self.cancel()

    def _wind_up(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        if self._closing is not None:
            self._closing.cancel()
            self._closing = self._late = None
        if self.listening:
            self._hear()

    async def cancel_and_wait(self) -> None:
        """Wait until an abandoned statement has ended on the server, cancelling it; close if that takes too long."""
        if self.busy:
            raise ConnectionBusy(BUSY)
        self.running_since = self._now()
        aio = self.aio
        abandoned = self.executing
        try:
            async with asyncio.timeout(SETTLE_LIMIT):
                if abandoned:
                    if self.cancelling is None:
                        self.cancel()
                    aio._waiter = waiter = self._loop.create_future()
                    go_on(aio._weakref)
                    with contextlib.suppress(psycopg2.Error):  # how it ended is nobody's business any more
                        await waiter
                if self.cancelling is not None:
                    # Not before it has arrived: it would hit the next statement, which may be somebody else's.
                    await asyncio.wait((self.cancelling,))
        except TimeoutError:
            self.fail(DatabaseUnavailable(f"{self.target} did not end an abandoned statement in {SETTLE_LIMIT:g} s"))
        finally:
            self.running_since = None
            aio._waiter = None
            self._spoiled = (self._spoiled or abandoned) and self.raw.get_transaction_status() == IN_TRANSACTION
            if self._closing is not None:
                self._wind_up(None)  # else the next statement would be late

    async def ping(self) -> None:
        """One round trip, or one of the errors of ``run``."""
        self.comment = ""
        await self.run(self.cursor(), "SELECT 1")

    def cancel(self) -> None:
        """Ask the server to cancel the statement in flight. Returns at once; ``cancelling`` is done when it knows."""
        self.cancelling = request_cancel(self.raw, self._cancelled) or self.cancelling

    def fail(self, closing_error: PoolScopeError) -> None:
        """Close it under its user, who gets ``closing_error``."""
        if self.closing_error is None:
            self.closing_error = closing_error
        if self.cancelling is None and not self.closed and self.raw.isexecuting():
            self.cancel()  # the server would not look for us before abandon_interval, if ever
        self._shut()

    def _cancelled(self, done: asyncio.Future[None]) -> None:
        if self.cancelling is done:
            self.cancelling = None
        if not done.done():
            done.set_result(None)

    def _after(self, error: Exception) -> None:
        """Mend what aiopg leaves after an error."""
        error.__traceback__ = None  # aiopg's frames hold the future that holds the error
        if self.closed:
            self._shut()  # at once: libpq has closed the descriptor, and its number may be somebody else's soon
        else:
            self._belongings.go_on_hearing()

    def fault(self, error: BaseException) -> Literal["statement", "timeout", "connection"]:
        """What was wrong when a statement raised ``error``."""
        if isinstance(self.closing_error or error, (QueryTimeout, psycopg2.extensions.QueryCanceledError)):
            return "timeout"
        return "connection" if self.closed else "statement"

    def _raise_ours(self, error: Exception, sent: str | None) -> None:
        """Raise our own error if the connection or the time is at fault, not the statement."""
        if not isinstance(error, psycopg2.Error):
            named(error, self.pool, sent)
            return
        ours = own_error(
            error,
            sent=sent,
            in_transaction=self._sent_in_transaction,
            target=self.target,
            closed=self.closed,
            reason=self.closing_error,
            late=self._late,
        )
        if ours is not None:
            try:
                raise named(ours, self.pool, sent) from error
            finally:
                del ours  # its traceback holds this frame
        told, standby = self.on_read_only_error, self.in_standby
        if error.pgcode == READ_ONLY and told is not None and standby is not False:
            told(self)
            if standby:  # else the transaction, or the role, may have been made read-only
                said = DatabaseUnavailable(f"{self.target} is a standby and takes no writes")
                raise named(said, self.pool, sent) from error

    def close(self) -> None:
        """Close and hand back to the aiopg pool that owns it. May be repeated."""
        aio, owner = self.aio, self._owner
        if owner is None:
            return
        self._owner = self._cursor = self.is_lent = None
        try:
            self._shut()
        finally:
            self.raw.close()  # if not yet: what is open, aiopg would hand out again as a new one
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
