"""An application, or only its pool, inside of the process that measures."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
from typing import TYPE_CHECKING, Any

from aiohttp import web

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

PATIENCE = 600.0
"""Seconds that a request waits where it is not meant to give up."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other tasks bring about."""
    while not condition():  # noqa: ASYNC110  nobody could tell an event
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[tuple[str, int]]:
    """The application on a socket; its address."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        yield runner.addresses[0]
    finally:
        await runner.cleanup()


def running(dsn: str, maxsize: int, **settings: Any) -> AbstractAsyncContextManager[poolscope.PoolScope]:
    """A scope with ``maxsize`` open connections."""
    return poolscope.open(dsn, minsize=maxsize, maxsize=maxsize, processes=1, **settings)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, and all of its answer."""
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    if b" 200 " not in head or length is None:
        raise RuntimeError(f"an answer that was not expected: {head!r}")
    await reader.readexactly(int(length[1]))


def descriptors() -> int:
    """Descriptors this process may have: as many as it is allowed to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
