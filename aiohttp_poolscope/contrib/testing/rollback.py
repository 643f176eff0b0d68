"""A scope all of whose connections are one, in one transaction that is never committed.

Each connection that the pool opens is a stand-in for the same session. A statement outside of a transaction gets a
savepoint of its own there, so that its failure harms nothing but itself; BEGIN, COMMIT and ROLLBACK become a savepoint,
its release, and the return to it. Stand-ins take turns: for a statement, or from BEGIN to COMMIT.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp_poolscope.connection.statements import Batch
from aiohttp_poolscope.driver import FAILED, IDLE, Driver, Link
from aiohttp_poolscope.errors import ConfigError, ConnectionBusy, DatabaseUnavailable, PoolScopeError
from aiohttp_poolscope.pool import supplying
from aiohttp_poolscope.web.outside import on_another_run

from .seam import serving
from .session import BLOCK, STATEMENT, Session
from .sql import Kind, divided

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiohttp_poolscope import PoolScope
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.driver import OpenConnection

__all__ = ("Rollback",)

logger = logging.getLogger("aiohttp_poolscope")

ACTIVE: Final = 1
UNKNOWN: Final = 4
"""libpq's status of a connection on which a statement runs, and of one that is closed."""

DISCARD: Final = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *; "
    "SELECT pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES"
)
"""What DISCARD ALL does, in words that may stand in a transaction."""

ENDED: Final = (
    "poolscope_rollback: the transaction around this test was ended, or failed, by a statement on db.raw: "
    "use db.execute() or db.transaction(), which are seen here"
)


