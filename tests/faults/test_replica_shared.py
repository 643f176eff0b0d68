"""Two scopes that read from one replica: each request falls back to the scope it asked, whoever else waits there."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.conftest import until
from tests.kit.wire import Wire, wired_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.conftest import Database, Serve, Served

ROLES = ("shared_app", "shared_admin")
EACH = 6
"""Requests of each scope that wait at the replica."""


@pytest.fixture
def roles(database: Database) -> Iterator[None]:
    """Two roles that may connect."""
    for role in ROLES:
        database.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    yield
    database.kill()
    for role in ROLES:
        database.sql(f"DROP ROLE {role}")


@dataclass
class Shared:
    """Scopes ``app`` and ``admin``, each in an application of its own or both in one; the replica is in the first."""

    scopes: dict[str, poolscope.PoolScope]
    replica: poolscope.PoolScope
    wire: Wire
    served: dict[str, Served]

    async def who(self, role: str) -> str:
        """Which role answers a request to the scope of this one; or the status."""
        status, text = await self.served[role].get(f"/{role}")
        return text if status == 200 else str(status)

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator[tuple[poolscope.ScopedConnection, list[asyncio.Task[str]]]]:
        """Requests of both wait at the replica, whose only connection is taken."""
        async with self.replica.acquire() as held:
            asked = [asyncio.create_task(self.who(role)) for _ in range(EACH) for role in ROLES]
            await until(lambda: self.replica.stats().waiting == 2 * EACH, "requests that wait at the replica")
            yield held, asked


def scope_of(dsn: str, role: str, **settings: Any) -> poolscope.PoolScope:
    def is_for_another(request: web.Request) -> bool:  # it would borrow for a handler that does not ask it
        return request.path != f"/{role}"

    return poolscope.PoolScope(dsn, user=role, password="secret", key=role, skip=is_for_another, **settings)


def handler_of(role: str) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=str(await request[role].fetchval("SELECT current_user")))

    return poolscope.replica(handler)


@contextlib.asynccontextmanager
async def shared(
    dsn: str, serve: Serve, *, apart: bool, acquire: str, acquire_timeout: float = 5.0
) -> AsyncIterator[Shared]:
    settings: dict[str, Any] = {"maxsize": 5, "acquire": acquire, "max_waiting": 100, "queue_target": None}
    scopes = {role: scope_of(dsn, role, **settings) for role in ROLES}
    with wired_to(dsn) as wire:
        quick: dict[str, Any] = {"breaker_failures": 1, "connect_timeout": 1.0, "acquire_timeout": acquire_timeout}
        replica = poolscope.PoolScope(
            wire.dsn, key="replica", readonly=True, maxsize=1, max_waiting=100, queue_target=None, **quick
        )
        async with contextlib.AsyncExitStack() as stack:
            apps = [web.Application() for _ in (ROLES if apart else ROLES[:1])]
            replica.setup(apps[0])
            for number, (role, scope) in enumerate(scopes.items()):
                app = apps[number % len(apps)]
                scope.setup(app)
                scope.read_from(replica)
                app.router.add_get(f"/{role}", handler_of(role))
            served = [await stack.enter_async_context(serve(app)) for app in apps]
            each = {role: served[number % len(served)] for number, role in enumerate(ROLES)}
            yield Shared(scopes, replica, wire, each)


@pytest.mark.parametrize("apart", [False, True], ids=["one application", "two"])
@pytest.mark.parametrize("acquire", ["eager", "lazy"])
async def test_the_replica_dies_while_both_wait(
    dsn: str, roles: None, serve: Serve, acquire: str, *, apart: bool
) -> None:
    """Whoever waits at a replica that dies is served by the scope it asked, in the role of that scope."""
    async with shared(dsn, serve, apart=apart, acquire=acquire) as running:
        assert await running.who(ROLES[0]) not in ROLES  # the replica's own role: it is asked
        async with running.waiting() as (held, asked):
            running.wire.refuse()
            running.wire.cut()
            await until(lambda: held.closed, "the end of the replica's connection")
        answers = Counter(await asyncio.gather(*asked))
        assert answers == dict.fromkeys(ROLES, EACH)
        for role in ROLES * 2:
            assert await running.who(role) == role
        running.wire.accept()


@pytest.mark.parametrize("acquire", ["eager", "lazy"])
async def test_a_replica_that_is_only_busy(dsn: str, roles: None, serve: Serve, acquire: str) -> None:
    """Its load is not for the primary: whoever waits there for too long is refused."""
    async with shared(dsn, serve, apart=True, acquire=acquire, acquire_timeout=0.1) as running:
        async with running.replica.acquire():
            assert [await running.who(role) for role in ROLES] == ["503", "503"]
        assert await running.who(ROLES[0]) not in ROLES


@pytest.mark.parametrize("acquire", ["eager", "lazy"])
async def test_the_replica_ends_while_another_application_reads_from_it(
    dsn: str, roles: None, serve: Serve, acquire: str
) -> None:
    """The end of the replica's application refuses nobody of another one: they are served by their own scope."""
    async with shared(dsn, serve, apart=True, acquire=acquire) as running:
        async with running.waiting() as (_, asked):
            running.replica.begin_drain()
            answers = Counter(await asyncio.gather(*asked))
        assert answers == dict.fromkeys(ROLES, EACH)


