"""The database is there and says no: no slot free, no disk, another password (F4)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import until
from tests.kit.load import load
from tests.kit.wire import wired_to

from .promises import PATHS, SHED, dead, kept, more, recovered, warm
from .servers import fill_disk, fill_slots, in_thread, kill_backends

if TYPE_CHECKING:
    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

    from .conftest import Service


async def test_too_many_connections(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """With no slot left the pool serves with what it has; with nothing, it refuses; and takes what becomes free."""
    paths = {"/read": 8.0, "/write": 2.0, "/hold/0.05": 1.0}
    with wired_to(server.dsn) as wire:
        async with service(wire.dsn, direct=server.dsn, minsize=2, maxsize=6) as running:
            await until(lambda: running.scope.stats().idle == 2)
            async with (
                in_thread(fill_slots(server.dsn)) as filler,
                load(running.url, paths=paths, seed=seed) as run,
            ):
                await more(run, 60)
                assert dead(run) == 0
                assert running.scope.stats().size <= 2 + 1
                wire.refuse()
                wire.cut()
                async with asyncio.timeout(10.0):
                    taken = 0
                    while taken < 2:  # the server takes a moment to see that they have ended
                        taken += await asyncio.to_thread(filler.fill)
                wire.accept()
                await until(lambda: "too many clients" in running.pool.opener.problem)
                await more(run, 30, status=503)
                filler.empty()
                first = await recovered(run, time.monotonic(), "too many clients")
                await until(lambda: running.scope.stats().idle > 2)
                await kept(run, running, first.end)


async def test_out_of_disk(server: EmbeddedPostgres, service: Service, seed: int) -> None:
    """What cannot be written is refused with 503, and what only reads goes on; with room again, all is well."""
    paths = {"/read": 1.0, "/write": 1.0, "/transfer": 1.0}
    async with service(server.dsn, maxsize=5) as running, load(running.url, paths=paths, seed=seed) as run:
        await warm(run)
        async with in_thread(fill_disk(server)):
            full = time.monotonic()
            await more(run, 25)
            during = [result for result in run.between(full, time.monotonic()) if result.code != SHED]
        statuses = {path: {result.status for result in during if result.path == path} for path in paths}
        assert statuses == {"/read": {200}, "/write": {503}, "/transfer": {200}}
        freed = time.monotonic()
        await recovered(run, freed, "a full disk")
        await kept(run, running, freed)


@pytest.mark.parametrize("kind", ["function", pytest.param("coroutine", marks=pytest.mark.slow)])
async def test_another_password(server: EmbeddedPostgres, service: Service, seed: int, kind: str) -> None:
    """A password that a callable knows is followed; one that it learns late is an outage until then."""
    known, asked = ["first"], 0

    def password() -> str:
        nonlocal asked
        asked += 1
        if known[0] == "unknown":
            raise RuntimeError("the vault is sealed")
        return known[0]

    async def password_from_afar() -> str:
        await asyncio.sleep(0.01)
        return password()

    def rotate(new: str) -> None:
        server.sql(f"ALTER ROLE app PASSWORD '{new}'")

    server.sql("DROP ROLE IF EXISTS app; CREATE ROLE app LOGIN SUPERUSER PASSWORD 'first'")
    dsn = f"postgresql://app@127.0.0.1:{server.port}/postgres"
    ask = password if kind == "function" else password_from_afar
    async with (
        service(dsn, direct=server.dsn, maxsize=5, password=ask, breaker_failures=3) as running,
        load(running.url, paths=PATHS, seed=seed) as run,
    ):
        await warm(run)

        async def kill() -> float:
            assert await asyncio.to_thread(kill_backends, server.dsn, application_name=running.name) > 0
            return time.monotonic()

        known[0] = "second"
        await asyncio.to_thread(rotate, "second")
        before = asked
        await recovered(run, await kill(), "a new password", count=20)
        assert asked > before
        for wrong, problem in (("second", "authentication failed"), ("unknown", "the password function failed")):
            known[0] = wrong
            await asyncio.to_thread(rotate, "third")
            await kill()
            await until(lambda: running.scope.stats().breaker != "closed")
            assert problem in running.pool.opener.problem
            await more(run, 30, status=503)
            known[0] = "third"
            first = await recovered(run, time.monotonic(), f"a wrong password ({wrong})", count=20)
        await kept(run, running, first.end)
