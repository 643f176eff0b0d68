"""Roles: which of two real servers a pool is connected to, and what it does when that one's role is not the wanted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from aiohttp_poolscope import ConfigError, DatabaseUnavailable, PoolScope
from aiohttp_poolscope.pool import housekeeper, roles
from tests.conftest import until
from tests.kit.wire import ask, driving, wired_to

from .replication import Pair, through

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Service
    from .service import Running

TARGETS = ("primary", "standby", "prefer-standby", "any")
INSERT = "INSERT INTO writes VALUES (1)"
PORT = "SELECT inet_server_port()"
PATIENCE = 20.0

ReadOnly = psycopg2.errors.ReadOnlySqlTransaction


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    """A primary and its standby, whatever the test before has left."""
    _pair.mend()
    return _pair


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby is looked for more often than every five seconds."""
    monkeypatch.setattr(housekeeper, "CALM", 0.1)
    monkeypatch.setattr(roles, "SEEK_EVERY", 0.2)


async def found(dsn: str, **settings: Any) -> int | str:
    """The port of the server that a driver finds, or why it finds none."""
    async with driving(dsn, **settings) as driver:
        try:
            link = await driver.open()
        except DatabaseUnavailable as error:
            return str(error)
        port = int(await ask(link, PORT))
        link.close()
        return port


def ports(scope: PoolScope) -> list[int]:
    """The server of each connection of the pool."""
    assert scope._run is not None
    return [slot.link.target.port for slot in scope._run.pool.gate.slots]


async def comes_to(scope: PoolScope, port: int, size: int) -> None:
    """Wait until the pool has ``size`` connections, all to the server at this port."""
    await until(lambda: ports(scope) == [port] * size, f"{size} connections to {port}", PATIENCE)
    assert await scope.fetchval(PORT) == port


async def write(running: Running, number: int) -> int:
    """Status of one write."""
    async with running.client.get(running.url / "write" % {"id": number}) as response:
        if response.status == 503:
            assert int(response.headers["Retry-After"]) >= 1
        return response.status


@pytest.mark.parametrize("target", TARGETS)
async def test_each_target_finds_its_server(pair: Pair, target: str) -> None:
    """Whichever host comes first, the server of the wanted role is found; next time it is the first to be asked."""
    with wired_to(pair.primary.dsn) as primary, wired_to(pair.standby.dsn) as standby:
        for first, second in ((primary, standby), (standby, primary)):
            wanted = {"primary": primary, "any": first}.get(target, standby)
            server = pair.primary if wanted is primary else pair.standby
            async with driving(through(first, second), target=target) as driver:
                links = [await driver.open()]
                asked = primary.connects + standby.connects
                links.append(await driver.open())
                assert primary.connects + standby.connects == asked + 1
                assert [await ask(link, PORT) for link in links] == [server.port] * 2
                for link in links:
                    link.close()


@pytest.mark.parametrize("way", ["dead", "silent"])
async def test_one_of_the_servers_is_gone(pair: Pair, way: str) -> None:
    """With one host dead or silent, first or last, a target is served by the other, or it is said why not."""
    searches, cases = [], []
    with contextlib.ExitStack() as stack:
        wires = {server: stack.enter_context(wired_to(server.dsn)) for server in pair.servers}
        lost = {server: stack.enter_context(wired_to(server.dsn)) for server in pair.servers}
        for wire in lost.values():
            wire.hang = way == "silent"
            if way == "dead":
                wire.refuse()
        limit = 10.0 if way == "dead" else 1.0
        for gone, left in (pair.servers, pair.servers[::-1]):
            for dsn in (through(lost[gone], wires[left]), through(wires[left], lost[gone])):
                for target in TARGETS:
                    cases.append((target, gone, left))
                    searches.append(found(dsn, target=target, connect_timeout=limit))
        async with asyncio.timeout(PATIENCE):
            results = await asyncio.gather(*searches)
        for wire in lost.values():
            wire.hang = False
            if way == "dead":
                wire.accept()
    problem = "Connection refused" if way == "dead" else "no answer within 1 s"
    for (target, gone, left), result in zip(cases, results, strict=True):
        if target == ("primary" if gone is pair.primary else "standby"):
            assert problem in str(result)
            assert f"127.0.0.1:{wires[left].port}: is not a {target}" in str(result)
        else:
            assert result == left.port, (target, gone)


async def test_prefer_standby_makes_do_and_goes_back(pair: Pair, service: Service) -> None:
    """Without a standby the primary serves; a standby that answers again takes over, and no lease is cut short."""
    async with service(pair.dsn(target="prefer-standby"), direct=pair.direct, minsize=3, maxsize=3) as running:
        scope = running.scope
        await comes_to(scope, pair.standby.port, 3)
        await asyncio.to_thread(pair.standby.stop)
        await comes_to(scope, pair.primary.port, 3)
        assert await running.get("/read") == (200, "42")
        async with scope.acquire() as held:
            await asyncio.to_thread(pair.standby.start)
            await until(lambda: ports(scope).count(pair.standby.port) == 2, "the two that were idle", PATIENCE)
            assert await held.fetchval(PORT) == pair.primary.port
        await comes_to(scope, pair.standby.port, 3)


