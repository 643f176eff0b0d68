"""The application under load, and the audit at its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg2
from aiohttp import ClientSession, web
from yarl import URL

import aiohttp_poolscope as poolscope
from tests.conftest import until
from tests.kit.audit import left, quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp_poolscope.pool import Lifecycle, Pool
    from tests.kit.load import Run

ACCOUNTS, BALANCE = 10, 1000

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS writes (id bigint PRIMARY KEY);
CREATE TABLE IF NOT EXISTS accounts (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO accounts SELECT id, {BALANCE} FROM generate_series(0, {ACCOUNTS - 1}) AS id ON CONFLICT DO NOTHING;
"""
"""The tables of the application. Harmless when repeated."""

QUIET = 10.0
"""Seconds within which everything has come back once the load has ended."""

_numbers = itertools.count()


def application(scope: poolscope.PoolScope) -> web.Application:
    """An application whose answers are 200 only if the database has done what was asked."""

    async def read(request: web.Request) -> web.Response:
        return web.Response(text=str(await request[scope.key].fetchval("SELECT 42")))

    async def write(request: web.Request) -> web.Response:
        async with request[scope.key].transaction() as tx:
            await tx.execute("INSERT INTO writes VALUES (%s)", (request.query["id"],))
        return web.Response(text="committed")

    async def transfer(request: web.Request) -> web.Response:
        amount = random.randint(-5, 5)
        lower, upper = sorted(random.sample(range(ACCOUNTS), 2))  # in one order: no deadlocks
        async with request[scope.key].transaction() as tx:
            await tx.execute("UPDATE accounts SET balance = balance - %s WHERE id = %s", (amount, lower))
            await tx.execute("UPDATE accounts SET balance = balance + %s WHERE id = %s", (amount, upper))
        return web.Response(text="committed")

    async def slow(request: web.Request) -> web.Response:
        await request[scope.key].execute("SELECT pg_sleep(%s)", (request.match_info["seconds"],))
        return web.Response(text="slept")

    async def hold(request: web.Request) -> web.Response:
        async with request[scope.key].acquire():
            await asyncio.sleep(float(request.match_info["seconds"]))
        return web.Response(text="held")

    async def pid(request: web.Request) -> web.Response:
        return web.Response(text=str(await request[scope.key].fetchval("SELECT pg_backend_pid()")))

    app = web.Application()
    scope.setup(app)
    for handler in (read, write, transfer, pid):
        app.router.add_get(f"/{handler.__name__}", handler)
    for handler in (slow, hold):
        app.router.add_get(f"/{handler.__name__}/{{seconds}}", handler)
    return app


@dataclass
class Running:
    """The application while it runs. ``direct`` reaches the database past whatever the scope goes through."""

    scope: poolscope.PoolScope
    runner: web.AppRunner
    url: URL
    client: ClientSession
    direct: str

    @property
    def run(self) -> Lifecycle:
        """To look inside."""
        assert self.scope._run is not None
        return self.scope._run

    @property
    def pool(self) -> Pool:
        """Likewise."""
        return self.run.pool

    @property
    def name(self) -> str:
        """The application_name of its backends; no other service has it."""
        assert self.scope.config.application_name is not None
        return self.scope.config.application_name

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text."""
        async with self.client.get(self.url / path.lstrip("/")) as response:
            return response.status, await response.text()

    async def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """One statement on a connection of its own, in a thread: a database that is away does not stop the loop."""
        return await asyncio.to_thread(_sql, self.direct, statement, params)

    async def backends(self) -> list[tuple[Any, ...]]:
        """Pid and state of the pool's own backends."""
        return await self.sql("SELECT pid, state FROM pg_stat_activity WHERE application_name = %s", self.name)

    async def writes_lost(self, run: Run) -> list[int]:
        """The ids that ``/write`` has answered 200 and the table does not have."""
        there = {number for (number,) in await self.sql("SELECT id FROM writes")}
        return [
            result.id
            for result in run.results
            if (result.path, result.status) == ("/write", 200) and result.id not in there
        ]

    async def writes_denied(self, run: Run) -> list[int]:
        """The ids of which ``/write`` has said "not done, try again", and that the table has."""
        there = {number for (number,) in await self.sql("SELECT id FROM writes")}
        denied = [result.id for result in run.results if (result.path, result.status) == ("/write", 503)]
        return [number for number in denied if number in there]

    async def total(self) -> int:
        """The sum of the accounts, which no transfer changes."""
        ((total,),) = await self.sql("SELECT sum(balance)::bigint FROM accounts")
        return int(total)

    async def audit(self, patience: float = QUIET) -> None:
        """What must hold once the load has ended and the database is back."""
        run, pool, scope = self.run, self.pool, self.scope
        await until(lambda: quiet(run), "quiet", patience)
        assert left(run) == []
        async with asyncio.timeout(2.0):
            await scope.check()
        await until(
            lambda: {task.get_name() for task in pool.tasks} == {f"poolscope {scope.config.key}: housekeeper"},
            "only a housekeeper",
        )
        await self._backends_are(
            lambda found: len(found) <= pool.gate.maxsize and {state for _, state in found} <= {"idle"}
        )
        assert await self.total() == ACCOUNTS * BALANCE

    async def gone(self) -> None:
        """After the cleanup: none of ours in the server."""
        await self._backends_are(lambda found: not found)

    async def _backends_are(self, condition: Any) -> None:
        end = asyncio.get_running_loop().time() + QUIET
        while not condition(found := await self.backends()):
            assert asyncio.get_running_loop().time() < end, found
            await asyncio.sleep(0.02)


def _sql(dsn: str, statement: str, params: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    with contextlib.closing(psycopg2.connect(dsn, connect_timeout=5)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []


@contextlib.asynccontextmanager
async def serving(
    dsn: str, *, direct: str | None = None, cancellation: bool = False, **settings: Any
) -> AsyncIterator[Running]:
    """The application on a real socket, in this loop; audited when the block ends, and after the cleanup again."""
    settings.setdefault("application_name", f"faults-{os.getpid()}-{next(_numbers)}")
    scope = poolscope.PoolScope(dsn, **settings)
    runner = web.AppRunner(application(scope), access_log=None, handler_cancellation=cancellation, shutdown_timeout=5.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}")
        async with ClientSession() as client:
            running = Running(scope, runner, url, client, direct or dsn)
            yield running
        await running.audit()
    finally:
        await runner.cleanup()
    await running.gone()
