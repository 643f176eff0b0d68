"""A scope that runs without an application: poolscope.open() and scope.running()."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.driver import Driver
from aiohttp_poolscope.web.outside import on_another_run, run_of
from tests.conftest import until

if TYPE_CHECKING:
    from tests.conftest import Audit, Database, Serve


async def test_open(dsn: str, database: Database) -> None:
    """The scope serves inside the block; after it nothing is on the server, and a use says so."""
    async with poolscope.open(dsn, maxsize=2) as scope:
        assert (scope.state, scope.config.maxsize) == ("serving", 2)
        assert await scope.fetchval("SELECT 42") == 42
    assert scope.state == "closed"
    await until(lambda: not database.backends(), "the end of the connections")
    with pytest.raises(poolscope.ShuttingDown):
        await scope.fetchval("SELECT 42")


async def test_a_mistake_in_the_settings_is_raised_by_the_call(dsn: str) -> None:
    """What is wrong is told before anything is entered."""
    with pytest.raises(poolscope.ConfigError, match="maxsize"):
        poolscope.open(dsn, maxsize=0)


async def test_a_scope_that_is_there(dsn: str) -> None:
    """running() opens the pool of a scope whose subscribers are in place, and again in a second run."""
    scope, opened = poolscope.PoolScope(dsn), []
    scope.on_event(opened.append, poolscope.events.Opened)
    for run in (1, 2):
        async with scope.running() as same:
            assert same is scope
            assert await scope.fetchval("SELECT 42") == 42
        assert (scope.state, len(opened)) == ("closed", run)


async def test_no_database(database: Database) -> None:
    """Without a database the block is not entered; the scope can be tried again."""
    scope = poolscope.PoolScope("postgresql://nobody@127.0.0.1:1/app")
    for _ in range(2):
        with pytest.raises(poolscope.DatabaseUnavailable, match="Connection refused"):
            async with scope.running():
                pytest.fail("it was entered")
        assert scope.state == "starting"


async def test_beside_an_application(dsn: str, serve: Serve, audit: Audit) -> None:
    """Inside of another block, or of a running application, the pool is the same, and ends with the last of them."""
    scope = poolscope.PoolScope(dsn)
    app = web.Application()
    scope.setup(app)
    async with scope.running():
        async with serve(app), scope.running():
            assert await scope.fetchval("SELECT 42") == 42
        assert scope.state == "serving"
        assert await scope.fetchval("SELECT 42") == 42
    assert scope.state == "closed"
    assert len(audit.runs) == 1


async def test_an_application_that_ends_inside(dsn: str, serve: Serve) -> None:
    """The shutdown of an application begins no drain while a block needs the scope."""
    scope = poolscope.PoolScope(dsn)
    app = web.Application()
    scope.setup(app)
    app.on_shutdown.append(lambda _: until(lambda: scope.state == "serving", "no drain"))
    async with scope.running():
        async with serve(app):
            pass
        assert scope.state == "serving"


async def test_an_error_inside(dsn: str, database: Database) -> None:
    """What the block raises gets out, and the pool is closed."""
    scope = poolscope.PoolScope(dsn)

    async def block() -> None:
        async with scope.running(), scope.transaction() as tx:
            await tx.execute("CREATE TABLE left_behind (n int)")
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await block()
    assert scope.state == "closed"
    assert database.sql("SELECT to_regclass('left_behind')") == [(None,)]


async def test_a_cancelled_block_waits_for_what_others_hold(dsn: str) -> None:
    """A block that is cancelled drains: statements of other tasks end, within the grace."""
    inside, found = asyncio.Event(), []

    async def other(scope: poolscope.PoolScope) -> None:
        async with scope.acquire() as db:
            inside.set()
            found.append(await db.fetchval("SELECT 42 FROM pg_sleep(0.2)"))

    async def block() -> None:
        async with poolscope.open(dsn) as scope:
            tasks.append(asyncio.create_task(other(scope)))
            await asyncio.Event().wait()

    tasks: list[asyncio.Task[Any]] = []
    task = asyncio.create_task(block())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert found == [42]
    await tasks[0]


@pytest.mark.one_loop
def test_ctrl_c(dsn: str, database: Database) -> None:
    """SIGINT under asyncio.run ends the block: rolled back, closed, and no word but KeyboardInterrupt."""
    program = textwrap.dedent(
        """
        import asyncio, sys
        import aiohttp_poolscope as poolscope

        async def main():
            async with poolscope.open(sys.argv[1], application_name="interrupted") as scope:
                async with scope.transaction() as tx:
                    await tx.execute("CREATE TABLE interrupted (n int)")
                    print("inside", flush=True)
                    await tx.execute("SELECT pg_sleep(60)")

        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, dsn], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert said.splitlines()[-1].startswith("KeyboardInterrupt")
    assert "poolscope" not in [line.split(":")[0] for line in said.splitlines()]
    assert database.sql("SELECT to_regclass('interrupted')") == [(None,)]
    assert database.backends() == []


async def test_on_another_run(make_scope: Any, database: Database) -> None:
    """For the block a scope has a second pool, with numbers of its own; the first keeps its connections and goes on."""
    async with make_scope(minsize=2, maxsize=2, key="db") as scope:
        assert await scope.fetchval("SELECT 42") == 42
        before, pids = scope.stats(), set(database.backends("pid"))
        config = replace(scope.config, minsize=1, maxsize=1, application_name="another")
        async with on_another_run(scope, config, Driver(config)) as run:
            assert run_of(scope) is run
            assert (scope.state, scope.stats().lent, scope.stats().maxsize) == ("serving", 0, 1)
            assert await scope.fetchval("SHOW application_name") == "another"
            assert pids < set(database.backends("pid"))
        assert (run.ended, scope.state) == (True, "serving")
        assert scope.stats() == before
        assert await scope.fetchval("SHOW application_name") != "another"
        await until(lambda: set(database.backends("pid")) == pids, "the end of the other")
        with pytest.raises(poolscope.DatabaseUnavailable):
            async with on_another_run(scope, nowhere := nobody(config), Driver(nowhere)):
                pytest.fail("it was entered")
        assert await scope.fetchval("SELECT 42") == 42


def nobody(config: poolscope.PoolConfig) -> poolscope.PoolConfig:
    return replace(config, hosts=poolscope.PoolConfig.build("postgresql://127.0.0.1:1/app").hosts)


@pytest.mark.parametrize("again", [False, True])
async def test_the_end_inside_of_another_run(dsn: str, database: Database, *, again: bool) -> None:
    """A scope that ends inside the block leaves nothing: both of its pools are closed. It may be running again."""
    scope = poolscope.PoolScope(dsn)
    with pytest.raises(poolscope.PoolScopeError, match="is not started"):
        async with on_another_run(scope, scope.config, Driver(scope.config)):
            pytest.fail("it was entered")
    running, other, third = (contextlib.AsyncExitStack() for _ in range(3))
    async with running, other, third:
        await running.enter_async_context(scope.running())
        await other.enter_async_context(on_another_run(scope, scope.config, Driver(scope.config)))
        await running.aclose()
        assert scope.state == "closed"
        if again:
            await third.enter_async_context(scope.running())
        await other.aclose()
        assert scope.state == ("serving" if again else "closed")
    await until(lambda: not database.backends(), "the end of the connections")
