"""Metrics and traces, printed to the terminal: the wait for a connection is a span within its request.

DATABASE_URL=postgresql://localhost/app python examples/tracing.py
curl http://127.0.0.1:8080/report & curl http://127.0.0.1:8080/report

It needs opentelemetry-sdk and opentelemetry-instrumentation-aiohttp-server. A service that sends them to a collector
has OTLPSpanExporter and OTLPMetricExporter in place of the two for the console, and nothing else changes.
"""

import os
import sys
import warnings

from aiohttp import web
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.opentelemetry import instrument


async def report(request: web.Request) -> web.Response:
    # There is one connection: of two who come at once, one waits for half a second.
    await request["db"].execute("SELECT pg_sleep(0.5)")
    return web.Response(text="done\n")


def set_up_telemetry() -> None:
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter())]))
    # Its class inherits from web.Application, which aiohttp would rather not have.
    warnings.filterwarnings("ignore", "Inheritance class _InstrumentedApplication", DeprecationWarning)
    AioHttpServerInstrumentor().instrument()  # before web.Application is called


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    instrument(scope)
    app.router.add_get("/report", report)
    return app


if __name__ == "__main__":
    set_up_telemetry()
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
