"""What lies below the pool's links: psycopg2's connection, its cursor, and libpq's way to cancel, all modelled.

Everything above is as it is: ``Driver`` with its search of hosts, ``Link``, and aiopg's connection, which polls. Each
rule names what it is taken from; ``test_faithful.py`` compares them with the real thing.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import TYPE_CHECKING, Any

import aiopg
import psycopg2
from aiopg.utils import ClosableQueue
from psycopg2.extensions import POLL_OK, POLL_READ, TRANSACTION_STATUS_IDLE

from aiohttp_poolscope.driver import Driver, Link

from .server import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import ContextVar

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.driver.address import Target

    from .network import Host
    from .server import Answer

__all__ = ("ModelDriver", "ModelLink", "Raw")

ACTIVE, UNKNOWN = 1, 4
"""libpq's PQTRANS_ACTIVE and PQTRANS_UNKNOWN."""

CLOSED, BROKEN = 1, 2
"""psycopg2's ``closed``: by us, or found dead."""

DESCRIPTOR = os.open(os.devnull, os.O_RDONLY)
"""A good descriptor: after each error aiopg asks select() whether its own still is one."""


class Cursor:
    """psycopg2's cursor on an asynchronous connection: its result is there when the connection's poll() says so."""

    def __init__(self, raw: Raw) -> None:
        self.closed = False
        self.rowcount = -1
        self.rownumber = 0
        self.statusmessage: str | None = None
        self.description: Any = None
        self.arraysize = 1
        self.query: bytes | None = None
        self._raw = raw
        self._rows: list[tuple[Any, ...]] | None = None

    def execute(self, sql: str | bytes, params: Any = None) -> None:
        """Send it. cursor_type.c: EXC_IF_CURS_CLOSED, EXC_IF_CURS_ASYNC."""
        self._check()
        if self._raw.cursor_in_use is not None:
            raise psycopg2.ProgrammingError("execute cannot be used while an asynchronous query is underway")
        text = sql.decode() if isinstance(sql, bytes) else sql
        if params:
            text = self.mogrify(text, params).decode()
        self.query = text.encode()
        self._raw.send(self, text)

    def mogrify(self, sql: str, params: Any = None) -> bytes:
        """Numbers and simple strings only."""
        self._check()
        if not params:
            return sql.encode()
        return (sql % tuple(str(it) if isinstance(it, int) else f"'{it}'" for it in params)).encode()

    def take(self, answer: Answer) -> None:
        """The answer has arrived: pq_fetch()."""
        self._rows = list(answer.rows) if answer.columns else None
        self.rowcount, self.rownumber = answer.count, 0
        self.statusmessage = answer.message
        if answer.error is not None:
            raise answer.error

    def fetchone(self) -> Any:
        """cursor_type.c: EXC_IF_CURS_CLOSED, EXC_IF_ASYNC_IN_PROGRESS, EXC_IF_NO_TUPLES."""
        rows = self._readable()
        return rows.pop(0) if rows else None

    def fetchmany(self, size: int) -> list[Any]:
        """As fetchone()."""
        rows = self._readable()
        taken, rows[:size] = rows[:size], []
        return taken

    def fetchall(self) -> list[Any]:
        """As fetchone()."""
        return self.fetchmany(len(self._readable()))

    def close(self) -> None:
        """Harmless when repeated."""
        self.closed = True

    def _check(self) -> None:
        if self.closed:
            raise psycopg2.InterfaceError("cursor already closed")
        if self._raw.closed:
            raise psycopg2.InterfaceError("connection already closed")

    def _readable(self) -> list[tuple[Any, ...]]:
        self._check()
        if self._raw.cursor_in_use is not None:
            raise psycopg2.ProgrammingError("fetch cannot be used while an asynchronous query is underway")
        if self._rows is None:
            raise psycopg2.ProgrammingError("no results to fetch")
        return self._rows


