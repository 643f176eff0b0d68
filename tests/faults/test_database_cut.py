"""Connections that end: cut, torn in the middle of an answer, their backends killed (F1)."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest

from aiohttp_poolscope import DatabaseUnavailable
from tests.conftest import until
from tests.kit.load import load
from tests.kit.wire import ask, driving, linked, wired_to

from .promises import PATHS, dead, kept, more, recovered, warm
from .servers import kill_backends

if TYPE_CHECKING:
    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

    from .conftest import Service


@pytest.mark.parametrize("fin", [True, False], ids=["FIN", "RST"])
async def test_cut(server: EmbeddedPostgres, service: Service, seed: int, fin: bool) -> None:
    """Connections that end under their requests cost each of them a 503, and the next ones nothing."""
    with wired_to(server.dsn) as wire:
        async with (
            service(wire.dsn, direct=server.dsn, maxsize=5) as running,
            load(running.url, paths=PATHS, seed=seed) as run,
        ):
            await warm(run)
            for _ in range(3):
                wire.cut(fin=fin)
                first = await recovered(run, time.monotonic(), f"a cut by {'FIN' if fin else 'RST'}", count=20)
            await kept(run, running, first.end)
            assert dead(run) <= 3 * 5


async def test_torn(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """A message torn anywhere costs the one request that waited for it a 503, and nobody else."""
    rng, times = random.Random(seed), 12
    with wired_to(server.dsn) as wire:
        async with (
            service(wire.dsn, direct=server.dsn, maxsize=5) as running,
            load(running.url, paths=PATHS, seed=seed) as run,
        ):
            await warm(run)
            for number in range(times):
                wire.tear(rng.randrange(18), fin=rng.random() < 0.5)  # the shortest answer, to BEGIN, has 17 bytes
                await until(lambda number=number: wire.torn > number)
                first = await run.success_after(time.monotonic())
            await kept(run, running, first.end)
            assert 0 < dead(run) <= times


@pytest.mark.parametrize("after", [3, 30])
async def test_a_reset_behind_half_an_answer(server: EmbeddedPostgres, after: int) -> None:
    """Half an answer and a reset that arrive together end the statement at once, on every loop.

    uvloop tells of a reset once, and then watches the descriptor no more.
    """
    with wired_to(server.dsn) as wire:
        async with linked(wire.dsn) as link:
            assert await ask(link, "SELECT 42") == 42
            wire.tear(after, fin=False)
            asyncio.get_running_loop().call_soon(time.sleep, 0.2)
            async with asyncio.timeout(5.0):
                with pytest.raises(DatabaseUnavailable):
                    await ask(link, "SELECT 42")


@pytest.mark.parametrize("after", [0, 3, 24])
async def test_a_reset_while_it_connects(server: EmbeddedPostgres, after: int) -> None:
    """Likewise a connect, which ends long before its time-out. 24: the whole of the server's first message."""

    async def be_busy() -> None:
        while True:  # what the server says and its reset are there together whenever the driver looks
            time.sleep(0.03)  # noqa: ASYNC251
            await asyncio.sleep(0)

    with wired_to(server.dsn) as wire:
        async with driving(wire.dsn, connect_timeout=20) as driver:
            wire.tear(after, fin=False)
            busy = asyncio.create_task(be_busy())
            try:
                async with asyncio.timeout(10.0):
                    with pytest.raises(DatabaseUnavailable):
                        await driver.open()
            finally:
                busy.cancel()


async def test_backends_killed(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """A backend that is killed costs at most the request that has it a 503: idle nobody, in a query that one."""
    paths = {"/read": 6.0, "/write": 2.0, "/transfer": 2.0, "/slow/0.1": 2.0}
    async with service(server.dsn, maxsize=6) as running, load(running.url, paths=paths, seed=seed) as run:
        await warm(run)
        killed = 0
        named = {"application_name": running.name}
        for state in ("idle", "active") * 3:
            async with asyncio.timeout(10.0):  # until there is one in this state
                while not (found := await asyncio.to_thread(kill_backends, server.dsn, **named, state=state)):
                    pass
            killed += found
            after = time.monotonic()
            await more(run, 25, after=after)
        await kept(run, running, after)
        assert dead(run) <= killed


async def test_idle_backends_killed(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """Idle connections whose backends were killed are lent to nobody: no request notices."""
    async with service(server.dsn, minsize=4, maxsize=4) as running:
        await until(lambda: running.scope.stats().idle == 4)
        assert await asyncio.to_thread(kill_backends, server.dsn, application_name=running.name, state="idle") == 4
        async with load(running.url, paths=PATHS, seed=seed) as run:
            await more(run, 30)
            await kept(run, running, 0.0)
        assert dead(run) == 0
