"""Belongings: what a lease has on this side of the wire. No statement reaches it, so it goes with the lease here."""

from __future__ import annotations

import asyncio
import sys
import weakref
from typing import Any, NamedTuple, Protocol

import aiopg
from aiopg.utils import ClosableQueue, _ContextManager

from aiohttp_poolscope.errors import ConnectionReleased

__all__ = ("Belongings", "RawConnection")


class Owner(Protocol):
    """The link, as seen from here. ``raw`` is psycopg2's connection."""

    raw: Any

    def expects_messages(self) -> bool:
        """Whether somebody may read a notice or a notification that has come now."""


def _released() -> ConnectionReleased:
    return ConnectionReleased(
        "db.raw, or what was made of it, was used after the end of its lease: the connection may be another "
        "request's by now. Borrow with 'async with scope.acquire() as db', and ask that one for its raw"
    )


class _ReleasedCursor(aiopg.Cursor):
    """The class of aiopg's cursors after their lease. Closing them, as blocks do at their end, is no use."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "close", "closed"):
            return super().__getattribute__(name)
        raise _released()

    def close(self) -> None:
        pass

    @property
    def closed(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "<aiopg.Cursor of a lease that has ended>"


class RawConnection:
    """The ``aiopg.Connection`` of a lease, for as long as that lasts. Then each use raises ConnectionReleased."""

    __slots__ = ("__weakref__", "_belongings", "_cursors")

    def __init__(self, belongings: Belongings) -> None:
        self._belongings: Belongings | None = belongings
        self._cursors: weakref.WeakSet[aiopg.Cursor] = weakref.WeakSet()

    def _mine(self) -> Belongings:
        if self._belongings is None:
            raise _released()
        return self._belongings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mine().aio, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return aiopg.Connection

    def __repr__(self) -> str:
        return "<db.raw of a lease that has ended>" if self._belongings is None else repr(self._belongings.aio)

    @property
    def raw(self) -> Any:
        """psycopg2's connection. If somebody has it still when the lease ends, it is closed, and not lent again."""
        return self._mine().show()

    def cursor(self, *args: Any, **options: Any) -> _ContextManager[aiopg.Cursor]:
        """A cursor of aiopg: awaited, or as a block."""
        return _ContextManager[aiopg.Cursor](self._open(*args, **options), _close)

    async def _open(self, *args: Any, **options: Any) -> aiopg.Cursor:
        cursor: aiopg.Cursor = await self._mine().aio.cursor(*args, **options)
        self._cursors.add(cursor)
        return cursor

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._mine().aio.close()

    def end(self) -> None:
        """The lease has ended."""
        self._belongings = None
        for cursor in self._cursors:
            raw = cursor.raw
            cursor.__class__ = _ReleasedCursor
            raw.close()  # somebody may have it


async def _close(cursor: aiopg.Cursor) -> None:
    cursor.close()


class _Notices(list[str]):
    """Where psycopg2 puts what the server says beside its answers."""

    def __init__(self, link: weakref.ref[Owner]) -> None:
        super().__init__()
        self.link = link

    def append(self, notice: str) -> None:
        link = self.link()
        if link is not None and link.expects_messages():
            super().append(notice)


class _Notifications(asyncio.Queue[Any]):
    """Where aiopg puts notifications."""

    def __init__(self, link: weakref.ref[Owner]) -> None:
        super().__init__()
        self.link = link

    def put_nowait(self, item: Any) -> None:
        link = self.link()
        if link is not None and link.expects_messages():
            super().put_nowait(item)


class _Settings(NamedTuple):
    """What can be set on a psycopg2 connection, and stays."""

    strings: dict[Any, Any]
    binaries: dict[Any, Any]
    cursor_factory: Any


class Belongings:
    """What the leases of one connection have on this side: notifications, notices, type casters, ``raw``.

    ``aio`` is aiopg's connection. Before anything is lent of it to look at, its settings are noted down.
    """

    __slots__ = ("_cursors", "_lent", "_settings", "_shown", "_users", "aio")

    def __init__(self, link: Owner, aio: Any) -> None:
        self.aio = aio
        self._lent: RawConnection | None = None
        self._settings: _Settings | None = None
        self._cursors: list[Any] = []
        self._shown = False
        self._users = sys.getrefcount(link.raw)
        if not isinstance(aio._notifies, _Notifications):  # it is, where several links stand for one connection
            self._renew(weakref.ref(link))

    def _renew(self, link: weakref.ref[Owner]) -> None:
        aio = self.aio
        aio.raw.notices = _Notices(link)
        aio._notifies = _Notifications(link)
        aio._notifies_proxy = ClosableQueue(aio._notifies, aio._loop)

    def go_on_hearing(self) -> None:
        """After any SQL error aiopg calls the queue of notifications closed, and keeps the error in it.

        These are the frames of a request, for as long as the connection lives.
        """
        aio = self.aio
        if aio._notifies_proxy._close_event.done():
            aio._notifies_proxy = ClosableQueue(aio._notifies, aio._loop)

    def lend(self) -> RawConnection:
        """``db.raw`` of this lease."""
        self._note()
        if self._lent is None:
            self._lent = RawConnection(self)
        return self._lent

    def show(self) -> Any:
        """psycopg2's connection, out of our hands."""
        self._note()
        self._shown = True
        return self.aio.raw

    def show_cursor(self, cursor: Any) -> Any:
        """A cursor of psycopg2, which is closed with the lease."""
        self._note()
        self._cursors.append(cursor)
        return cursor

    def _note(self) -> None:
        raw = self.aio.raw
        if self._settings is None:
            self._settings = _Settings(dict(raw.string_types), dict(raw.binary_types), raw.cursor_factory)

    def reclaim(self, link: Owner, *, cursors: int, keep_settings: bool) -> bool:
        """The lease has ended: let go of what it had. False: somebody has kept psycopg2's connection.

        ``cursors``: how many the link has. ``keep_settings``: what was set on the connection is for all leases, and so
        is whatever else has it by now.
        """
        raw = link.raw
        lent, self._lent = self._lent, None
        if lent is not None:
            lent.end()
        while self._cursors:
            self._cursors.pop().close()
        before, self._settings = self._settings, None
        shown, self._shown = self._shown, False
        if not raw.closed:
            self.aio._notifies_proxy.close(_released())
            self._renew(self.aio._notifies.link)
            if before is not None and not keep_settings:
                _restore(raw.string_types, before.strings)
                _restore(raw.binary_types, before.binaries)
                raw.cursor_factory = before.cursor_factory
        del raw
        users = sys.getrefcount(link.raw) - cursors
        if keep_settings:
            self._users = users
        return not shown or users <= self._users


def _restore(casters: dict[Any, Any], before: dict[Any, Any]) -> None:
    if casters != before:
        casters.clear()
        casters.update(before)
