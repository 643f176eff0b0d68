"""The soak's clients, in processes of their own; those that leave are made here.

``python -m tests.faults.soak_clients URL --rate 15 --seed 7``: clients that leave at the worst moments, one after
the other, until standard input ends; a line there with a number is a storm of so many at once. It says ``over`` when
a storm is over, and at the end how many have left.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random

from tests.kit.child import BEGUN, parent
from tests.kit.clients import MOMENTS, ask_and_leave

PATHS = ("/read", "/write", "/transfer", "/stream", "/slow/0.3", "/slow/2", "/hold/0.3")

AT_ONCE = 50
"""Clients of a storm that are there at one time."""


class Leavers:
    """Clients that leave."""

    def __init__(self, port: int, seed: int) -> None:
        self.left = 0
        self._port = port
        self._rng = random.Random(seed)
        # Below zero, where no client that waits has one; not the number of a process that was here before.
        self._ids = itertools.count(-(os.getpid() << 40), -1)

    async def leave(self) -> None:
        """One client."""
        path = self._rng.choice(PATHS)
        self.left += 1
        await ask_and_leave(self._port, f"{path}?id={next(self._ids)}", self._rng.choice(MOMENTS), self._rng)

    async def trickle(self, rate: float) -> None:
        """``rate`` a second, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._rng.expovariate(rate))
                group.create_task(self.leave())

    async def storm(self, count: int) -> None:
        """So many, as fast as it goes."""

        async def some() -> None:
            for _ in range(count // AT_ONCE):
                await self.leave()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())


async def main(arguments: argparse.Namespace) -> None:
    """Leave, until there is nobody to leave."""
    leavers = Leavers(int(arguments.url.rpartition(":")[2]), arguments.seed)
    commands = await parent()
    trickle = asyncio.create_task(leavers.trickle(arguments.rate))
    print(BEGUN, end="", flush=True)
    async for line in commands:
        await leavers.storm(int(line))
        print("over", flush=True)
    trickle.cancel()
    await asyncio.wait((trickle,))
    print(leavers.left, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="http://127.0.0.1:PORT")
    parser.add_argument("--rate", type=float, default=15.0, help="clients a second")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(main(parser.parse_args()))
