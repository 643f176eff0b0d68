"""Port: all that the package asks of a database driver. aiopg's is one; a model of it is another, in the simulation.

Whoever implements it keeps three rules:

- A connection belongs to the event loop it was opened in, and runs one statement at a time.
- Only methods that are ``async`` take time, and only of these the task may be cancelled. The others return at once.
- What a statement does wrong is raised as ``DatabaseError``; what is wrong with the connection, or with the time it
  takes, as an error of this package.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from aiohttp_poolscope.errors import PoolScopeError

    from .address import Target

__all__ = ("BeforeStatement", "Connector", "OpenConnection", "StatementObserver")

BeforeStatement = Callable[["OpenConnection", object, float | None], Awaitable[float | None]]
"""Awaited with a connection, a statement and its time limit before it is sent. Returns the limit that is left."""


class StatementObserver(Protocol):
    """Told of statements that went wrong, or took long. It must not raise."""

    def failed(self, link: OpenConnection, sql: object, duration: float, error: Exception) -> None:
        """A statement raised ``error``, after ``duration`` seconds."""

    def slow(self, link: OpenConnection, sql: object, duration: float) -> None:
        """A statement took ``slow_after`` seconds or more."""


class OpenConnection(Protocol):
    """One open connection.

    Who calls what: its state is anybody's to read. ``run``, the cursors and what reads them are for the lease, and for
    hooks and resets between two leases. ``ping``, ``cancel_and_wait`` and ``close`` are the pool's alone; a transaction
    that ends may ``cancel_and_wait`` as well. ``time_out`` is the housekeeper's, ``fail`` is for whoever takes the
    connection away: the housekeeper, the end of the pool, a transaction whose end is not certain.
    """

    raw: Any
    """The driver's own object, whose ``closed`` is read in the hot path, before each lease."""
    comment: str
    """Added to the text of each statement. The pool sets it, and a ping empties it."""
    observer: StatementObserver | None
    pool: str | None
    """The key of its pool, for the errors that it raises; with the statement that was sent."""
    before: Sequence[BeforeStatement]
    """Awaited before each statement, mostly nothing. Set with the next two, once, after the connection was opened."""
    slow_after: float | None
    """Seconds from which on a statement is slow; None: none is."""
    watch_session: bool
    """Whether it looks at each statement for what it may leave in the session. Set once, like the three above."""
    session_changed: bool
    """Whether one may have, since the pool has last set it to False: it is reset then before it is lent again."""
    running_since: float | None
    """When the statement in flight was sent, by the pool's clock; None: there is none."""
    touched: bool
    """Whether the lease may have something on this side, which ``end_lease`` is to let go of. Read in the hot path."""
    is_lent: Callable[[], bool] | None
    """Says whether somebody has the connection now: else what the server sends by itself is for nobody. Set once."""
    cancelling: asyncio.Future[None] | None
    """Done once the server knows of a request to cancel that is on its way; None: there is none."""

    @property
    def target(self) -> Target:
        """The server it leads to."""

    @property
    def closed(self) -> bool:
        """Whether it can never be used again: closed by us, or found dead. It does not go back to False."""

    @property
    def clean(self) -> bool:
        """Whether it can be lent again as it is: open, in no transaction, nothing in flight."""

    @property
    def busy(self) -> bool:
        """Whether somebody awaits a statement on it, also past this object."""

    @property
    def executing(self) -> bool:
        """Whether the server may still work on a statement that nobody awaits any more."""

    @property
    def in_flight(self) -> object:
        """The statement in flight, as it was given; None: there is none."""

    @property
    def status(self) -> int:
        """``driver.IDLE``, ``IN_TRANSACTION`` or ``FAILED``; another number while a statement runs or once closed."""

    @property
    def in_role(self) -> bool:
        """Whether its server has the role that was looked for, as far as is known."""

    async def run(self, cursor: Any, sql: str | bytes, params: Any = None, timeout: float | None = None) -> None:
        """Send one statement and wait for all of its result, for ``timeout`` seconds at most.

        Raises ConnectionBusy when another one runs, QueryTimeout, DatabaseUnavailable when the connection has died,
        the error that ``fail`` was given, or DatabaseError. Cancelled, it leaves the statement to the server: the
        connection is then not ``clean``, and ``cancel_and_wait`` is to be called before anything else is sent.
        """

    async def reset(self, sql: str, timeout: float | None = None) -> None:
        """Run what resets the session, and set again what the driver needs of it. Raises as ``run``."""

    async def ping(self) -> None:
        """One round trip. Raises as ``run``; its task has a time-out around it."""

    async def cancel_and_wait(self) -> None:
        """Wait until a statement that was abandoned has ended on the server, asking it to; close, if it does not."""

    def time_out(self, limit: float) -> None:
        """The statement in flight has had its ``limit`` seconds: it is cancelled, or else the connection closed."""

    def fail(self, error: PoolScopeError) -> None:
        """Close it under its user: a statement in flight, and each later one, raises ``error``. May be repeated."""

    def close(self) -> None:
        """Close it. May be repeated."""

    def fault(self, error: BaseException) -> Literal["statement", "timeout", "connection"]:
        """What was at fault when a statement raised ``error``."""

    def cursor(self) -> Any:
        """The cursor that statements share. Read with ``read_all``, ``read_first``; afterwards it keeps no rows."""

    def new_cursor(self) -> Any:
        """A cursor of its own, for a result that is read bit by bit, in the driver's interface."""

    def read_all(self, cursor: Any) -> list[Any]:
        """All rows of the shared cursor. Raises DatabaseUnavailable if the connection has died since."""

    def read_first(self, cursor: Any) -> Any:
        """The first row of the shared cursor, or None. Raises as ``read_all``."""

    def read_value(self, cursor: Any) -> Any:
        """The first column of the first row of the shared cursor, or None. Raises as ``read_all``."""

    def reading(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of a cursor that only reads what is here. Raises as ``read_all``."""

    def drop_result(self) -> None:
        """Let go of the rows of the shared cursor."""

    def text(self, sql: Any) -> str:
        """The text of a statement, without its parameters. Raises TypeError for what is none."""

    def mogrify(self, sql: str, params: Any) -> bytes:
        """The statement with its parameters filled in."""

    def raw_connection(self) -> Any:
        """The driver's own connection, until the end of the lease, for whoever needs what has no method here."""

    def raw_cursor(self, cursor: Any) -> Any:
        """The driver's own cursor, until the end of the lease."""

    def end_lease(self, *, keep_settings: bool = False) -> bool:
        """Let go of what the lease had on this side of the wire: messages, ``raw_connection``, settings of the driver.

        ``keep_settings``: unless they are for all leases. False: the lease has kept something that reaches the next.
        """


class Connector(Protocol):
    """What opens connections for one pool."""

    @property
    def name(self) -> str:
        """What the server shows of its sessions, as application_name."""

    on_read_only_error: Callable[[OpenConnection], None] | None
    """Called with a connection on which a write was refused as read-only. The pool sets it."""

    async def open(self) -> OpenConnection:
        """Connect to the first server that answers and has the wanted role; or DatabaseUnavailable.

        Its task may be cancelled: what is half open is closed then. One call at a time.
        """

    async def finds_role(self) -> bool:
        """Whether a server of the wanted role can be reached."""

    async def is_standby(self, link: OpenConnection) -> bool:
        """Whether the server behind a connection is a standby. Raises DatabaseUnavailable, TimeoutError, OSError."""

    def avoid(self, target: Target) -> None:
        """Try this server last from now on."""

    def forget_empty(self) -> None:
        """A connection was closed: let go of whatever it was the last to need."""

    async def close(self, timeout: float) -> None:
        """Let go of everything, all connections being closed. Raises TimeoutError after ``timeout`` seconds."""
