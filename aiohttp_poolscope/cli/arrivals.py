"""Requests as they come in real life: at random moments, whether or not those before them were answered."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

__all__ = ("arrivals",)


async def arrivals(rate: float, chance: random.Random, seconds: float = math.inf) -> AsyncIterator[float]:
    """Wait for one arrival after the other, ``rate`` a second on average: the loop's time at which each was due."""
    loop = asyncio.get_running_loop()
    begun = due = loop.time()
    while (due := due + chance.expovariate(rate)) < begun + seconds:
        await asyncio.sleep(max(0.0, due - loop.time()))
        yield due
