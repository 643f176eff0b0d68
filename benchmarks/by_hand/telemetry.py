"""What contrib.opentelemetry costs a request: processor time of one borrow and return, by what is instrumented.

    taskset -c 1 chrt -f 10 python -m benchmarks.by_hand.telemetry

One real request calls the middleware again and again, with a handler that does nothing, so that only what happens
between them is measured. The kinds take turns; each figure is the least of many batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, web
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from aiohttp_poolscope.contrib.opentelemetry import instrument
from benchmarks.services.inside import served

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, BATCHES = 500, 200
HEADERS = {"X-Request-ID": "0123456789abcdef"}


def sdk(**options: Any) -> dict[str, Any]:
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False, **options)
    return {"meter_provider": meters, "tracer_provider": TracerProvider(shutdown_on_exit=False)}


def listen(scope: poolscope.PoolScope) -> None:
    scope.on_duration(lambda _: None, "wait")
    scope.on_duration(lambda _: None, "lease")


KINDS: dict[str, Callable[[poolscope.PoolScope], Any]] = {
    "not instrumented": lambda _: None,
    "spans only": lambda scope: instrument(scope, **sdk() | {"meter_provider": NoOpMeterProvider()}),
    "durations=False, and spans": lambda scope: instrument(scope, **sdk(), durations=False),
    "both durations told, nothing recorded": listen,
    "metrics, exemplars off": lambda scope: instrument(
        scope, **sdk(exemplar_filter=AlwaysOffExemplarFilter()) | {"tracer_provider": NoOpTracerProvider()}
    ),
    "metrics and spans": lambda scope: instrument(scope, **sdk()),
}


async def nothing(request: web.Request) -> web.Response:
    return ANSWER


ANSWER = web.Response()


async def cost(scope: poolscope.PoolScope, request: web.Request) -> float:
    """Seconds of one borrow and return, in this batch."""
    before = scope.stats().lent
    begun = time.process_time()
    for _ in range(BATCH):
        await scope.middleware(request, nothing)
        del request[scope.key]  # else it is taken for an inner application's call
    took = time.process_time() - begun
    if scope.stats().lent != before + BATCH:
        raise RuntimeError("not every call has borrowed")
    return took / BATCH


async def main(dsn: str) -> None:
    app = web.Application()
    scopes = {kind: poolscope.PoolScope(dsn, key=f"db{number}") for number, kind in enumerate(KINDS)}
    least = dict.fromkeys(scopes, float("inf"))

    async def measure(request: web.Request) -> web.Response:
        for _ in range(BATCHES):
            for kind, scope in scopes.items():
                least[kind] = min(least[kind], await cost(scope, request))
            await asyncio.sleep(0)
        return web.Response()

    app.router.add_get("/", measure)
    async with contextlib.AsyncExitStack() as stack:
        for kind, scope in scopes.items():
            KINDS[kind](scope)
            await stack.enter_async_context(scope.running())
        host, port = await stack.enter_async_context(served(app))
        client = await stack.enter_async_context(ClientSession(raise_for_status=True))
        await (await client.get(f"http://{host}:{port}/", headers=HEADERS)).read()
    base = least["not instrumented"]
    for kind, seconds in least.items():
        print(f"{kind:36} {seconds * 1e6:6.2f} us  {(seconds - base) * 1e6:+6.2f}")


if __name__ == "__main__":
    with EmbeddedPostgres() as server:
        asyncio.run(main(server.dsn))
