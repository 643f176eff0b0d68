"""Search: which address is tried next and how, so that libpq never has to change sockets (C6, C7)."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from aiohttp_poolscope.driver.search import Target
from aiohttp_poolscope.errors import DatabaseUnavailable
from tests.conftest import Database, until
from tests.kit.wire import ask, driving, linked, wired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WITH_TLS = Path(os.environ.get("POOLSCOPE_TEST_TLS_BINDIR", "/usr/lib/postgresql/15/bin"))


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[EmbeddedPostgres]:
    """A server on TCP that asks for a password (SCRAM) and has no TLS."""
    with EmbeddedPostgres(tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def tls_server() -> Iterator[EmbeddedPostgres]:
    """The same with TLS: only a PostgreSQL of the operating system has it."""
    if not (WITH_TLS / "postgres").exists() or shutil.which("openssl") is None:
        pytest.skip(f"needs a PostgreSQL with TLS in {WITH_TLS} and openssl")
    with EmbeddedPostgres(tls=True, bindir=WITH_TLS) as server:
        yield server


@pytest.fixture
def dead_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def resolve(monkeypatch: Any, answer: Callable[..., Any]) -> None:
    """Let names be resolved by ``answer``, in a thread. uvloop does not use Python's resolver."""
    monkeypatch.setattr(socket, "getaddrinfo", answer)
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):

        async def ask_in_thread(host: str, port: int, **_: Any) -> Any:
            return await loop.run_in_executor(None, answer, host, port)

        monkeypatch.setattr(loop, "getaddrinfo", ask_in_thread)


def address(host: str, port: int) -> Any:
    """As getaddrinfo says it."""
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))


async def test_resolving_a_name_does_not_stop_the_loop(database: Database, monkeypatch: Any) -> None:
    """While a resolver sleeps the loop turns; libpq gets the address, and the name for the certificate (C7)."""
    asked, answer = threading.Event(), threading.Event()

    def slow(host: str, port: int, *args: Any, **options: Any) -> Any:
        assert host == "db.example"
        asked.set()
        assert answer.wait(10)
        return [address("127.0.0.1", port)]

    resolve(monkeypatch, slow)
    with wired(database) as wire:
        async with driving(wire.dsn.replace("127.0.0.1", "db.example")) as driver:
            opening = asyncio.ensure_future(driver.open())
            await until(asked.is_set)
            answer.set()
            link = await opening
            found = link.raw.get_dsn_parameters()
            assert (found["host"], found["hostaddr"]) == ("db.example", "127.0.0.1")
            link.close()


async def test_a_resolver_that_hangs_costs_connect_timeout(monkeypatch: Any) -> None:
    """Name resolution is part of connect_timeout."""
    answer = threading.Event()
    resolve(monkeypatch, lambda *_, **__: answer.wait(10) and [])
    async with driving("postgresql://db.example/x", connect_timeout=0.1) as driver, asyncio.timeout(5):
        with pytest.raises(DatabaseUnavailable, match=r"db\.example:5432: no answer within 0\.1 s"):
            await driver.open()
    answer.set()