class RollbackLink(Link):
    """One of many that stand for the same session. What the pool knows as a connection."""

    __slots__ = ("_block", "_dead", "_inside", "_patience", "_session", "_unsettled")

    def __init__(self, session: Session, rows: Any, patience: float) -> None:
        real = session.link
        super().__init__(real.aio, cast("Any", None), real.target, rows, pgbouncer=real.pgbouncer)
        self.generation, self.role, self.role_matches = real.generation, real.role, real.role_matches
        self._session = session
        self._patience = patience
        self._block = False
        self._dead = False
        self._inside = False
        # Its task was cancelled while a statement ran: the session may be busy with it still.
        self._unsettled = False

    @property
    def closed(self) -> bool:
        """Whether it, or the session, has ended."""
        return self._dead or super().closed

    @property
    def busy(self) -> bool:
        """Whether somebody awaits a statement on it."""
        return self._inside

    @property
    def clean(self) -> bool:
        """Whether it can be lent again as it is."""
        return not (self.closed or self._inside or self._unsettled or self._block)

    @property
    def status(self) -> int:
        """As if the transaction around the test were not there."""
        if self._dead:
            return UNKNOWN
        if self._unsettled or self._inside:
            return ACTIVE
        return super().status if self._block or self.closed else IDLE

    async def run(self, cursor: Any, sql: str | bytes, params: Any = None, timeout: float | None = None) -> None:
        """As ``Link.run``, when its turn comes; PoolExhausted when it does not within ``acquire_timeout``."""
        if self._inside:
            raise ConnectionBusy("another statement is running on this connection: await it first")
        if self._dead:
            raise self.closing_error or DatabaseUnavailable("this connection has been closed")
        self._inside = True
        try:
            await self._take_turn()
            for kind, text in _plan(cursor, sql, params):
                given = params if text is sql else None
                await self._step(kind, cursor, text, given, timeout)
        finally:
            self._inside = False
            self._yield_turn()

    async def cancel_and_wait(self) -> None:
        """Wait until an abandoned statement has ended, and undo it or not, as the server did."""
        if self._inside:
            raise ConnectionBusy("another statement is running on this connection: await it first")
        self._inside = True
        try:
            await self._take_turn()
        finally:
            self._inside = False
            self._yield_turn()

    async def is_standby(self) -> bool:
        """Whether the server is a standby."""
        return await self._session.link.is_standby()

    def cancel(self) -> None:
        """Ask the server to cancel the statement in flight, if it is this one's."""
        if self.running_since is not None:
            self._session.link.cancel()

    def time_out(self, limit: float) -> None:
        """The statement in flight has had its time: cancel it."""
        if self.running_since is not None:
            self._session.link.time_out(limit)

    def fail(self, closing_error: PoolScopeError) -> None:
        """End this one, not the session: the statement in flight is cancelled and raises ``closing_error``."""
        if self.closing_error is None:
            self.closing_error = closing_error
        self.time_out(0.0)
        self.close()

    def close(self) -> None:
        """Of no use any more. What it has not committed is undone before the next one's turn."""
        self._dead = True
        self._cursor = None
        if not self._inside:
            self._yield_turn()

    def end_lease(self, *, keep_settings: bool = False) -> bool:
        """Let go of what the lease had on this side. All others have the session, too: nobody is asked to let go."""
        super().end_lease(keep_settings=keep_settings)
        return True

    async def _take_turn(self) -> None:
        session = self._session
        if session.user is not self:
            await session.take_turn(self, self._patience)
        elif self._unsettled:
            await session.link.cancel_and_wait()
        self._unsettled = False
        if not (self._block or self.closed) and session.link.status in (IDLE, FAILED):
            raise PoolScopeError(ENDED)

    def _yield_turn(self) -> None:
        if self._session.user is self and (self._dead or not self._block):
            self._block = False
            self._session.yield_turn()

    async def _step(self, kind: Kind, cursor: Any, sql: Any, params: Any, timeout: float | None) -> None:
        session = self._session
        match kind:
            case Kind.BEGIN if not self._block:
                self._block, session.task = True, asyncio.current_task()
                await session.savepoint(BLOCK)
                await self._level(sql)
            case Kind.LEVEL if self._block:
                await self._level(sql)
            case Kind.COMMIT | Kind.CHAIN | Kind.ROLLBACK if self._block:
                await self._end(undo=_words(sql).startswith(("ROLLBACK", "ABORT")))
                if kind is Kind.CHAIN:
                    await self._step(Kind.BEGIN, cursor, "BEGIN", None, None)
            case Kind.PREPARE:
                raise PoolScopeError("poolscope_rollback: PREPARE TRANSACTION would end the transaction of the test")
            case Kind.NOTHING | Kind.DISCARD if self._block:  # of the latter PostgreSQL says why not
                await self._send(cursor, sql, params, timeout)
            case Kind.NOTHING:
                await self._send_alone(cursor, sql, params, timeout)
            case Kind.DISCARD:
                await self._send_alone(cursor, DISCARD, None, timeout)
            case _:
                pass  # without an effect, but for PostgreSQL's warning

    async def _level(self, sql: Any) -> None:
        # The rest of it cannot be changed any more, and with one session there is nobody to be isolated from.
        if "READ ONLY" in _words(sql):
            await self._session.control("SET TRANSACTION READ ONLY", BLOCK)

    async def _end(self, *, undo: bool) -> None:
        session = self._session
        try:
            if undo or session.link.status == FAILED:
                await session.undo()
            else:
                await session.keep()
        finally:
            self._block = session.left is not None  # still open only if the session is lost

    async def _send_alone(self, cursor: Any, sql: Any, params: Any, timeout: float | None) -> None:
        """One statement that is its own transaction."""
        session = self._session
        await session.savepoint(STATEMENT)
        try:
            await self._send(cursor, sql, params, timeout)
        except Exception:
            with contextlib.suppress(Exception):  # else the session is lost, which the error says
                await session.undo()
            raise
        await session.keep()

    async def _send(self, cursor: Any, sql: Any, params: Any, timeout: float | None) -> None:
        link = self._session.link
        link.pool = self.pool
        link.observer, link.slow_after, link.comment, link.before = (
            _Told(self),
            self.slow_after,
            self.comment,
            self.before,
        )
        self.running_since = time.monotonic()
        try:
            await link.run(cursor, sql, params, timeout)
        except asyncio.CancelledError:
            self._unsettled = True
            raise
        except Exception as error:
            if self.closing_error is not None:
                raise self.closing_error from error
            raise
        finally:
            self.running_since = None
            link.observer, link.slow_after, link.comment, link.before = None, None, "", ()


class _Told:
    """Tells a stand-in's observer what happens to its statement on the session."""

    def __init__(self, link: RollbackLink) -> None:
        self.link = link
        self.observer = link.observer

    def failed(self, _link: OpenConnection, sql: object, duration: float, error: Exception) -> None:
        if self.observer is not None:
            self.observer.failed(self.link, sql, duration, error)

    def slow(self, _link: OpenConnection, sql: object, duration: float) -> None:
        if self.observer is not None:
            self.observer.slow(self.link, sql, duration)


