"""What a request costs while the database is away and the breaker is open, and when service is back.

    python -m benchmarks.by_hand.outage [--json]

A server that is stopped and started again (five times, fast and immediate in turn); requests one after the other over
a socket, refused with 503, beside a route that needs no connection; and `scope.acquire()` without HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import time
from typing import Any

from aiohttp import ClientSession, web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

REQUESTS = 500
OUTAGES = 5


@poolscope.no_connection
async def plain(request: web.Request) -> web.Response:
    return web.Response(text="plain")


async def answer(request: web.Request) -> web.Response:
    return web.Response(text=str(await request["db"].fetchval("SELECT 1")))


async def per_request(client: ClientSession, path: str, status: int) -> float:
    """Seconds for one of many requests in a row."""
    begun = time.perf_counter()
    for _ in range(REQUESTS):
        async with client.get(path) as response:
            assert response.status == status, response.status
    return (time.perf_counter() - begun) / REQUESTS


async def per_refusal(scope: poolscope.PoolScope) -> float:
    """Seconds for one refusal without HTTP."""
    begun = time.perf_counter()
    for _ in range(REQUESTS):
        try:
            async with scope.acquire():
                raise AssertionError("the database is away")
        except poolscope.DatabaseUnavailable:
            pass
    return (time.perf_counter() - begun) / REQUESTS


async def first_success(client: ClientSession) -> float:
    """Seconds until a request is served."""
    begun = time.perf_counter()
    while True:
        async with client.get("/answer") as response:
            if response.status == 200:
                return time.perf_counter() - begun


async def measure() -> dict[str, Any]:
    found: dict[str, list[float]] = {"acquire": [], "refused": [], "plain": [], "back": []}
    with EmbeddedPostgres(tcp=True) as server:
        app = web.Application()
        app.router.add_get("/plain", plain)
        app.router.add_get("/answer", answer)
        scope = poolscope.setup(app, server.dsn)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            for outage in range(OUTAGES):
                await asyncio.to_thread(server.stop, "immediate" if outage % 2 else "fast")
                while scope.stats().breaker == "closed" or scope.stats().size - scope.stats().opening:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                found["refused"].append(await per_request(client, "/answer", 503))
                found["plain"].append(await per_request(client, "/plain", 200))
                found["acquire"].append(await per_refusal(scope))
                await asyncio.to_thread(server.start)
                found["back"].append(await first_success(client))
        await runner.cleanup()
    return {name: {"median": statistics.median(runs), "worst": max(runs)} for name, runs in found.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true")
    as_json = options.parse_args().json
    logging.getLogger("aiohttp_poolscope").setLevel(logging.CRITICAL)
    found = asyncio.run(measure())
    if as_json:
        print(json.dumps(found))
        return
    rows = {
        "refused while the breaker is open, over HTTP": ("refused", 1e3, "ms a request"),
        "the same socket, a route without a connection": ("plain", 1e3, "ms a request"),
        "refused, without HTTP": ("acquire", 1e6, "µs a borrow"),
        "first success after the server is ready": ("back", 1e3, "ms"),
    }
    print(f"{'':48}{'median':>9}{'worst':>9}")
    for label, (name, scale, unit) in rows.items():
        print(f"{label:48}{found[name]['median'] * scale:9.2f}{found[name]['worst'] * scale:9.2f} {unit}")


if __name__ == "__main__":
    main()
