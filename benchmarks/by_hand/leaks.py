"""What leak detection costs for each lease: none, `leak_threshold`, and `stacks=True` under a stack of 20 frames.

    python -m benchmarks.by_hand.leaks [--json]

A borrow and a return without a statement, by `scope.acquire()`; the pools take turns in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import time

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

LEASES = 2000
ROUNDS = 15
FRAMES = 20

KINDS = {
    "no leak detection": {"leak_threshold": None},
    "leak_threshold=30": {"leak_threshold": 30.0},
    "leak_threshold=30, stacks=True": {"leak_threshold": 30.0, "stacks": True},
}


async def deep(scope: poolscope.PoolScope, frames: int) -> float:
    """Seconds a lease, that many frames down."""
    if frames:
        return await deep(scope, frames - 1)
    begun = time.perf_counter()
    for _ in range(LEASES):
        (await scope.acquire()).release()
    return (time.perf_counter() - begun) / LEASES


async def measure() -> dict[str, list[float]]:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with EmbeddedPostgres() as server:
        async with contextlib.AsyncExitStack() as stack:
            scopes = {
                kind: await stack.enter_async_context(poolscope.open(server.dsn, **settings))
                for kind, settings in KINDS.items()
            }
            for _ in range(ROUNDS):
                for kind, scope in scopes.items():
                    found[kind].append(await deep(scope, FRAMES))
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true")
    as_json = options.parse_args().json
    found = asyncio.run(measure())
    if as_json:
        print(json.dumps(found))
        return
    print(f"{'':34}{'median':>8}{'fastest':>9}  µs a lease")
    for kind, runs in found.items():
        print(f"{kind:34}{statistics.median(runs) * 1e6:8.2f}{min(runs) * 1e6:9.2f}")


if __name__ == "__main__":
    main()
