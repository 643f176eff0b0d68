"""A service in a process of its own.

Every candidate (``candidates.py``) offers the same routes::

    /one                  SELECT 1
    /rows                 three columns, 20 rows, as JSON
    /transfer             two UPDATEs in a transaction
    /sleep?seconds=0.01   SELECT pg_sleep(...)
    /nothing              a connection is attached, no statement runs
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Loop = Literal["asyncio", "uvloop"]

START_LIMIT, STOP_LIMIT = 20.0, 10.0


@dataclass
class Service:
    """A service that answers."""

    process: asyncio.subprocess.Process
    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def running(candidate: str, dsn: str, *, loop: Loop = "asyncio", **settings: Any) -> AsyncIterator[Service]:
    """Start ``candidate`` with ``settings``, and end it with the block."""
    command = [sys.executable, "-m", __name__, candidate, dsn, "--loop", loop, "--settings", json.dumps(settings)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_LIMIT):
            line = await process.stdout.readline()
        if not line.startswith(b"ready "):
            raise RuntimeError(f"the service {candidate!r} did not start")
        yield Service(process, int(line.split()[1]))
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await process.wait()
        except TimeoutError:  # by hand it may never end: one of the reasons for this package
            process.kill()
            await process.wait()


async def serve(candidate: str, dsn: str, settings: dict[str, Any]) -> None:
    """What the process does."""
    from aiohttp import web

    from .candidates import CANDIDATES, LIMITS, OBSERVED

    # An overload is what is asked for here; its warnings would break up the progress display.
    logging.getLogger("aiohttp_poolscope").setLevel(logging.ERROR)
    ended = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, ended.set)
    runner = web.AppRunner(
        (CANDIDATES | LIMITS | OBSERVED)[candidate](dsn, settings), access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)  # its backlog is that of run_app
    await site.start()
    print(f"ready {runner.addresses[0][1]}", flush=True)
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidate")
    parser.add_argument("dsn")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--settings", type=json.loads, default={})
    arguments = parser.parse_args()
    if arguments.loop == "uvloop":
        import uvloop as runner_of
    else:
        runner_of = asyncio  # type: ignore[assignment]
    runner_of.run(serve(arguments.candidate, arguments.dsn, arguments.settings))
