"""Load by wrk, a program in C that takes far less of the processor than any client in Python would."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.study import Bench, Figures

FIGURES = Path(__file__).with_name("figures.lua")

MANY = 1000
"""Clients from which on one thread is not enough."""

LATE = 20.0
"""Seconds that wrk may take beyond its time, on a machine that is busy."""

WARM_UP = 25
"""Requests of each of eight clients that every path of a service gets before it is measured."""


class RunFailed(RuntimeError):
    """Requests failed: what the others took is no figure."""


def program() -> str:
    """Where wrk is."""
    found = shutil.which("wrk")
    if found is None:
        raise RuntimeError("the benchmark needs wrk; on Debian and Ubuntu: apt-get install wrk")
    return found


def version() -> str:
    """What wrk calls itself."""
    import subprocess

    said = subprocess.run([program(), "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition(" [")[0].removeprefix("wrk ").strip()


async def load(url: str, *, clients: int, seconds: int, timeout: float = 5.0) -> Figures:
    """Keep ``clients`` keep-alive connections busy for whole ``seconds``; RunFailed unless all goes well.

    The figures: ``rate`` in 1/s; ``mean``, ``p50``, ``p99`` and ``longest`` in seconds; ``errors``, which is 0. An
    error would be a request that did less work: a figure with errors in it is none. A request that takes longer than
    ``timeout`` seconds is an error.
    """
    threads = 2 if clients >= MANY else 1
    options = (f"-t{threads}", f"-c{clients}", f"-d{seconds}s", f"--timeout={timeout:.0f}s", f"-s{FIGURES}")
    wrk = await asyncio.create_subprocess_exec(
        program(), *options, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds + timeout + LATE):
            said = (await wrk.communicate())[0].decode()
    finally:
        if wrk.returncode is None:
            wrk.kill()
            await wrk.wait()
    if wrk.returncode:
        raise RunFailed(f"wrk failed with {url}: {said.strip()}")
    return checked(said, url)


def checked(said: str, url: str) -> Figures:
    """The figures that wrk has printed, if there were no errors."""
    figures: Figures = json.loads(said.splitlines()[-1])
    if figures["errors"] or not figures["rate"]:
        raise RunFailed(f"{figures['errors']:.0f} errors at {figures['rate']:.0f} requests/s, {url}:\n{said.strip()}")
    return figures


async def measure(
    bench: Bench, url: str, *, study: str, case: str, candidate: str, number: int, **options: Any
) -> None:
    """Add what a run gives. One that fails is told and gives nothing; the other runs are still worth their time."""
    run = f"{study}: {case}: {candidate}, round {number + 1} of {bench.rounds}"
    bench.tell(run)
    try:
        figures = await load(url, **options)
    except RunFailed as error:
        bench.notes.setdefault("failed", {})[run] = str(error).splitlines()[0]
    else:
        bench.add(study, case, candidate, number, figures)


async def warm_up(url: str, paths: Iterable[str], *, clients: int = 8) -> dict[str, str]:
    """Ask a service for each path, often enough that Python has specialized its code; what it answered, by path."""
    answers = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients), raise_for_status=True) as session:

        async def ask(path: str) -> None:
            for _ in range(WARM_UP):
                async with session.get(url + path) as response:
                    answers[path] = await response.text()

        for path in paths:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(ask(path))
    return answers
