"""The routes of the page: itself, its parts, its stream and ``state.json``."""

from __future__ import annotations

import json
import os
import re
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import hdrs, web

from aiohttp_poolscope import ConfigError, PoolScope, no_connection
from aiohttp_poolscope.events import DrainFinished

from .access import Allow, Gatekeeper, gatekeeper
from .sampler import COLUMNS, Recorder, Sampler
from .state import Seats, state_of
from .streams import Streams, encoded

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

__all__ = ("setup_dashboard",)

STATIC: Final = Path(__file__).parent / "static"
PAGE: Final = "page.html"
PARTS: Final = {
    PAGE: "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "uplot.min.css": "text/css",
    "uplot.min.js": "text/javascript",
}

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

NOT_GIVEN: Final[Any] = None


def setup_dashboard(app: web.Application, *scopes: PoolScope, prefix: str = "/_pool", allow: Allow = NOT_GIVEN) -> None:
    """Add a page to ``app`` that shows how the pools of ``scopes`` are, at ``prefix`` + "/".

    ``allow`` says who may see it, and must be given: a function of the request (also async) whose answer is true, or
    ``"loopback"``. That admits clients on this machine (also through ``ssh -L``), by a Host of this machine, without
    any header of a proxy. All others get a 404, as if there was no page. An exception that ``allow`` raises goes its
    own way, so ``web.HTTPUnauthorized`` may ask for a password.

    Raises ConfigError, at once, for what cannot be right.
    """
    if not scopes:
        raise ConfigError(
            "setup_dashboard(app, *scopes): give at least one scope, as in setup_dashboard(app, scope, ...)"
        )
    keys = [scope.config.key for scope in scopes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"setup_dashboard(app, *scopes): each scope needs a key of its own, not {', '.join(keys)}")
    if not isinstance(prefix, str) or not re.fullmatch(r"(?:/[\w.~-]+)+/?|/", prefix, re.ASCII):
        raise ConfigError(
            f'setup_dashboard(prefix={prefix!r}): must be a path of letters, digits and -._~, such as "/_pool"'
        )
    allowed = gatekeeper(allow)
    prefix = prefix.rstrip("/")
    taken = {resource.canonical for resource in app.router.resources()}
    # Two resources of one path are no error to aiohttp: the second is never reached.
    for path in taken.intersection(f"{prefix}/{name}" for name in ("", "state.json", "events", *PARTS)):
        raise ConfigError(f"setup_dashboard(prefix={prefix!r}): the path {path} is taken; give another prefix")
    dashboard = _Dashboard(scopes, allowed)
    for path, handler in dashboard.routes(prefix):
        app.router.add_route("*", path, handler)  # else a 405 would tell whom it refuses that there is something
    app.cleanup_ctx.append(dashboard.sampler.running)
    app.on_shutdown.append(dashboard.streams.end)


class _Dashboard:
    """What the routes show, and the handlers."""

    def __init__(self, scopes: tuple[PoolScope, ...], allowed: Gatekeeper) -> None:
        self._allowed = allowed
        self._recorders = tuple(Recorder(scope) for scope in scopes)
        self._seats = tuple(Seats(scope) for scope in scopes)
        self._workers = max(scope.config.processes for scope in scopes)
        self._parts = {name: (STATIC / name).read_bytes() for name in PARTS}
        self._ticks = 0
        self._latest: bytes | None = None
        self.streams = Streams(self._message, self._draining)
        self.sampler = Sampler(self._recorders, self._tick)
        for scope in scopes:
            scope.on_event(lambda _: self.streams.wake(), DrainFinished)

    def routes(self, prefix: str) -> list[tuple[str, Handler]]:
        """Paths and handlers. Each asks first who may see it."""
        found = [
            (f"{prefix}/", self._part(PAGE)),
            (f"{prefix}/state.json", self.state),
            (f"{prefix}/events", self.events),
        ]
        found += [(f"{prefix}/{name}", self._part(name)) for name in PARTS if name != PAGE]
        if prefix:
            found.append((prefix, self._moved(f"{prefix.rpartition('/')[2]}/")))
        return [(path, self._guarded(handler)) for path, handler in found]

    def _guarded(self, handler: Handler) -> Handler:
        @no_connection
        async def guarded(request: web.Request) -> web.StreamResponse:
            if not await self._allowed(request):
                raise web.HTTPNotFound
            if request.method != hdrs.METH_GET:
                raise web.HTTPMethodNotAllowed(request.method, [hdrs.METH_GET])
            return await handler(request)

        return guarded

    def _part(self, name: str) -> Handler:
        async def part(_request: web.Request) -> web.Response:
            return web.Response(body=self._parts[name], content_type=PARTS[name], charset="utf-8", headers=HEADERS)

        return part

    def _moved(self, location: str) -> Handler:
        async def moved(_request: web.Request) -> web.Response:
            # Relative: a proxy may have taken a part of the path away.
            return web.Response(status=302, headers=HEADERS | {"Location": location})

        return moved

    async def state(self, _request: web.Request) -> web.Response:
        """``state.json``."""
        return web.json_response(self._state(), headers=HEADERS)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The stream."""
        return await self.streams.serve(request, HEADERS)

    def _state(self) -> dict[str, Any]:
        return {
            "at": round(time.time(), 3),
            "worker": {"pid": os.getpid(), "started": round(self.sampler.started, 3), "workers": self._workers},
            "scopes": [state_of(*each) for each in zip(self._recorders, self._seats, strict=True)],
        }

    def _tick(self) -> None:
        self._ticks += 1
        self._latest = None
        self.streams.wake()

    def _message(self, seen: int) -> tuple[int, bytes]:
        """What a client is told that has ``seen`` so many ticks: ``state.json``, and the samples it lacks."""
        missing = self._ticks - seen
        if missing != 1 or self.streams.over():  # it is new, or slow, or this is its last
            return self._ticks, self._encoded(missing)
        if self._latest is None:  # made once for all of them
            self._latest = self._encoded(1)
        return self._ticks, self._latest

    def _encoded(self, missing: int) -> bytes:
        samples = [list(islice(each.samples, max(0, len(each.samples) - missing), None)) for each in self._recorders]
        told = self._state() | {"columns": COLUMNS, "samples": samples, "ended": self.streams.over()}
        return encoded("state", json.dumps(told, separators=(",", ":")))

    def _draining(self) -> bool:
        return any(each.scope.state == "draining" and not each.drained for each in self._recorders)
