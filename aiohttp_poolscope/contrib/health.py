"""Routes for whoever starts, restarts and sends requests to this service: ready, alive, started.

    scope = poolscope.setup(app, dsn)
    setup_health(app, scope)

Readiness asks each pool whether it can serve: one short question for all who want to know, on a connection that
nobody uses, remembered for a moment. Startup and liveness ask nothing of the database. docs/health.md says what each
of them means to Kubernetes, and which settings fit.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aiohttp_poolscope import ConfigError, no_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp_poolscope import PoolScope

__all__ = ("setup_health",)

logger = logging.getLogger("aiohttp_poolscope")

TICK = 0.25
"""Seconds between two looks at the event loop's lag. They cost a process that idles less than 0.1 % of a processor."""

WINDOW = 60.0
"""Seconds for which the largest lag is told: longer than the usual pause between two probes."""


def setup_health(
    app: web.Application,
    *scopes: PoolScope,
    readiness: str | None = "/readyz",
    liveness: str | None = "/livez",
    startup: str | None = "/startupz",
    cache: float = 1.0,
    timeout: float = 0.8,
) -> None:
    """Add three routes to ``app`` that tell how it and the pools of ``scopes`` are. None for a path leaves it out.

    ``readiness``: 200 if every scope can serve, else 503 with the reason for each. ``startup``: 503 until every scope
    has started, 200 from then on. ``liveness``: 200, with the largest lag of the event loop in the last minute.

    A scope's answer counts for ``cache`` seconds. Whoever asks waits for it ``timeout`` seconds at most (less than
    the second that Kubernetes waits by default, so that the reason arrives), and then hears "no answer".

    Raises ConfigError, at once, for what cannot be right.
    """
    if not scopes:
        raise ConfigError("setup_health(app, *scopes): give at least one scope, as in setup_health(app, scope)")
    _must_be_seconds("cache", cache, 0)
    _must_be_seconds("timeout", timeout, 0.001)
    health = _Health(scopes, cache, timeout)
    for name, path in (("readiness", readiness), ("liveness", liveness), ("startup", startup)):
        if path is not None:
            # Two resources of one path are no error to aiohttp: the second is never reached.
            if path in {resource.canonical for resource in app.router.resources()}:
                raise ConfigError(f"setup_health({name}={path!r}): this path is taken; give another, or None for none")
            app.router.add_get(path, getattr(health, name))
    app.cleanup_ctx.append(health.checking)
    if liveness is not None:
        app.cleanup_ctx.append(health.pulse.beating)


def _must_be_seconds(name: str, value: float, low: float) -> None:
    if not isinstance(value, (int, float)) or not low <= value < math.inf:
        raise ConfigError(f"setup_health({name}={value!r}): must be a number of seconds from {low:g}")


class _Health:
    """The three handlers, and what they look at."""

    def __init__(self, scopes: tuple[PoolScope, ...], cache: float, timeout: float) -> None:
        self._checks = {scope.config.key: _Check(scope, cache) for scope in scopes}
        if len(self._checks) < len(scopes):
            keys = ", ".join(repr(scope.config.key) for scope in scopes)
            raise ConfigError(f"setup_health(app, *scopes): each scope needs a key of its own, not {keys}")
        self._timeout = timeout
        self.pulse = _Pulse()
        self._started = False
        # Earlier the answer would be the same.
        self._retry_after = str(max(1, math.ceil(cache)))

    async def checking(self, _app: web.Application) -> AsyncIterator[None]:
        """For ``app.cleanup_ctx``: no question outlives the application."""
        try:
            yield
        finally:
            for check in self._checks.values():
                await check.stop()

    @no_connection
    async def readiness(self, _request: web.Request) -> web.Response:
        asked = [check.ask() for check in self._checks.values() if check.scope.state == "serving"]
        pending = [task for task in asked if not task.done()]
        if pending:
            # It does not cancel them: others wait for the same answer.
            await asyncio.wait(pending, timeout=self._timeout)
        reasons = {key: check.reason for key, check in self._checks.items()}
        ready = not any(reasons.values())
        return self._answer("ready" if ready else "unready", right=ready, pools=self._pools(reasons))

    @no_connection
    async def startup(self, _request: web.Request) -> web.Response:
        # For ever: the answer 503 has a container killed, in the middle of its drain or of a second start.
        starting = {key: check.scope.state == "starting" for key, check in self._checks.items()}
        self._started = self._started or not any(starting.values())
        if self._started:
            return self._answer("started", right=True)
        reasons = {key: "starting" if late else None for key, late in starting.items()}
        return self._answer("starting", right=False, pools=self._pools(reasons))

    @no_connection
    async def liveness(self, _request: web.Request) -> web.Response:
        return self._answer("alive", right=True, lag=round(self.pulse.lag, 3))

    def _pools(self, reasons: dict[str, str | None]) -> dict[str, Any]:
        return {key: {"state": self._checks[key].scope.state, "reason": reason} for key, reason in reasons.items()}

    def _answer(self, status: str, *, right: bool, **more: Any) -> web.Response:
        response = web.json_response(
            {"status": status, **more},
            status=200 if right else 503,
            headers={"Cache-Control": "no-store"} | ({} if right else {"Retry-After": self._retry_after}),
        )
        # The scope's middleware does so too, but it may not be in this application.
        if any(check.scope.state in ("draining", "closed") for check in self._checks.values()):
            response.force_close()
        return response


class _Check:
    """What is wrong with one scope: asked in a task that all share, whoever of them leaves."""

    def __init__(self, scope: PoolScope, cache: float) -> None:
        self.scope = scope
        self._cache = cache
        self._task: asyncio.Task[str | None] | None = None
        self._fresh_until = float("-inf")

    def ask(self) -> asyncio.Task[str | None]:
        """The question under way, or the last one while its answer counts; else a new one."""
        task = self._task
        if task is None or (task.done() and time.monotonic() >= self._fresh_until):
            task = self._task = asyncio.get_running_loop().create_task(
                self._trouble(), name=f"poolscope {self.scope.config.key}: health"
            )
        return task

    @property
    def reason(self) -> str | None:
        """Why the scope cannot serve. What its state says counts at once, whatever it answered a moment ago."""
        task = self._task
        if self.scope.state != "serving":
            return self.scope.state
        if task is None or not task.done() or task.cancelled():
            return "no answer"
        return task.result()

    async def stop(self) -> None:
        """End a question that is under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _trouble(self) -> str | None:
        try:
            return await self.scope.trouble()
        except Exception:
            logger.exception("pool %r: the question of readiness failed", self.scope.config.key)
            return "no answer"
        finally:
            self._fresh_until = time.monotonic() + self._cache


class _Pulse:
    """How late the event loop is: a timer that looks how late it is called.

    A measurement on request would begin when the loop has come round to the request: after the stall, not in it.
    """

    def __init__(self) -> None:
        self._late = deque([0.0], maxlen=round(WINDOW / TICK))
        self._due = math.inf
        self._timer: asyncio.TimerHandle

    @property
    def lag(self) -> float:
        """The largest of the last minute."""
        return max(self._late)

    async def beating(self, _app: web.Application) -> AsyncIterator[None]:
        """For ``app.cleanup_ctx``: the timer ends with the application."""
        self._beat()
        try:
            yield
        finally:
            self._timer.cancel()

    def _beat(self) -> None:
        self._due = time.monotonic() + TICK
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._late.append(time.monotonic() - self._due)
        self._beat()