async def test_a_name_that_does_not_exist(monkeypatch: Any) -> None:
    """A name without an address is said to be the problem."""

    def unknown(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    resolve(monkeypatch, unknown)
    async with driving("postgresql://db.example/x") as driver:
        with pytest.raises(DatabaseUnavailable, match="Name or service not known"):
            await driver.open()


async def test_what_is_no_name(database: Database) -> None:
    """It is named, and the other hosts are tried."""
    async with driving("postgresql://..../app") as driver:
        with pytest.raises(DatabaseUnavailable, match=r"'\.\.\.\.' is no name of a host"):
            await driver.open()
    with wired(database) as wire:
        async with linked(wire.dsn.replace("@127.0.0.1", "@....,127.0.0.1")) as link:
            assert await ask(link, "SELECT 1") == 1


async def test_every_address_of_a_name_is_tried(database: Database, monkeypatch: Any) -> None:
    """A name with two addresses is reached by the second when the first is dead."""
    with wired(database) as wire:
        found = [address("127.0.0.2", wire.port), address("127.0.0.1", wire.port)]
        resolve(monkeypatch, lambda *_, **__: found)
        async with linked(wire.dsn.replace("127.0.0.1", "db.example")) as link:
            assert await ask(link, "SELECT 1") == 1


async def test_a_dead_first_host(database: Database, dead_port: int) -> None:
    """With the first host dead the second is used, and asked first from then on (C6)."""
    with wired(database) as wire:
        both = wire.dsn.replace("@127.0.0.1", f"@127.0.0.1:{dead_port},127.0.0.1")
        async with driving(both) as driver:
            for _ in range(2):
                link = await driver.open()
                assert await ask(link, "SELECT 1") == 1
                link.close()
            assert driver._search._hosts[0].port == wire.port


async def test_a_silent_first_host(database: Database) -> None:
    """A host that accepts and is silent costs one connect_timeout, then the next is asked."""
    with socket.create_server(("127.0.0.1", 0)) as silent, wired(database) as wire:
        port = silent.getsockname()[1]
        both = wire.dsn.replace("@127.0.0.1", f"@127.0.0.1:{port},127.0.0.1")
        async with linked(both, connect_timeout=0.3) as link:
            assert await ask(link, "SELECT 1") == 1


async def test_all_hosts_dead(dead_port: int) -> None:
    """When no host answers the error has what each of them said, and no password."""
    async with driving(f"postgresql://me:secret@127.0.0.1:{dead_port},127.0.0.2:{dead_port}/x") as driver:
        with pytest.raises(DatabaseUnavailable) as caught:
            await driver.open()
    message = str(caught.value)
    assert message.count("Connection refused") == 2
    assert f"127.0.0.1:{dead_port}" in message
    assert f"127.0.0.2:{dead_port}" in message
    assert "secret" not in message


async def test_a_primary_is_a_primary(dsn: str) -> None:
    """target="primary" takes a server that can be written to."""
    async with linked(dsn, target="primary") as link:
        assert not await link.is_standby()


async def test_a_primary_is_no_standby(dsn: str) -> None:
    """target="standby" refuses a primary, says why, and closes the connection it looked with."""
    async with driving(dsn, target="standby") as driver:
        with pytest.raises(DatabaseUnavailable, match="is not a standby"):
            await driver.open()
        assert not driver._pools


async def test_prefer_standby_falls_back(dsn: str) -> None:
    """target="prefer-standby" takes a primary when there is no standby."""
    async with linked(dsn, target="prefer-standby") as link:
        assert await ask(link, "SELECT 1") == 1


@pytest.mark.parametrize("target", ["standby", "prefer-standby"])
async def test_a_standby_is_found(database: Database, target: Any) -> None:
    """Of two hosts the second is taken when it alone is the standby that is wanted."""
    with wired(database) as primary, wired(database) as standby:
        standby.swap = (b"S\0\0\0\x17in_hot_standby\0off\0", b"S\0\0\0\x16in_hot_standby\0on\0")
        both = standby.dsn.replace("@127.0.0.1", f"@127.0.0.1:{primary.port},127.0.0.1")
        async with linked(both, target=target) as link:
            assert await link.is_standby()
            assert (primary.connects, standby.connects) == (1, 1)


@pytest.mark.parametrize("rows", ["tuple", "dict"])
async def test_the_role_of_a_server_that_does_not_tell(database: Database, rows: str) -> None:
    """A server that does not report its role (before PostgreSQL 14, behind PgBouncer) is asked, whatever a row is."""
    database.sql("CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    with wired(database) as wire:
        wire.swap = (b"in_hot_standby", b"in_hot_standbx")
        async with linked(wire.dsn, rows=rows, options="-c search_path=public,pg_catalog") as link:
            assert await link.is_standby()
            assert wire.queries == ["SELECT pg_is_in_recovery()"]


async def test_prefer_against_a_server_without_tls(tcp_server: EmbeddedPostgres) -> None:
    """The default sslmode reaches a server without TLS, and remembers that it has none (C6)."""
    async with driving(tcp_server.dsn) as driver:
        for _ in range(2):
            link = await driver.open()
            assert not await ask(link, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert [key[1] for key in driver._pools] == ["disable"]
            link.close()


@pytest.mark.parametrize("sslmode", ["prefer", "allow", "disable"])
async def test_a_wrong_password(tcp_server: EmbeddedPostgres, sslmode: str) -> None:
    """A wrong password is said at once, in every mode, without the password (C6)."""
    async with driving(tcp_server.dsn, password="wrong-one", sslmode=sslmode, connect_timeout=30) as driver:
        async with asyncio.timeout(10):
            with pytest.raises(DatabaseUnavailable, match="password authentication failed") as caught:
                await driver.open()
    assert "wrong-one" not in str(caught.value)


async def test_require_against_a_server_without_tls(tcp_server: EmbeddedPostgres) -> None:
    """sslmode=require says that the server has no TLS."""
    async with driving(tcp_server.dsn, sslmode="require", connect_timeout=30) as driver, asyncio.timeout(10):
        with pytest.raises(DatabaseUnavailable, match="does not support SSL"):
            await driver.open()


@pytest.mark.system
@pytest.mark.parametrize("sslmode", ["prefer", "require", "verify-ca", "verify-full"])
async def test_tls_is_used(tls_server: EmbeddedPostgres, sslmode: str) -> None:
    """With a server that has TLS every mode from prefer on uses it."""
    root = {"sslrootcert": str(tls_server.certificate)} if sslmode.startswith("verify") else {}
    async with linked(tls_server.dsn, sslmode=sslmode, **root) as link:
        assert await ask(link, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


@pytest.mark.system
@pytest.mark.parametrize("sslmode", ["prefer", "allow", "require"])
async def test_a_wrong_password_over_tls(tls_server: EmbeddedPostgres, sslmode: str) -> None:
    """Against a TLS server too, a wrong password is the real error at once and no time-out (C6)."""
    async with driving(tls_server.dsn, password="wrong", sslmode=sslmode, connect_timeout=30) as driver:
        async with asyncio.timeout(10):
            with pytest.raises(DatabaseUnavailable, match="password authentication failed"):
                await driver.open()


@pytest.mark.system
async def test_verify_full_with_the_wrong_authority(tls_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """A certificate from somebody else's authority is refused, clearly and at once."""
    with EmbeddedPostgres(tls=True, bindir=WITH_TLS) as other:
        foreign = tmp_path / "root.crt"
        foreign.write_bytes(other.certificate.read_bytes())
    settings: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": str(foreign), "connect_timeout": 30}
    async with driving(tls_server.dsn, **settings) as driver, asyncio.timeout(10):
        with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
            await driver.open()


@pytest.mark.system
async def test_the_certificate_is_checked_for_the_name(tls_server: EmbeddedPostgres, monkeypatch: Any) -> None:
    """verify-full compares the certificate with the configured name, not with the address it resolved to."""
    resolve(monkeypatch, lambda *_, **__: [address("127.0.0.1", tls_server.port)])
    root: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": str(tls_server.certificate)}
    async with linked(tls_server.dsn.replace("127.0.0.1", "localhost"), **root) as link:
        assert await ask(link, "SELECT 1") == 1
    async with driving(tls_server.dsn.replace("127.0.0.1", "other.example"), **root) as driver:
        with pytest.raises(DatabaseUnavailable, match=r"does not match host name"):
            await driver.open()


def test_what_an_error_calls_a_target() -> None:
    """A target is named as configured, with the address it was resolved to."""
    assert str(Target("db.example", "10.0.0.1", 5432)) == "db.example:5432 (10.0.0.1)"
    assert str(Target("10.0.0.1", "10.0.0.1", 5432)) == "10.0.0.1:5432"
    assert str(Target("/run/postgresql", None, 5433)) == "/run/postgresql:5433"


async def test_a_role_that_cannot_be_asked_for(database: Database) -> None:
    """A server that fails when asked for its role is not what was looked for: the next host is tried."""
    database.sql(
        "CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT (1/0)::text::bool'"
    )
    with wired(database) as wire:
        wire.swap = (b"in_hot_standby", b"in_hot_standbx")
        settings = {"target": "primary", "options": "-c search_path=public,pg_catalog"}
        with pytest.raises(DatabaseUnavailable, match="does not tell its role: division by zero"):
            async with linked(wire.dsn, **settings):
                pass
