"""Patches of aiopg, made from inside: the select module that it sees, and what it does when told of its socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
from typing import TYPE_CHECKING, Any

import aiopg.connection

from .libpq import has_no_socket

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Sequence

__all__ = ("PollingSelect", "go_on")


BROKEN = 2
"""psycopg2's word for a connection that it has found dead; 1 is for one that was closed."""


class PollingSelect:
    """What ``aiopg.connection`` sees as the select module.

    aiopg calls select() after each SQL error, only to learn whether the descriptor is still good. The real one raises
    ValueError for descriptors above 1023, inside a loop callback: the statement would never end.
    """

    @staticmethod
    def select(
        readers: Sequence[int], _writers: Sequence[int], _errors: Sequence[int], _timeout: float
    ) -> tuple[list[int], list[int], list[int]]:
        """Which of ``readers`` are ready; OSError if one of them is closed."""
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


aiopg.connection.select = PollingSelect  # type: ignore[attr-defined,assignment]


go_on = aiopg.connection.Connection._ready
"""aiopg's own: take the next step of what is under way on a connection."""


def _ready(weak_self: Any) -> None:
    """What the event loop calls: go on, and on, where the connection has ended and libpq has not noticed yet.

    uvloop tells of a reset once, and then watches the descriptor no more. aiopg reads once each time it is told: with
    something of an answer before the reset, a statement (or a connect) would wait for its time-out.
    """
    go_on(weak_self)
    aio = weak_self()
    if aio is not None and aio._conn.closed == BROKEN:
        _forget_lost(aio)
    if aio is None or isinstance(aio._loop, asyncio.BaseEventLoop):  # asyncio's own tells until it is read
        return
    waiter = aio._waiter
    if (waiter is None or not waiter.done()) and _has_ended(aio._fileno):
        aio._loop.call_soon(_again, weak_self, waiter)


def _again(weak_self: Any, waiter: Future[None] | None) -> None:
    aio = weak_self()
    if aio is not None and aio._waiter is waiter and not (waiter is not None and waiter.done()):
        _ready(weak_self)


def _has_ended(descriptor: int | None) -> bool:
    if descriptor is None:
        return False
    poller = select.poll()
    poller.register(descriptor, 0)  # errors and hang-ups are always told; the former only until somebody has read them
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))


aiopg.connection.Connection._ready = staticmethod(_ready)  # type: ignore[method-assign]


def _forget_lost(aio: Any) -> None:
    """Take the descriptor of a BROKEN connection out of the loop, if libpq has closed it. Soon it is somebody else's.

    aiopg asks whether the number is good still. It is, if another thread has opened a file in the same moment, and
    then the loop would go on to watch it: the next socket with this number could not be, whosever it is.
    """
    if aio._fileno is not None and has_no_socket(aio._conn):
        _forget(aio._fileno)
        aio._fileno, aio._writing = None, False
