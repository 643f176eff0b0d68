"""Chance that can be repeated: ``POOLSCOPE_SEED=... pytest tests/load`` (a failure shows the seed it had)."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.conftest import Served
from tests.kit.clients import Socket


@pytest.fixture
def seed() -> int:
    """Seed of this test."""
    chosen = int(os.environ.get("POOLSCOPE_SEED") or random.randrange(1 << 32))
    print(f"POOLSCOPE_SEED={chosen}")
    return chosen


Connect = Callable[[Served, bytes], Awaitable[Socket]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """``reader, writer = await connect(served, data)``: a socket that the test's end closes, if nobody else does."""
    sockets: list[Socket] = []

    async def connected(served: Served, data: bytes) -> Socket:
        sockets.append(await served.raw(data))
        return sockets[-1]

    yield connected
    for _, writer in sockets:
        writer.transport.abort()