def _plan(cursor: Any, sql: Any, params: Any) -> list[tuple[Kind, Any]]:
    """What to send: the statement as it is, or, if it begins or ends transactions, its parts with values filled in."""
    if isinstance(sql, Batch):
        return [(Kind.NOTHING, sql)]
    text = sql if isinstance(sql, (str, bytes)) else sql.as_string(cursor)
    if all(kind is Kind.NOTHING for kind, _ in divided(_decoded(text))):
        return [(Kind.NOTHING, sql)]
    if params is not None:
        text = cursor.mogrify(text, params)
    shown = _decoded(sql if isinstance(sql, (str, bytes)) else "")
    if isinstance(text, str):
        return list(divided(text))
    return [(kind, Batch([part.encode("latin-1")], shown)) for kind, part in divided(_decoded(text))]


def _decoded(text: str | bytes) -> str:
    # Each byte is a character, so that what is found in it can be turned back.
    return text.decode("latin-1") if isinstance(text, bytes) else text


def _words(sql: Any) -> str:
    return " ".join(_decoded(sql).upper().split())


class RollbackDriver(Driver):
    """Opens one session, in which there is a transaction, and stand-ins for it."""

    def __init__(self, config: PoolConfig) -> None:
        # The transaction idles whenever the test does, be it in a debugger.
        super().__init__(replace(config, idle_in_transaction_timeout=None))
        self._session: Session | None = None

    async def open(self) -> Link:
        """A stand-in. Raises DatabaseUnavailable."""
        session = self._session
        if session is None or session.link.closed:
            if session is not None:
                logger.warning(
                    "poolscope_rollback: the connection of pool %r was lost, and with it what this test had written",
                    self.config.key,
                )
                session.link.close()
            self._session = session = Session(await super().open())
            try:
                await session.control("BEGIN", None)
            except BaseException:
                session.link.close()
                raise
        return RollbackLink(session, self._rows, self.config.acquire_timeout)

    async def close(self, timeout: float) -> None:
        """Roll back, and close."""
        session, self._session = self._session, None
        if session is not None:
            await session.end(timeout)
        await super().close(timeout)


class Rollback:
    """What ``poolscope_rollback`` is: call it, or ``async with poolscope_rollback.running(scope)``."""

    def __init__(self) -> None:
        self._scopes: list[PoolScope] = []

    def __call__(self, scope: PoolScope) -> PoolScope:
        """From its start to its end everything in ``scope`` is one transaction, which is rolled back.

        Before the application starts. Returns ``scope``. Raises ConfigError for one that runs already.
        """
        if scope.state not in ("starting", "closed"):
            raise ConfigError(
                f"poolscope_rollback(scope): the scope is {scope.state} already; call it before the application "
                "starts, or use 'async with poolscope_rollback.running(scope):'"
            )
        self._scopes.append(scope)
        return scope

    @contextlib.contextmanager
    def armed(self) -> Iterator[Rollback]:
        """As long as pools that are made may be meant."""
        with supplying(self._supply):
            yield self

    def _supply(self, config: PoolConfig) -> tuple[PoolConfig, Driver] | None:
        return _rolled_back(config) if any(scope.config is config for scope in self._scopes) else None

    @contextlib.asynccontextmanager
    async def running(self, scope: PoolScope) -> AsyncIterator[PoolScope]:
        """The same for a block, with a scope that runs already and that nobody uses at this moment.

        Raises ConfigError for one that does not run, or has a connection in use at the beginning or the end.
        """
        call = "poolscope_rollback.running(scope)"
        serving(scope, call)
        _unused(scope, call)
        async with on_another_run(scope, *_rolled_back(scope.config)):
            yield scope
            _unused(scope, f"the end of {call}")


def _unused(scope: PoolScope, call: str) -> None:
    if leases := scope.leases():
        who = ", ".join(f"{lease.method or 'a task'} {lease.path or lease.task} at {lease.where}" for lease in leases)
        raise ConfigError(f"{call}: connections are in use: {who}")


def _rolled_back(config: PoolConfig) -> tuple[PoolConfig, Driver]:
    # What hooks and resets do to the session is meant for one lease: two must not share it.
    hooked = config.on_acquire or config.on_release or config.reset not in {"auto", "rollback"}
    if hooked or config.request_tag == "application_name":
        config = replace(config, maxsize=1, minsize=min(1, config.minsize))
    if config.reset == "auto":  # its stand-ins share one session
        config = replace(config, reset="rollback")
    return config, RollbackDriver(config)
