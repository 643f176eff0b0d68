"""Clients in a process of their own: the test's loop is the service's, and must not slow them, nor they it.

A child says ``begun``, then a line for whatever its parent should know. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROOT = Path(__file__).parents[2]

BEGUN = "begun\n"


class Child:
    """A child that runs."""

    def __init__(self, process: asyncio.subprocess.Process, hear: Callable[[bytes], None]) -> None:
        self._process = process
        self._reading = asyncio.create_task(self._read(hear))

    @property
    def ended(self) -> bool:
        """Whether it has said its last."""
        return self._reading.done()

    def tell(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def stop(self) -> None:
        """Let it come to its end, and wait for that. Harmless when repeated."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reading
        assert await self._process.wait() == 0

    async def _read(self, hear: Callable[[bytes], None]) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            hear(line)


@contextlib.asynccontextmanager
async def child(module: str, *arguments: object, hear: Callable[[bytes], None]) -> AsyncIterator[Child]:
    """A Python module as a child until the block ends. ``hear`` gets its lines.

    In a session of its own: a Ctrl-C is for whoever started all this, who then ends the child.
    """
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", module, *map(str, arguments))
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == BEGUN.encode()
        running = Child(process, hear)
        try:
            yield running
        finally:
            await running.stop()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def parent() -> asyncio.StreamReader:
    """In the child: the lines from its parent, until there is nobody to tell."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # it may have many clients
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    return lines
