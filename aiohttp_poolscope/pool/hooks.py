"""The user's hooks on a connection: on_connect, on_acquire, on_release. One that fails closes the connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.driver import DatabaseError, cancelled_by_server, sqlstate
from aiohttp_poolscope.errors import (
    ConnectionReleased,
    DatabaseUnavailable,
    PoolExhausted,
    PoolScopeError,
    QueryTimeout,
)
from aiohttp_poolscope.logs import is_mistake, log_mistake
from aiohttp_poolscope.request import comment_for, request_id

if TYPE_CHECKING:
    from aiohttp_poolscope.config import Hook, PoolConfig
    from aiohttp_poolscope.connection import Lender
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.gate import Slot

__all__ = ("before_lending", "prepare", "run")

LEAST = 1.0
"""Seconds that on_acquire has at least; as long as a ping."""


def before_lending(config: PoolConfig) -> Hook:
    """What is awaited with a connection before it is lent: ``on_acquire``, after the tag of ``request_tag``."""
    tag = {"application_name": _name_session, "comment": _comment, "off": None}[config.request_tag]
    hook = config.on_acquire
    if tag is None or hook is None:
        return hook or tag

    async def both(db: ScopedConnection) -> None:
        await tag(db)
        await hook(db)

    both.__qualname__ = _name(hook)
    return both


async def _name_session(db: ScopedConnection) -> None:
    if db.client is None:
        await db.execute("RESET application_name")
    else:
        # PostgreSQL cuts it at 63 bytes.
        await db.execute("SET application_name = %s", (f"{db._lender.key}:{request_id(db.client)}",))
    db._link_in_use().session_changed = False  # the next lease sets its own


async def _comment(db: ScopedConnection) -> None:
    db._link_in_use().comment = comment_for(db.client, db.route)


_name_session.__qualname__ = _comment.__qualname__ = "request_tag"


async def run(
    lender: Lender, hook: Any, link: OpenConnection, told: dict[str, str] | None = None, *, keep_settings: bool = False
) -> None:
    """Run ``on_connect`` or ``on_release``, on a connection that nobody has.

    A mistake of its own is in the log with its traceback. With ``told`` once, until it was another one or none.
    ``keep_settings``: type casters that it registers are for all leases.
    """
    db = ScopedConnection(lender, once=True)
    db._link = link  # and no slot: a release() in the hook gives nothing back
    try:
        await _call(hook, db, link)
        if told:
            told.clear()
    except Exception as error:
        name = _name(hook)
        said = f"the hook {name} failed: {error!r}"
        if _is_its_own(error, link) and (told is None or told.get(name) != said):
            log_mistake(lender.key, f"hook {name}", f"the hook {name} failed", error)
            if told is not None:
                told[name] = said
        if isinstance(error, (DatabaseError, PoolScopeError, TimeoutError)):
            raise
        raise DatabaseUnavailable(said) from error
    finally:
        db._link = None
        db._end("the hook")
        if link.touched and not link.end_lease(keep_settings=keep_settings) and not keep_settings:
            link.fail(ConnectionReleased(f"the hook {_name(hook)} has kept raw.raw"))


async def prepare(lender: Lender, hook: Any, db: ScopedConnection, slot: Slot[OpenConnection], limit: float) -> None:
    """Run ``on_acquire`` on the connection that ``db`` has borrowed, within ``limit`` seconds. It raises what it likes.

    On an object of its own: no other task of the request may run a statement before the hook has, say, set the tenant.
    """
    first = ScopedConnection(lender, once=True)
    first.client, first.route, first.method, first.task = db.client, db.route, db.method, db.task
    first.handling = db.handling
    db._slot = db._link = None
    first._attach(slot)
    try:
        # However late it was lent: given up at once, a good connection would be closed for nothing.
        async with asyncio.timeout(max(limit, LEAST)) as timer:
            await _call(hook, first, slot.link)
    except BaseException as error:
        slot.expires = float("-inf")
        first._fail()
        first._give_back()
        if isinstance(error, TimeoutError) and timer.expired():
            raise PoolExhausted(
                f"pool {lender.key!r}: on_acquire ({_name(hook)}) did not end within acquire_timeout"
            ) from error
        raise
    held, first._slot, first._link = first._slot, None, None
    first._end("on_acquire")
    if held is None:
        raise ConnectionReleased(f"pool {lender.key!r}: the connection was released or taken away in on_acquire")
    db.reported = first.reported
    db._attach(slot)


async def _call(hook: Any, db: ScopedConnection, link: OpenConnection) -> None:
    try:
        await hook(db)
    except asyncio.CancelledError as error:
        if cancelled_by_server(error):
            raise QueryTimeout(f"the hook {_name(hook)}: a statement run on raw was cancelled by the server") from error
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise DatabaseUnavailable(f"the hook {_name(hook)} was cancelled, by itself") from error
    if db.held and not link.closed and not link.clean:
        # Whoever comes next would work inside it and believe to have written.
        raise PoolScopeError(f"the hook {_name(hook)} left a transaction, a stream or a statement open")


def _is_its_own(error: Exception, link: OpenConnection) -> bool:
    """Whether a hook is to blame for an error, and not the database, the network or the time."""
    if isinstance(error, DatabaseError):  # without an SQLSTATE it is psycopg2's own: a parameter it cannot adapt, say
        return sqlstate(error) is None and not link.closed
    return is_mistake(error) if isinstance(error, PoolScopeError) else not isinstance(error, TimeoutError)


def _name(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", hook))
