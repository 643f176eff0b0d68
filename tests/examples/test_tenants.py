"""The example of row-level security keeps tenants apart, whatever its handlers and clients do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from aiohttp import ClientError, ClientSession, TCPConnector, web

import aiohttp_poolscope as poolscope
from tests.conftest import DEADLINE

from .test_examples import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import ModuleType

    from tests.conftest import Database, Serve, Served

audited = pytest.mark.usefixtures("poolscope_audit")
"""Not for the attacks: they leave transactions open on purpose, which is what it would find."""

PASSWORD = "only-for-this-test"
REQUESTS = 300
OTHER = {"ann": "bob", "bob": "ann"}


@dataclass
class Attacks:
    """Handlers that do what goes wrong elsewhere. What each of them could see is noted, its answer's fate aside."""

    example: ModuleType
    scope: poolscope.PoolScope
    seen: list[tuple[str, str, set[str]]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def look(self, where: str, db: Any) -> None:
        tenant = self.example.TENANT.get()
        rows = await db.fetch("SELECT tenant FROM poolscope_messages")
        self.seen.append((where, tenant, {each for (each,) in rows}))

    def leaks(self) -> list[tuple[str, str, set[str]]]:
        return [each for each in self.seen if each[2] != {each[1]}]

    async def handle(self, request: web.Request) -> web.Response:
        what, db = request.match_info["what"], request["db"]
        await self.look(f"before {what}", db)
        await getattr(self, f"_{what}")(db, OTHER[self.example.TENANT.get()])
        return web.Response(text=what)

    async def _crash(self, db: Any, other: str) -> None:
        raise RuntimeError(other)

    async def _wrong(self, db: Any, other: str) -> None:
        with contextlib.suppress(psycopg2.Error):
            await db.execute("SELECT 1/0")
        await self.look("after an error", db)
        await db.execute("SELECT nonsense")

    async def _sleep(self, db: Any, other: str) -> None:
        await db.execute("SELECT pg_sleep(0.05)")

    async def _forge(self, db: Any, other: str) -> None:
        """As an injected statement would. It works, for this borrow: and for no other."""
        await db.execute("SELECT set_config('app.tenant', %s, false)", (other,))
        await db.execute("CREATE TEMPORARY TABLE poolscope_messages AS SELECT * FROM public.poolscope_messages")

    async def _forge_and_release(self, db: Any, other: str) -> None:
        await self._forge(db, other)
        db.release()
        await self.look("in another borrow after a forged one", db)

    async def _forge_in_transaction(self, db: Any, other: str) -> None:
        """Left open, and committed by whoever comes next if the pool lets them."""
        await db.execute("BEGIN")
        await db.execute("SELECT set_config('app.tenant', %s, false)", (other,))

    async def _forge_and_sleep(self, db: Any, other: str) -> None:
        await db.execute("SELECT set_config('app.tenant', %s, false), pg_sleep(60)", (other,), timeout=0.02)

    async def _again(self, db: Any, other: str) -> None:
        for _ in range(3):
            db.release()
            await asyncio.sleep(0)
            await self.look("in another borrow", db)

    async def _beside(self, db: Any, other: str) -> None:
        db.release()  # else two of these could wait for each other
        async with self.scope.acquire() as second:
            await self.look("in scope.acquire()", second)
            await second.execute("SELECT set_config('app.tenant', %s, false)", (other,))
        await self.look("after scope.acquire()", db)

    async def _task(self, db: Any, other: str) -> None:
        async def later() -> None:
            with contextlib.suppress(poolscope.PoolExhausted):  # there are two for so many
                async with self.scope.acquire(timeout=DEADLINE) as own:
                    await self.look("in a task that outlives its request", own)

        self.tasks.append(asyncio.create_task(later()))

    async def _cancelled(self, db: Any, other: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await self._sleep(db, other)
        await self.look("after a cancelled statement", db)


KINDS = [name.removeprefix("_") for name in vars(Attacks) if name.startswith("_") and not name.startswith("__")]


@pytest.fixture
def example(database: Database) -> Iterator[ModuleType]:
    """The example, migrated, with one message of each tenant."""
    database.sql("GRANT USAGE ON SCHEMA public TO PUBLIC")  # as in any new database
    example = load("multi_tenant")
    example.migrate(database.dsn, PASSWORD)
    example.migrate(database.dsn, PASSWORD)  # as at each start
    for tenant in OTHER:
        database.sql("INSERT INTO poolscope_messages VALUES (%s, 'hello')", tenant)
    yield example
    database.sql(f"DROP OWNED BY {example.ROLE}; DROP ROLE {example.ROLE}")


def make(example: ModuleType, dsn: str, **settings: Any) -> tuple[web.Application, Attacks]:
    app = example.make_app(dsn, user=example.ROLE, password=PASSWORD, **settings)
    attacks = Attacks(example, app[example.SCOPE])
    app.router.add_get("/attack/{what}", attacks.handle)
    return app, attacks


def bearer(tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer token-of-{tenant}"}


async def ask(served: Served, what: str, tenant: str) -> None:
    """One client. Of those whose handler sleeps, each leaves; so do some others, at any moment."""
    leaves = random.random() < 0.2 or what in ("sleep", "forge_and_sleep")
    async with asyncio.timeout(random.random() * 0.06 if leaves else 2 * DEADLINE):
        await served.status(f"/attack/{what}", headers=bearer(tenant))


async def crowd(served: Served, attacks: Attacks) -> None:
    """Both tenants at once, over two connections."""
    kinds = [*KINDS, "again", "beside", "again", "beside"]
    some = [(random.choice(kinds), random.choice(["ann", "bob"])) for _ in range(REQUESTS)]
    slots = asyncio.Semaphore(8)

    async def one(what: str, tenant: str) -> None:
        async with slots:
            with contextlib.suppress(TimeoutError, ClientError):
                await ask(served, what, tenant)

    await asyncio.gather(*(one(what, tenant) for what, tenant in some))
    await asyncio.gather(*attacks.tasks)


@audited
async def test_two_tenants(dsn: str, serve: Serve, example: ModuleType) -> None:
    """Each sees and writes its own; who has no tenant sees nothing, in a request or beside one."""
    app, attacks = make(example, dsn)
    async with serve(app) as served:
        for tenant in OTHER:
            async with served.client.post(served.url, data={"text": "more"}, headers=bearer(tenant)) as response:
                assert response.status == 201
            status, text = await served.get(headers=bearer(tenant))
            assert (status, json.loads(text)) == (200, [[tenant, "hello"], [tenant, "more"]])
        assert await served.status() == await served.status(headers=bearer("eve")) == 401
        assert await attacks.scope.fetch("SELECT * FROM poolscope_messages") == []
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            await attacks.scope.execute("INSERT INTO poolscope_messages (text) VALUES ('whose?')")
        token = example.TENANT.set("bob")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            await attacks.scope.execute("INSERT INTO poolscope_messages VALUES ('ann', 'from bob')")
        assert await attacks.scope.execute("DELETE FROM poolscope_messages WHERE tenant = 'ann'") == "DELETE 0"
        example.TENANT.reset(token)


@audited
async def test_each_request_has_a_tenant_of_its_own(dsn: str, serve: Serve, example: ModuleType) -> None:
    """On one kept connection none is left by the request before; it is still there when a body is written at last."""
    app, attacks = make(example, dsn)
    before: list[str] = []

    @web.middleware
    async def outermost(request: web.Request, handler: Any) -> Any:
        before.append(example.TENANT.get())
        return await handler(request)

    async def late(request: web.Request) -> web.Response:
        async def body() -> AsyncIterator[bytes]:
            yield (await attacks.scope.fetchval("SELECT string_agg(tenant, ',') FROM poolscope_messages")).encode()

        return web.Response(body=body())

    app.middlewares.insert(0, outermost)
    app.router.add_get("/late", late)
    async with serve(app) as served, ClientSession(connector=TCPConnector(limit=1)) as client:
        for tenant in ("ann", "bob", "eve", "ann"):
            async with client.get(served.url / "late", headers=bearer(tenant)) as response:
                assert (await response.text() == tenant) is (response.status == 200) is (tenant != "eve")
    assert before == [""] * 4


@audited
async def test_in_the_wrong_order_nobody_sees_anything(dsn: str, serve: Serve, example: ModuleType) -> None:
    """Borrowed before it is known who asks, a connection shows nothing: a mistake that is seen at once."""
    app, _ = make(example, dsn, maxsize=1)
    app.middlewares.reverse()
    async with serve(app) as served:
        for tenant in ("ann", "bob"):
            assert await served.get(headers=bearer(tenant)) == (200, "[]")


@audited
async def test_nobody_is_mightier_than_the_policy(dsn: str, serve: Serve, example: ModuleType) -> None:
    """A superuser, whom no policy binds, cannot start the service; its role cannot become another one."""
    with pytest.raises(poolscope.PoolScopeError, match="row-level security"):
        async with serve(example.make_app(dsn)):
            pass
    app, attacks = make(example, dsn)
    async with serve(app):
        for attempt in ("SET ROLE postgres", "SET SESSION AUTHORIZATION postgres", "RESET ROLE", "RESET ALL"):
            async with attacks.scope.acquire() as db:
                with contextlib.suppress(psycopg2.Error):
                    await db.execute(attempt)
                assert await db.fetch("SELECT * FROM poolscope_messages") == []
        async with attacks.scope.acquire() as db:
            await db.execute("SET row_security = off")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                await db.fetch("SELECT * FROM poolscope_messages")


async def test_what_one_borrow_has_set_is_gone_for_the_next(dsn: str, serve: Serve, example: ModuleType) -> None:
    """On the one connection there is: an attack of one tenant leaves no trace for the other."""
    app, attacks = make(example, dsn, maxsize=1)
    async with serve(app) as served:
        for what in KINDS:
            await served.status(f"/attack/{what}", headers=bearer("ann"))
            await served.status("/attack/again", headers=bearer("bob"))
            await served.status("/attack/again", headers=bearer("ann"))
        await asyncio.gather(*attacks.tasks)
        assert attacks.leaks() == []
        assert {where.removeprefix("before ") for where, *_ in attacks.seen} >= {*KINDS}
        assert attacks.scope.stats().opened < attacks.scope.stats().lent / 5


async def test_no_crowd_makes_it_leak(dsn: str, serve: Serve, example: ModuleType, cancellation: bool) -> None:
    """Errors, cancellations, clients that leave, forged settings, borrows beside: nobody ever sees the other's rows."""
    app, attacks = make(example, dsn, maxsize=2)
    async with serve(app, handler_cancellation=cancellation) as served:
        await crowd(served, attacks)
    assert attacks.leaks() == []
    assert {tenant for _, tenant, _ in attacks.seen} == {*OTHER}
    assert len(attacks.seen) > REQUESTS


async def test_the_crowd_would_find_a_leak(
    dsn: str, serve: Serve, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same crowd, where the tenant is set on a connection that has none yet: it sees what is not its own."""
    careful = example.set_tenant

    async def careless(db: Any) -> None:
        if not await db.fetchval("SELECT current_setting('app.tenant', true)"):
            await careful(db)

    monkeypatch.setattr(example, "set_tenant", careless)
    app, attacks = make(example, dsn, maxsize=2, reset="rollback")
    async with serve(app, handler_cancellation=True) as served:
        await crowd(served, attacks)
    assert attacks.leaks() != []
