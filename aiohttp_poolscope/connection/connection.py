"""ScopedConnection: what a handler gets.

The object lives as long as its request (or its ``acquire()`` block); the connection behind it comes and goes::

    nothing --first use, acquire()--> borrowed --release()--> nothing      in a request: the next use borrows again
                                               --end-------> ended        every use raises ConnectionReleased

Each borrow has a number. Cursors, transactions and streams remember theirs and can touch no other connection.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, Self

from aiohttp_poolscope.driver import FAILED, IN_TRANSACTION
from aiohttp_poolscope.errors import ConnectionBusy, ConnectionReleased, PoolScopeError
from aiohttp_poolscope.sql.effects import may_have_written

from .cursor import ScopedCursor
from .limits import check_timeout
from .statements import Isolation, Statements
from .stream import ABANDONED, NOT_STREAMING, Stream
from .transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Generator

    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.gate import Slot

    from .lender import Lender

__all__ = ("Acquisition", "ScopedConnection")

STREAMING = (
    "a stream is being read on this connection: finish it, 'await stream.aclose()', or read it inside "
    "'async with db.transaction() as tx' to run other statements in between"
)


OURS = ("aiohttp_poolscope", "contextlib")
"""Modules between a borrow and who called for it: ``scope.transaction()`` is made with the latter."""


class Acquisition:
    """Borrow now: ``async with x.acquire() as db``, or ``db = await x.acquire()`` and later ``db.release()``."""

    __slots__ = ("_db", "_mine", "_timeout")

    def __init__(self, db: ScopedConnection, timeout: float | None) -> None:
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"acquire(timeout={timeout!r}): must be a number of seconds, 0 or more")
        self._db = db
        self._timeout = timeout
        self._mine = False

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"no {name!r} here: what acquire() returns is no connection yet. Write 'async with ....acquire() as db' or "
            "'db = await ....acquire()'"
        )

    async def _borrow(self) -> ScopedConnection:
        self._mine = not self._db.held
        await self._db._ensure(self._timeout)
        return self._db

    def __await__(self) -> Generator[Any, None, ScopedConnection]:
        return self._borrow().__await__()

    async def __aenter__(self) -> ScopedConnection:
        return await self._borrow()

    async def __aexit__(self, kind: object, *_: object) -> None:
        # A block inside another one, or after an eager borrow, is not the one that gives it back.
        if self._mine:
            if kind is not None:
                self._db._fail()
            self._db._give_back()


class ScopedConnection(Statements):
    """One request's connection. Made by the middleware (``request["db"]``) or ``scope.acquire()``.

    It runs one statement at a time: two tasks that share it get ConnectionBusy. Used after its end it raises
    ConnectionReleased.
    """

    __slots__ = (
        "_borrowing",
        "_depth",
        "_ended",
        "_failed_lease",
        "_lease",
        "_lender",
        "_link",
        "_once",
        "_slot",
        "_streamed",
        "_streaming",
        "client",
        "handling",
        "method",
        "reported",
        "route",
        "running",
        "task",
        "where",
    )

    _streamed: object
    """The statement of the stream that has, or had, the connection."""

    def __init__(self, lender: Lender, *, once: bool = False) -> None:
        self._lender = lender
        self._once = once
        self._link: OpenConnection | None = None
        self._slot: Slot[OpenConnection] | None = None
        self._lease = 0
        self._failed_lease = 0
        self._depth = 0
        self._streaming = NOT_STREAMING
        self._borrowing = False
        self._ended: str | None = None
        # For whom: filled in by the scope, read by leases, reports and the drain.
        self.client: Any = None
        self.route: Any = None
        self.method: str | None = None
        self.task: Any = None
        self.handling = False
        self.running = True
        self.reported = False
        self.where: tuple[tuple[Any, int], ...] | None = None

    def acquire(self, timeout: float | None = None) -> Acquisition:
        """Borrow now, waiting ``timeout`` seconds at most (default: ``acquire_timeout``; 0: one that needs no ping).

        ``async with db.acquire():`` gives it back at the end of the block, ``await db.acquire()`` when the request
        ends or ``release()`` is called. Raises PoolExhausted, DatabaseUnavailable or ShuttingDown (503).
        """
        return Acquisition(self, timeout)

    def release(self) -> None:
        """Give the connection back now; harmless when repeated.

        In a request the next use borrows again; a connection from ``scope.acquire()`` is finished. Not possible
        inside ``transaction()``.
        """
        if self._depth and self._link is not None and not self._link.closed:
            raise PoolScopeError("release() inside transaction(): leave its 'async with' block first")
        self._give_back()

    @property
    def held(self) -> bool:
        """Whether a connection is borrowed at this moment."""
        return self._link is not None

    @property
    def raw(self) -> Any:
        """The ``aiopg.Connection``, for what has no method here, until the lease ends: then ConnectionReleased."""
        return self._link_in_use().raw_connection()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on the server, a failed one included."""
        return self._link is not None and self._link.status in (IN_TRANSACTION, FAILED)

    @property
    def closed(self) -> bool:
        """Whether no statement can be run any more: its request has ended, or the connection has died."""
        return self._is_ended or (self._link is not None and self._link.closed)

    @property
    def _is_ended(self) -> bool:
        return self._ended is not None

    def __repr__(self) -> str:
        state = f"ended: {self._ended}" if self._ended else "borrowed" if self.held else "not borrowed"
        return f"<ScopedConnection {self._lender.key!r} of {self.who}: {state}>"

    @property
    def who(self) -> str:
        """For messages: the request, or that there is none."""
        if self.method is None:
            return "scope.acquire()"
        resource = getattr(self.route, "resource", None)
        return f"{self.method} {'?' if resource is None else resource.canonical}"

    async def _ensure(self, timeout: float | None = None) -> OpenConnection:
        link = self._link
        if link is not None:
            return link
        if self._ended is not None:
            raise self._released()
        if self._borrowing:
            raise ConnectionBusy(
                f"two tasks of {self.who} borrow at once: one connection serves one task; "
                "give each task its own with scope.acquire()"
            )
        self._lender.check_loop()
        self._borrowing = True
        self.where = _callers(every=self._lender.stacks)
        try:
            await self._lender.borrow(self, timeout)
        finally:
            self._borrowing = False
        if self._is_ended:  # while it waited: nobody else would give this connection back
            self._give_back()
        return self._link_in_use()

    def _attach(self, slot: Slot[OpenConnection]) -> None:
        """This slot is lent to it from now on."""
        slot.holder = self
        self._slot = slot
        self._link = slot.link
        self._lease += 1

    def _give_back(self) -> None:
        """Give the connection back, whatever state it is in."""
        slot = self._slot
        if slot is not None:
            self._slot = self._link = None
            self._depth = 0
            self._lease += 1
            self._lender.take_back(slot)
            self._streaming = NOT_STREAMING  # not before: the lender asks whether the lease has ended well
        if self._once and self._ended is None:
            self._end("its release()")

    def _fail(self) -> None:
        """An error has left the handler, or the block, that has the lease."""
        self._failed_lease = self._lease

    @property
    def _ended_well(self) -> bool:
        """Of the lease that ends: whether neither an error nor a stream of a read, left early, is the end of it."""
        if self._streaming:
            text = self._streamed
            if isinstance(text, str) and not may_have_written(text, in_transaction=False):
                return False
        return self._failed_lease != self._lease - 1

    def _end(self, why: str) -> None:
        """No use after this. What is kept is only what the error needs: a request must not be kept alive by it."""
        self._ended = why
        if self._slot is not None:
            self._give_back()
        self.client = self.task = None

    def _revoke(self, why: str) -> None:
        """Take the connection away under its holder: the statement in flight fails, later ones raise."""
        error = ConnectionReleased(f"the connection of {self.who} was taken away: {why}")
        if self._link is not None:
            self._link.fail(error)
        self._end(why)

    async def _execute(self, sql: str | bytes, params: Any, timeout: float | None) -> tuple[OpenConnection, Any]:
        link = self._link
        if link is None:
            link = await self._ensure()
        if timeout is not None:
            check_timeout(timeout)
        if self._streaming:
            await self._end_stream()
        cursor = link.cursor()
        await link.run(cursor, sql, params, timeout)
        return link, cursor

    def _connection(self) -> Self:
        return self

    def _link_in_use(self) -> OpenConnection:
        if self._link is None:
            if self._ended is not None:
                raise self._released()
            raise PoolScopeError(f"no connection is borrowed for {self.who}: 'await db.acquire()' first")
        return self._link

    def _check_lease(self, lease: int) -> None:
        if self._lease != lease:
            raise self._released()

    def _released(self) -> ConnectionReleased:
        why = self._ended or "its release()"
        return ConnectionReleased(
            f"the connection of {self.who} was used after {why}. A response body is written and a background task "
            f"runs after the handler: borrow there with 'async with scope.acquire() as db'"
        )

    async def _end_stream(self) -> None:
        if self._streaming != ABANDONED:
            raise ConnectionBusy(STREAMING)
        link = self._link_in_use()
        await link.run(link.cursor(), "ROLLBACK")
        self._streaming = NOT_STREAMING

    def _transaction(self, isolation: Isolation | None, *, readonly: bool, deferrable: bool) -> Transaction:
        return Transaction(self, isolation, readonly=readonly, deferrable=deferrable)

    def _stream(self, sql: Any, params: Any, size: int) -> Stream:
        return Stream(self, sql, params, size)

    async def _open_cursor(self) -> ScopedCursor:
        link = await self._ensure()
        return ScopedCursor(self, link.new_cursor())


def _callers(*, every: bool) -> tuple[tuple[Any, int], ...] | None:
    """The lines outside of this package that led here, as code object and number: the nearest, or each of them.

    They are put into words only when somebody asks.
    """
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        frame = frame.f_back
    found = []
    while frame is not None:
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back if every else None
    return tuple(found) or None
