"""libpq: what psycopg2 does not offer of it, or not as it is needed here."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
from typing import TYPE_CHECKING, Any

import psycopg2

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable

__all__ = ("has_no_socket", "request_cancel")


def _load_libpq() -> Any:
    """Functions of libpq that psycopg2 has not, or not as they are needed here, found through its own library.

    ``connection.cancel()`` of psycopg2 keeps the interpreter lock while it connects to the server: on a silent
    network it would stop the whole process, from whichever thread it is called. ctypes lets go of the lock.
    """
    try:
        lib = ctypes.CDLL(psycopg2._psycopg.__file__)
        lib.PQsocket.argtypes = [ctypes.c_void_p]
        lib.PQgetCancel.restype = ctypes.c_void_p
        lib.PQgetCancel.argtypes = [ctypes.c_void_p]
        lib.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        lib.PQfreeCancel.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):  # a psycopg2 linked statically: statements are ended by closing instead
        return None
    return lib


_libpq = _load_libpq()


def has_no_socket(raw: Any) -> bool:
    """Whether libpq has closed the socket of a psycopg2 connection. False where it cannot be asked."""
    return _libpq is not None and _libpq.PQsocket(raw.pgconn_ptr) < 0


def request_cancel(raw: Any, done: Callable[[Future[None]], None]) -> Future[None] | None:
    """Ask the server to cancel the statement in flight on a psycopg2 connection. Returns at once.

    ``done`` is called in the loop, with the future that is returned, when the server knows. None: it is not possible.
    """
    handle = None if _libpq is None or raw.closed else _libpq.PQgetCancel(raw.pgconn_ptr)
    if not handle:
        return None
    loop = asyncio.get_running_loop()
    future: Future[None] = loop.create_future()
    # The handle is a copy: the connection may be closed meanwhile. A daemon thread, because a server that never
    # answers must not keep the interpreter from exiting.
    thread = threading.Thread(target=_cancel, args=(handle, loop, done, future), name="poolscope-cancel", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system has none left
        _libpq.PQfreeCancel(handle)
        return None
    return future


def _cancel(handle: int, loop: asyncio.AbstractEventLoop, done: Callable[..., None], future: Future[None]) -> None:
    message = ctypes.create_string_buffer(256)
    _libpq.PQcancel(handle, message, len(message))
    _libpq.PQfreeCancel(handle)
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
        loop.call_soon_threadsafe(done, future)
