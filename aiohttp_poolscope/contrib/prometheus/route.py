"""The route that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from aiohttp_poolscope import ConfigError, PoolScope, no_connection
from aiohttp_poolscope.contrib.extras import extra

from .collector import PoolScopeCollector, must_differ
from .metrics import families
from .workers import Reading, Workers, read

with extra("prometheus"):
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric as Family

__all__ = ("setup_metrics",)

ENVIRONMENT: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable for services of several processes."""

TRIES: Final = 10
"""How often a registry is asked, with 10 ms between, before its error is the answer: see _Route._encoded."""

SHORTEST: Final = 0.1
"""Seconds between two writes that are worth the work."""

logger = logging.getLogger("aiohttp_poolscope")


def setup_metrics(
    app: web.Application,
    *scopes: PoolScope,
    path: str = "/metrics",
    registry: CollectorRegistry | None = None,
    directory: str | os.PathLike[str] | None = None,
    interval: float = 1.0,
) -> None:
    """Add a route to ``app`` that tells Prometheus the numbers of ``scopes``, and what else is in ``registry``.

    It takes no connection and is answered while a pool drains. Nothing is registered anywhere: ``registry`` is read
    beside the scopes. By default it is prometheus_client's own, with the metrics of the process, of Python and those
    that the application has made.

    ``directory`` is for services of several processes, gunicorn's workers say: each leaves its numbers there every
    ``interval`` seconds, and whichever is asked tells those of all, with their ``pid`` as a label. Default: the
    variable PROMETHEUS_MULTIPROC_DIR; then the default of ``registry`` is what prometheus_client has there. With a
    ``directory`` but without that variable only the scopes are told: other numbers would be those of one process.

    Raises ConfigError, at once, for what cannot be right; and at the start, if the directory cannot be written to.
    """
    must_differ("setup_metrics(app, *scopes)", scopes)
    if path in {resource.canonical for resource in app.router.resources()}:
        raise ConfigError(f"setup_metrics(path={path!r}): this path is taken; give another")
    if not isinstance(interval, (int, float)) or not SHORTEST <= interval < math.inf:
        raise ConfigError(f"setup_metrics(interval={interval!r}): must be a number of seconds from {SHORTEST:g}")
    shared = directory or os.environ.get(ENVIRONMENT)
    if registry is None:
        registry = _usual(directory)
    _must_not_clash(registry, scopes)
    workers = None
    if shared:
        workers = Workers(Path(shared), interval, lambda pid: [read(scope, pid) for scope in scopes])
        # The first to start is the last to end: the others learn how the pools are drained.
        app.cleanup_ctx.insert(0, workers.running)
    elif os.environ.get("WEB_CONCURRENCY", "1") not in ("", "0", "1"):
        logger.warning(
            "%s: WEB_CONCURRENCY is %s, and each answer has one process alone; set %s to a directory",
            path,
            os.environ["WEB_CONCURRENCY"],
            ENVIRONMENT,
        )
    app.router.add_get(path, _Route(scopes, registry, workers).answer)


def _usual(directory: object) -> CollectorRegistry:
    if not directory and not os.environ.get(ENVIRONMENT):
        return REGISTRY
    registry = CollectorRegistry()
    if os.environ.get(ENVIRONMENT):
        try:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigError(f"setup_metrics: {ENVIRONMENT} is {os.environ[ENVIRONMENT]!r}: {error}") from error
    return registry


def _must_not_clash(registry: CollectorRegistry, scopes: tuple[PoolScope, ...]) -> None:
    """Ask the registry in the way it has: by an attempt to be in it."""
    if not isinstance(registry, CollectorRegistry):
        raise ConfigError(f"setup_metrics(registry={registry!r}): must be a CollectorRegistry of prometheus_client")
    collector = PoolScopeCollector(*scopes)
    try:
        registry.register(collector)
    except ValueError as error:
        raise ConfigError(
            "setup_metrics(registry=...): a PoolScopeCollector is in it already, and its series would be told twice; "
            "leave it out, or give another registry"
        ) from error
    registry.unregister(collector)


class _Together(Collector):
    """A registry, and what it does not know of."""

    def __init__(self, registry: CollectorRegistry, families: Iterable[Family]) -> None:
        self._registry = registry
        self._families = families

    def collect(self) -> Iterator[Family]:
        return itertools.chain(self._registry.collect(), self._families)


class _Route:
    """The handler, and what it tells."""

    def __init__(self, scopes: tuple[PoolScope, ...], registry: CollectorRegistry, workers: Workers | None) -> None:
        self._scopes = scopes
        self._registry = registry
        self._workers = workers

    @no_connection
    async def answer(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(",".join(request.headers.getall(hdrs.ACCEPT, ())))
        response = web.Response(
            body=await self._encoded(encode),
            headers={hdrs.CONTENT_TYPE: content_type, hdrs.VARY: hdrs.ACCEPT},
        )
        response.enable_compression()
        # The scope's middleware does so too, but it may not be in this application.
        if any(scope.state in ("draining", "closed") for scope in self._scopes):
            response.force_close()
        return response

    async def _encoded(self, encode: Callable[[Collector], bytes]) -> bytes:
        """All of it. For a moment the file of a process that has just begun is empty, and prometheus_client trips."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(struct.error):
                return await self._encoded_once(encode)
            await asyncio.sleep(0.01)
        return await self._encoded_once(encode)

    async def _encoded_once(self, encode: Callable[[Collector], bytes]) -> bytes:
        if self._workers is None:
            return encode(self._all([read(scope) for scope in self._scopes], several=False))
        readings = await self._workers.readings()
        return await self._workers.do(encode, self._all(readings, several=True))

    def _all(self, readings: list[Reading], *, several: bool) -> _Together:
        return _Together(self._registry, families(readings, several=several))
