"""`demo --once`: the service in a process of its own, clients of every kind beside it, and an audit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import sys
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector

import aiohttp_poolscope as poolscope

from .aborts import deserters
from .audit import Audit, Watch, print_tallies
from .load import Customers, Progress, Tallies, crowd
from .service import STATEMENT_TIMEOUT

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

__all__ = ("once",)

_CUSTOMERS = 32
_DESERTERS = 36
_STAYING = 4
"""Clients that wait for their answers beside those who leave."""
_START_LIMIT = 20.0
_STOP_LIMIT = 10.0
_QUIET_LIMIT = 5.0
"""Seconds after the last client has left: their statements may still run, none for longer than 0.3 s."""
_AT_ONCE = 0.5
"""Seconds that a health check may take; it needs a few milliseconds."""


async def once(dsn: str, args: argparse.Namespace) -> bool:
    """Run everything; whether all of it was as it must be."""
    began = time.monotonic()
    name = f"poolscope-demo-{secrets.token_hex(4)}"
    audit, tallies = Audit(), Tallies()
    chance = random.Random(args.seed)  # noqa: S311  no secret
    async with (
        poolscope.open(dsn, maxsize=1, application_name=f"{name}-observer") as observer,
        _service(dsn, args, name) as (process, port),
    ):
        url = f"http://{args.host}:{port}"
        print(f"Service: {url}/, process {process.pid}. Seed: {args.seed}\n")
        async with ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=30)) as session:
            watch = Watch(observer, name, session, url)
            customers = Customers(session, url, chance, tallies)
            watching = asyncio.create_task(watch.run())
            try:
                await _load(args, port, customers, chance, tallies)
                quiet = await watch.quiet(_QUIET_LIMIT)
                await _slow_query(session, url, audit)
                await _health_check(session, url, audit)
            finally:
                failed = await _ended(watching)
            if failed:
                audit.check("observation", failed, ok=False)
            audit.check_answers(tallies, args.aborts)
            audit.check_pool(await watch.pool(), watch, quiet=quiet)
            await audit.check_backends(watch, args.maxsize)
            await audit.check_books(observer, tallies, customers.receipts)
        await _stop(process, watch, audit)
    print_tallies(tallies)
    audit.show()
    verdict = "Everything came back" if audit.passed else "Something is wrong, see BAD above"
    print(f"\n{verdict}; {time.monotonic() - began:.0f} s.")
    return audit.passed


async def _load(
    args: argparse.Namespace, port: int, customers: Customers, chance: random.Random, tallies: Tallies
) -> None:
    visits = customers.visits(max(args.aborts // 2, _CUSTOMERS))
    await crowd(visits, _CUSTOMERS, Progress("clients that wait for their answers", len(visits)))
    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_STAYING):
            tasks.create_task(customers.keep_coming(over))
        leaving = deserters(args.aborts, args.host, port, chance, tallies)
        await crowd(leaving, _DESERTERS, Progress("clients that leave", len(leaving)))
        over.set()


async def _slow_query(session: ClientSession, url: str, audit: Audit) -> None:
    begun = time.monotonic()
    async with session.get(f"{url}/report?seconds={4 * STATEMENT_TIMEOUT:g}") as response:
        await response.read()
    took = time.monotonic() - begun
    text = f"{response.status} after {took:.2f} s, the statement time-out is {STATEMENT_TIMEOUT:g} s"
    audit.check("slow query", text, ok=response.status == HTTPStatus.GATEWAY_TIMEOUT and took < STATEMENT_TIMEOUT + 2)


async def _health_check(session: ClientSession, url: str, audit: Audit) -> None:
    begun = time.monotonic()
    async with session.get(f"{url}/healthz") as response:
        await response.read()
    took = time.monotonic() - begun
    audit.check("health check", f"{response.status} in {took * 1000:.1f} ms", ok=response.ok and took < _AT_ONCE)


async def _stop(process: asyncio.subprocess.Process, watch: Watch, audit: Audit) -> None:
    begun = time.monotonic()
    process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_LIMIT):
            await process.wait()
    took = time.monotonic() - begun
    audit.check("SIGTERM", f"exit code {process.returncode} after {took:.2f} s", ok=process.returncode == 0)
    left = (await watch.backends())[0]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):  # a session that has been told to end takes a moment
            while left:
                await asyncio.sleep(0.01)
                left = (await watch.backends())[0]
    audit.check("backends left", f"{left}", ok=left == 0)


@contextlib.asynccontextmanager
async def _service(
    dsn: str, args: argparse.Namespace, name: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The service in a process of its own. It ends with this one, whatever happens to this one."""
    settings = {"maxsize": args.maxsize, "application_name": name}
    given = {"dsn": dsn, "host": args.host, "port": args.port, "settings": settings}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(f"-W{option}" for option in sys.warnoptions),
        *("-m", "aiohttp_poolscope.cli.demo.service"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for this process, which will tell the other
    )
    try:
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise OSError("the service has no pipes")
        stdin.write(json.dumps(given).encode() + b"\n")  # not on its command line, where others could read it
        async with asyncio.timeout(_START_LIMIT):
            line = await stdout.readline()
        if not line:
            raise OSError("the service did not start")
        yield process, int(json.loads(line)["port"])
    finally:
        if process.returncode is None:
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.communicate()


async def _ended(task: asyncio.Task[Any]) -> str | None:
    """End a task; what went wrong in it, if something did."""
    task.cancel()
    await asyncio.wait([task])
    error = None if task.cancelled() else task.exception()
    return None if error is None else f"failed: {error!r}"