@pytest.mark.parametrize("target", ["standby", "prefer-standby"])
async def test_a_standby_that_is_promoted(pair: Pair, service: Service, target: str) -> None:
    """Connections outlive a promotion: once they are used the pool sees it, and goes to the standby that there is."""
    async with service(pair.dsn(target=target), direct=pair.direct, minsize=3, maxsize=3) as running:
        promoted = pair.standby
        await comes_to(running.scope, promoted.port, 3)
        await asyncio.to_thread(pair.switch_over)
        assert pair.primary is promoted
        async with asyncio.timeout(PATIENCE):
            while ports(running.scope) != [pair.standby.port] * 3:
                assert await running.get("/read") == (200, "42")


@pytest.mark.parametrize("target", ["any", "primary"])
@pytest.mark.parametrize("pgbouncer", [False, True], ids=["direct", "pgbouncer"])
async def test_a_transaction_that_was_made_read_only(
    pair: Pair, service: Service, target: str, pgbouncer: bool
) -> None:
    """A write in a transaction that is READ ONLY on a primary is the handler's mistake, and replaces nothing."""
    dsn = pair.dsn(first=pair.primary, target=target)
    async with service(dsn, direct=pair.direct, pgbouncer=pgbouncer, maxsize=2) as running:
        for _ in range(2):
            with pytest.raises(ReadOnly):
                async with running.scope.transaction(readonly=True) as tx:
                    await tx.execute(INSERT)
        stats = running.scope.stats()
        assert (stats.opened, stats.closed) == (1, 0)
        assert await write(running, 1) == 200


@pytest.mark.parametrize("block", [False, True], ids=["statement", "transaction"])
@pytest.mark.parametrize("pgbouncer", [False, True], ids=["direct", "pgbouncer"])
async def test_a_write_that_meets_a_standby(pair: Pair, service: Service, pgbouncer: bool, block: bool) -> None:
    """It leads to the primary: idle connections at once, and those that are lent when they come back.

    The write itself is a 503; but through PgBouncer the transaction, or the role, may as well be read-only.
    """
    settings = {"pgbouncer": pgbouncer, "rows": "dict", "minsize": 3, "maxsize": 3}
    async with service(pair.dsn(first=pair.standby), direct=pair.direct, **settings) as running:
        scope = running.scope
        await until(lambda: ports(scope) == [pair.standby.port] * 3)
        async with scope.acquire() as held:
            async with scope.acquire() as writer:
                with pytest.raises(ReadOnly if pgbouncer else DatabaseUnavailable) as caught:
                    async with writer.transaction() if block else contextlib.nullcontext():
                        await writer.execute(INSERT)
                if not pgbouncer:
                    assert str(caught.value).endswith(f":{pair.standby.port} is a standby and takes no writes")
                    assert isinstance(caught.value.__cause__, ReadOnly)
                assert await writer.execute("SELECT 1") == "SELECT 1"
            await until(lambda: ports(scope).count(pair.primary.port) == 2)
            assert await write(running, 2) == 200
            assert await held.execute("SELECT 1") == "SELECT 1"
            assert ports(scope).count(pair.standby.port) == 1
        await until(lambda: ports(scope) == [pair.primary.port] * 3)
        assert await running.sql("SELECT id FROM writes") == [(2,)]


async def test_writes_while_only_a_standby_is_left(pair: Pair, service: Service) -> None:
    """Each is a 503, reads are served, and the pool does not replace its connections for every one of them."""
    async with service(pair.dsn(), direct=pair.direct, maxsize=3) as running:
        await asyncio.to_thread(pair.primary.stop)
        await asyncio.to_thread(pair.standby.sql, "SELECT 1")
        await until(lambda: not ports(running.scope) or ports(running.scope) == [pair.standby.port])
        before = None
        for number in range(30):
            assert await write(running, number) == 503
            before = before or running.scope.stats().opened
            assert await running.get("/read") == (200, "42")
        assert running.scope.stats().opened - before < 10
        await asyncio.to_thread(pair.primary.start)
        async with asyncio.timeout(PATIENCE):
            while await write(running, 100) == 503:
                pass
        assert await running.sql("SELECT id FROM writes") == [(100,)]


@pytest.mark.parametrize("settings", [{"target": "standby"}, {"target": "prefer-standby"}, {"readonly": True}], ids=str)
async def test_where_no_write_is_expected_to_succeed(pair: Pair, service: Service, settings: dict[str, Any]) -> None:
    """Where a standby was asked for, or readonly=True, a write is the handler's mistake, and replaces nothing."""
    async with service(pair.dsn(first=pair.standby), direct=pair.direct, maxsize=2, **settings) as running:
        for _ in range(2):
            with pytest.raises(ReadOnly):
                await running.scope.execute(INSERT)
        stats = running.scope.stats()
        assert (stats.opened, stats.closed) == (1, 0)


async def test_readonly(pair: Pair, service: Service) -> None:
    """readonly=True holds on a primary, and through a full reset; with pgbouncer=True it is refused."""
    async with service(pair.primary.dsn, readonly=True, reset="full", maxsize=1) as running:
        for _ in range(2):
            with pytest.raises(ReadOnly):
                await running.scope.execute(INSERT)
            await running.scope.execute("SET default_transaction_read_only = off")
    with pytest.raises(ConfigError, match="readonly"):
        PoolScope(pair.primary.dsn, readonly=True, pgbouncer=True)