class Raw:
    """psycopg2's asynchronous connection, and the socket below it.

    ``ready`` is called as the event loop would call aiopg when the descriptor can be read.
    """

    pgconn_ptr = None
    server_version = 160004

    def __init__(
        self, host: Host, asked_by: ContextVar[str | None], sent: Callable[[Raw, str, str | None], None]
    ) -> None:
        self.closed = 0
        self.notifies: list[Any] = []
        self.notices: list[str] = []
        self.string_types: dict[Any, Any] = {}
        self.binary_types: dict[Any, Any] = {}
        self.cursor_factory: Any = None
        self.cursor_in_use: Cursor | None = None
        self.ready: Callable[[], None] | None = None
        self.status = TRANSACTION_STATUS_IDLE
        self._standby = host.standby
        self._answers: list[tuple[Answer, bool]] = []
        self._asked_by = asked_by
        self._sent = sent
        self.session = Session(host, self)

    def get_transaction_status(self) -> int:
        """PQtransactionStatus(): unknown for a bad connection, active while a result is still to be read."""
        if self.closed:
            return UNKNOWN
        return ACTIVE if self.cursor_in_use is not None else self.status

    def isexecuting(self) -> bool:
        """connection_type.c, psyco_conn_isexecuting(): whether a cursor waits for its result."""
        return self.cursor_in_use is not None

    def get_parameter_status(self, name: str) -> str | None:
        """What the server has reported at its last answer."""
        return ("on" if self._standby else "off") if name == "in_hot_standby" else None

    def cursor(self, **options: Any) -> Cursor:
        """connection_type.c, psyco_conn_cursor(): EXC_IF_CONN_CLOSED."""
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        return Cursor(self)

    def send(self, cursor: Cursor, sql: str) -> None:
        """PQsendQuery(): it succeeds while nobody has noticed that the connection is dead."""
        tag = self._asked_by.get()
        self._sent(self, sql, tag)
        self.cursor_in_use = cursor
        self.session.wire.send(0, self.session.execute, sql, tag)

    def receive(self, answer: Answer, standby: bool) -> None:
        """Something has arrived at the socket."""
        if not self.closed:
            self._answers.append((answer, standby))
            if self.ready is not None:
                self.ready()

    def poll(self) -> int:
        """connection_int.c, conn_poll(): read what has arrived."""
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        if not self._answers:
            return POLL_READ if self.cursor_in_use is not None else POLL_OK
        answer, self._standby = self._answers.pop(0)
        if answer.fatal:
            self.closed = BROKEN
            raise answer.error or psycopg2.OperationalError("server closed the connection unexpectedly")
        cursor, self.cursor_in_use = self.cursor_in_use, None
        self.status = answer.status
        if cursor is not None:
            cursor.take(answer)
        return POLL_OK

    def close(self) -> None:
        """connection_type.c: harmless when repeated. PQfinish() sends a farewell."""
        was, self.closed = self.closed, CLOSED
        if was != CLOSED:
            self._answers.clear()
            self.session.wire.send(0, self.session.client_closes)


class Socket(aiopg.Connection):
    """aiopg's connection as it is once it is connected; its methods are its own."""

    def __init__(self, raw: Raw) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter = None
        self._conn = raw
        self._fileno = DESCRIPTOR
        self._writing = False
        self._notifies = asyncio.Queue()
        self._notifies_proxy = ClosableQueue(self._notifies, self._loop)
        self._weakref = weakref.ref(self)
        # The loop's reader holds the connection by a weak reference, too.
        raw.ready = lambda: aiopg.Connection._ready(self._weakref)


class ModelLink(Link):
    """The link as it is, but that libpq's PQcancel(), which runs in a thread, is a message of the world."""

    __slots__ = ()

    def cancel(self) -> None:
        """libpq.py, request_cancel(): None for what is closed; done when the server has answered, if it does."""
        raw: Raw = self.raw
        if raw.closed:
            return
        host, done = raw.session.host, asyncio.get_running_loop().create_future()
        self.cancelling = done
        if host.hanging or host.silent:
            return  # the thread waits for as long as TCP does
        loop = host.loop

        def arrive() -> None:
            if not (host.silent or raw.session.wire.silent):
                raw.session.cancel()
            loop.call_later(host.delay(), self._cancelled, done)

        loop.call_later(host.delay(), arrive)


class Owner:
    """What a link sees of the aiopg pool that owns it."""

    def __init__(self, driver: ModelDriver) -> None:
        self._driver = driver

    def release(self, aio: Socket) -> None:
        """aiopg's pool asserts that it is one of its own."""
        assert aio in self._driver.open_links, "a connection was given back twice"
        assert aio.closed, "a connection was given back open: aiopg would hand it out again"
        del self._driver.open_links[aio]


class ModelDriver(Driver):
    """The driver as it is, search of hosts and roles included; only a connect itself is modelled."""

    def __init__(
        self,
        config: PoolConfig,
        hosts: list[Host],
        asked_by: ContextVar[str | None],
        sent: Callable[[Raw, str, str | None], None],
        clock: Clock,
    ) -> None:
        super().__init__(config, "simulated", clock)
        self.open_links: dict[Socket, None] = {}
        self.opened = 0
        self._hosts = {host.name: host for host in hosts}
        self._asked_by = asked_by
        self._sent = sent

    async def _acquire(self, target: Target, mode: str, password: str | None) -> Link:
        host = self._hosts[target.name]
        await asyncio.sleep(host.delay())
        if host.hanging or host.silent:
            await host.loop.create_future()
        if host.refusing:
            raise psycopg2.OperationalError(f"connection to {target} failed: Connection refused")
        if len(host.sessions) >= host.limit:
            raise psycopg2.OperationalError(f"connection to {target} failed: FATAL:  sorry, too many clients already")
        raw = Raw(host, self._asked_by, self._sent)
        try:
            await asyncio.sleep(host.delay())
        except BaseException:
            raw.close()
            raise
        if raw.session.ended:
            raw.close()
            raise psycopg2.OperationalError(f"connection to {target} failed: server closed the connection unexpectedly")
        aio = Socket(raw)
        self.open_links[aio] = None
        self.opened += 1
        owner: Any = Owner(self)
        link = ModelLink(aio, owner, target, self._rows, pgbouncer=self.config.pgbouncer, clock=self._clock)
        link.generation = self._generation
        if not self.config.readonly and self.config.target in ("any", "primary"):
            link.on_read_only_error = self.on_read_only_error
        return link