async def test_a_drain_waits_for_the_requests_of_every_scope(dsn: str, roles: None, serve: Serve) -> None:
    """A replica that ends waits for all requests that may still ask it, whichever scope sent a request last."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    @poolscope.replica
    @poolscope.lazy
    async def handler(request: web.Request) -> web.Response:
        first = await request[ROLES[0]].fetchval("SELECT current_user")
        request[ROLES[0]].release()
        inside.set()
        await go_on.wait()
        return web.Response(text=f"{first} {await request[ROLES[0]].fetchval('SELECT current_user')}")

    async with shared(dsn, serve, apart=True, acquire="lazy") as running:
        app = web.Application()
        scope = poolscope.PoolScope(dsn, user=ROLES[0], password="secret", key=ROLES[0])
        scope.setup(app)
        scope.read_from(running.replica)
        app.router.add_get("/", handler)
        async with serve(app) as served:
            asked = asyncio.create_task(served.get("/"))
            await inside.wait()
            assert await running.who(ROLES[1]) not in ROLES
            replica = running.replica._run
            assert replica is not None
            assert replica.pool.attached == 1
            running.replica.begin_drain()
            await asyncio.sleep(0.1)  # five looks of the drain: it would have closed the pool by now
            assert (running.replica.state, running.replica.stats().size) == ("draining", 1)
            go_on.set()
            status, text = await asked
            assert status == 200
            first, _, then = text.partition(" ")
            assert first not in ROLES
            assert then == first
            assert replica.pool.attached == 0  # and so it ends now


async def test_the_same_key_inside_reads_for_itself(dsn: str, roles: None, serve: Serve) -> None:
    """A sub-application's scope under the same key falls back to itself, though both read from one replica."""
    settings: dict[str, Any] = {"password": "secret", "acquire": "lazy"}
    with wired_to(dsn) as wire:
        outer, inner = (poolscope.PoolScope(dsn, user=role, **settings) for role in ROLES)
        replica = poolscope.PoolScope(
            wire.dsn, key="replica", readonly=True, maxsize=1, breaker_failures=1, connect_timeout=1.0
        )
        app, sub = web.Application(), web.Application()
        for scope, where in ((outer, app), (inner, sub)):
            scope.setup(where)
            scope.read_from(replica)
        replica.setup(app)
        sub.router.add_get("/who", handler_of("db"))
        app.add_subapp("/sub", sub)
        async with serve(app) as served:
            async with replica.acquire() as held:
                asked = asyncio.create_task(served.get("/sub/who"))
                await until(lambda: replica.stats().waiting == 1, "the request that waits at the replica")
                wire.refuse()
                wire.cut()
                await until(lambda: held.closed, "the end of the replica's connection")
            assert await asked == (200, ROLES[1])
            wire.accept()
