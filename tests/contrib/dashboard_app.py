"""An application with the page, and what its tests ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from aiohttp import ClientTimeout, web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import page, sampler, setup_dashboard, streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Served

PATHS = ("", "/", "/state.json", "/events", *(f"/{name}" for name in page.PARTS if name != page.PAGE))
SECRET = "hunter2-in-the-dark"


class App:
    """An application with the page at /_pool, and handlers that do what they are told."""

    def __init__(self, dsn: str, *, allow: Any = "loopback", prefix: str = "/_pool", **settings: Any) -> None:
        self.go = asyncio.Event()
        self.web = web.Application()
        self.scope = poolscope.setup(self.web, dsn, **{"maxsize": 2, "acquire": "eager", **settings})
        setup_dashboard(self.web, self.scope, allow=allow, prefix=prefix)
        self.web.router.add_get("/hold/{what}", self.hold)
        self.web.router.add_get("/run", self.run)

    async def hold(self, request: web.Request) -> web.Response:
        await self.go.wait()
        return web.Response()

    async def run(self, request: web.Request) -> web.Response:
        with contextlib.suppress(Exception):
            await request["db"].execute(request.query["sql"], (request.query.get("value"),))
        return web.Response()


async def state(served: Served, path: str = "/_pool/state.json") -> Any:
    status, text = await served.get(path)
    assert status == 200
    return json.loads(text)


async def messages(served: Served, path: str = "/_pool/events") -> AsyncIterator[Any]:
    """What a stream tells, one message after the other."""
    async with served.client.get(served.url / path.lstrip("/"), timeout=ClientTimeout()) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        kind = ""
        while line := (await response.content.readline()).decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield {"kind": kind, **json.loads(value)}


def recorders(app: App) -> list[sampler.Recorder]:
    """The application's, found by what listens to its scope."""
    heard = {callback for callbacks in app.scope._events.subscribed.values() for callback in callbacks}
    owners = {
        id(it): it for callback in heard if isinstance(it := getattr(callback, "__self__", None), sampler.Recorder)
    }
    return list(owners.values())


def find_streams(app: App) -> list[streams.Streams]:
    return [it.__self__ for it in app.web.on_shutdown if isinstance(getattr(it, "__self__", None), streams.Streams)]
