"""An application whose handlers wait for the test, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.kit.drained import drains

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Served
    from tests.kit.clients import Answer
    from tests.kit.drained import Drained

SOON = 10.0
"""Seconds: far more than any of these ends may take, far less than aiohttp would wait for a handler that is stuck."""

STUCK = 60.0
"""Seconds that aiohttp would wait for a handler, and once more; by default it is three times as long."""


class App:
    """An application whose handlers wait for the test: ``go`` lets them end."""

    def __init__(self, dsn: str, **settings: Any) -> None:
        self.web = web.Application()
        self.go = asyncio.Event()
        self.started: list[str] = []
        self.ended: dict[str, BaseException | None] = {}
        self.scope = poolscope.setup(self.web, dsn, **{"maxsize": 2, "drain_grace": 3.0, **settings})
        for handler in (self.quick, self.hold, self.lazy, self.query):
            self.web.router.add_get(f"/{handler.__name__}", handler)

    async def quick(self, request: web.Request) -> web.Response:
        self.started.append("quick")
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))

    async def hold(self, request: web.Request) -> web.Response:
        """Holds its connection."""
        return await self._watched(request, self.go.wait())

    @poolscope.lazy
    async def lazy(self, request: web.Request) -> web.Response:
        """Borrows at its end only."""
        return await self._watched(request, self.go.wait())

    async def query(self, request: web.Request) -> web.Response:
        """Is stuck in the database."""
        return await self._watched(request, request["db"].execute("SELECT pg_sleep(%s)", (STUCK,)))

    async def _watched(self, request: web.Request, work: Any) -> web.Response:
        name = request.path.strip("/")
        self.started.append(name)
        self.ended[name] = None
        try:
            await work
            return web.Response(text=str(await request["db"].fetchval("SELECT 42")))
        except BaseException as error:
            self.ended[name] = error
            raise


class End(logging.Handler):
    """The end of an application, and what was logged of it."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        super().__init__()
        self.task = task
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @property
    def report(self) -> Drained:
        """The one log line about the drain."""
        (found,) = drains("\n".join(self.lines))
        return found


@contextlib.asynccontextmanager
async def ending(served: Served) -> AsyncIterator[End]:
    """The application's end, begun; within the block or soon after it is over."""
    end = End(asyncio.create_task(served.runner.cleanup()))
    logger = logging.getLogger("aiohttp_poolscope")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(end)
    try:
        yield end
        async with asyncio.timeout(SOON):
            await end.task
    finally:
        end.task.cancel()
        logger.removeHandler(end)
        logger.setLevel(level)


def good(answer: Answer) -> bool:
    return (answer.status, answer.body) == (200, b"42")


def refused(answer: Answer) -> bool:
    return (
        answer.status == 503
        and answer.headers.get("connection", "").lower() == "close"
        and int(answer.headers["retry-after"]) >= 1
    )
