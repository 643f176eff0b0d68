"""The soak's clients, in processes of their own; those that leave are made here.

``python -m tests.faults.soak_clients URL --rate 15 --seed 7``: clients that leave at the worst moments, one after
the other, until standard input ends; a line there with a number is a storm of so many at once. It says ``over`` when
a storm is over, and at the end how many have left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.load.clients import MOMENTS, ask_and_leave

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PATHS = ("/read", "/write", "/transfer", "/stream", "/slow/0.3", "/slow/2", "/hold/0.3")

AT_ONCE = 50
"""Clients of a storm that are there at one time."""

BEGUN = b"begun\n"


@contextlib.asynccontextmanager
async def child(
    module: str, *arguments: object, hear: Callable[[bytes], None]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python module that runs until its standard input ends. ``hear`` gets its lines.

    In a session of its own: a Ctrl-C is for whoever reads the table, and it is he who ends the clients.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *map(str, arguments)),
        stdin=pipe,
        stdout=pipe,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == BEGUN
        reading = asyncio.create_task(_read(process.stdout, hear))
        try:
            yield process
        finally:
            process.stdin.close()
            await reading
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _read(lines: asyncio.StreamReader, hear: Callable[[bytes], None]) -> None:
    async for line in lines:
        hear(line)


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
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    trickle = asyncio.create_task(leavers.trickle(arguments.rate))
    sys.stdout.buffer.write(BEGUN)
    sys.stdout.flush()
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
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(parser.parse_args()))
