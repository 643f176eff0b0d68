"""The driver: what a link is told at its start, what it answers, and what becomes of its pools."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.driver import FAILED, IDLE, IN_TRANSACTION, sqlstate
from aiohttp_poolscope.errors import ConnectionBusy, DatabaseUnavailable, QueryTimeout
from tests.conftest import Database, until
from tests.kit.wire import ask, driving, linked, wired


async def test_limits_are_the_servers(dsn: str) -> None:
    """The server itself knows statement_timeout, the idle-in-transaction limit and the interval for the abandoned."""
    async with linked(dsn, statement_timeout=7.5, idle_in_transaction_timeout=11.0, abandon_interval=0.25) as link:
        assert await ask(link, "SHOW statement_timeout") == "7500ms"
        assert await ask(link, "SHOW idle_in_transaction_session_timeout") == "11s"
        assert await ask(link, "SHOW client_connection_check_interval") == "250ms"


async def test_none_is_no_limit(dsn: str) -> None:
    """A limit of None leaves the server's own setting alone."""
    async with linked(dsn, statement_timeout=None, idle_in_transaction_timeout=None, abandon_interval=None) as link:
        assert await ask(link, "SHOW statement_timeout") == "0"
        assert await ask(link, "SHOW idle_in_transaction_session_timeout") == "0"
        assert await ask(link, "SHOW client_connection_check_interval") == "0"


async def test_a_limit_below_a_millisecond_is_not_no_limit(dsn: str) -> None:
    """A tiny limit is rounded up: 0 would switch it off."""
    async with linked(dsn, idle_in_transaction_timeout=0.01) as link:
        assert await ask(link, "SHOW idle_in_transaction_session_timeout") == "10ms"


async def test_the_users_own_options_win(dsn: str) -> None:
    """What stands in options= overrides ours, and the rest of ours stays."""
    async with linked(dsn, options="-c statement_timeout=1234 -c work_mem=5MB") as link:
        assert await ask(link, "SHOW statement_timeout") == "1234ms"
        assert await ask(link, "SHOW work_mem") == "5MB"
        assert await ask(link, "SHOW idle_in_transaction_session_timeout") == "1min"


async def test_pgbouncer_gets_no_options(dsn: str) -> None:
    """With pgbouncer=True nothing is set at the start of the session: PgBouncer would refuse the connection."""
    async with linked(dsn, pgbouncer=True, statement_timeout=3.0) as link:
        assert not link.raw.get_dsn_parameters().get("options")
        assert await ask(link, "SHOW statement_timeout") == "0"


async def test_application_name_fits_into_63_bytes(dsn: str, make_scope: Any, monkeypatch: Any) -> None:
    """Of '<key>@<host>:<pid>' only the host is shortened, and the server shows the whole."""
    monkeypatch.setattr("socket.gethostname", lambda: "host" * 20)
    async with make_scope(key="reports") as scope:
        name = await scope.fetchval("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    assert len(name) == 63
    assert name.startswith("reports@hosthost")
    assert name.endswith(f":{os.getpid()}")


async def test_no_probe_for_hstore_unless_asked(database: Database) -> None:
    """Connecting sends no query at all (C9); with hstore=True it sends the one that asks for the type's number."""
    with wired(database) as wire:
        async with linked(wire.dsn):
            assert wire.queries == []
        async with linked(wire.dsn, hstore=True):
            assert len(wire.queries) == 1
            assert "hstore" in wire.queries[0]


async def test_hstore_is_read_as_dict_when_asked(database: Database) -> None:
    """hstore=True gives dicts, where the extension is installed."""
    if not database.sql("SELECT 1 FROM pg_available_extensions WHERE name = 'hstore'"):
        pytest.skip("this PostgreSQL has no hstore")
    database.sql("CREATE EXTENSION hstore")
    async with linked(database.dsn, hstore=True) as link:
        assert await ask(link, "SELECT 'a=>1'::hstore") == {"a": "1"}


@pytest.mark.parametrize(
    ("rows", "kind"),
    [("tuple", tuple), ("dict", dict), ("namedtuple", tuple), (psycopg2.extras.DictCursor, list)],
)
async def test_rows(dsn: str, rows: Any, kind: type[Any]) -> None:
    """A row is a tuple, a dict, a namedtuple, or what the given cursor class makes of it."""
    async with linked(dsn, rows=rows) as link:
        await link.run(link.cursor(), "SELECT 1 AS one, 2 AS two")
        row = link.read_first(link.cursor())
        assert isinstance(row, kind)
        assert row.two == 2 if rows == "namedtuple" else row["two" if rows != "tuple" else 1] == 2


async def test_status_says_where_a_transaction_is(dsn: str) -> None:
    """IDLE, IN_TRANSACTION, FAILED and back; clean only when idle."""
    async with linked(dsn) as link:
        assert (link.status, link.clean) == (IDLE, True)
        await link.run(link.cursor(), "BEGIN")
        assert (link.status, link.clean) == (IN_TRANSACTION, False)
        with pytest.raises(psycopg2.errors.UndefinedTable):
            await link.run(link.cursor(), "SELECT 1 FROM nowhere")
        assert (link.status, link.clean) == (FAILED, False)
        await link.run(link.cursor(), "ROLLBACK")
        assert (link.status, link.clean) == (IDLE, True)


async def test_one_statement_at_a_time(dsn: str) -> None:
    """A second statement is refused while one is running, and so is one beside a user of db.raw (C12)."""
    async with linked(dsn) as link:
        first = asyncio.ensure_future(ask(link, "SELECT 'mine' FROM pg_sleep(0.05)"))
        await until(lambda: link.running_since)
        with pytest.raises(ConnectionBusy):
            await link.run(link.cursor(), "SELECT 2")
        assert await first == "mine"
        raw = await link.aio.cursor()
        other = asyncio.ensure_future(raw.execute("SELECT pg_sleep(0.05)"))
        await until(lambda: link.aio._waiter)
        with pytest.raises(ConnectionBusy):
            await link.run(link.cursor(), "SELECT 2")
        await other
        raw.close()


async def test_what_is_awaited_before_a_statement(dsn: str) -> None:
    """Each in turn, with what the one before has left of the time; one that raises is the statement's end."""
    seen: list[Any] = []

    async def first(link: Any, sql: object, timeout: float | None) -> float | None:
        seen.append((sql, timeout))
        return 0.05

    async def second(link: Any, sql: object, timeout: float | None) -> float | None:
        seen.append((sql, timeout))
        if sql == "SELECT 1":
            raise ZeroDivisionError
        return timeout

    async with linked(dsn) as link:
        link.before = (first, second)
        with pytest.raises(QueryTimeout, match=r"within 0\.05 s"):
            await link.run(link.cursor(), "SELECT pg_sleep(60)", timeout=70)
        with pytest.raises(ZeroDivisionError):
            await link.run(link.cursor(), "SELECT 1")
        link.before = ()
        assert await ask(link, "SELECT 2") == 2
    assert seen == [
        (sql, left) for sql, given in (("SELECT pg_sleep(60)", 70), ("SELECT 1", None)) for left in (given, 0.05)
    ]


async def test_it_follows_another_config(dsn: str) -> None:
    """``use``: what is opened from now on goes where that says; what is open stays."""
    async with driving(dsn) as driver:
        before = driver.config
        link = await driver.open()
        driver.use(replace(before, hosts=PoolConfig.build("postgresql://127.0.0.1:1/app").hosts))
        with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1:1"):
            await driver.open()
        driver.use(before)
        other = await driver.open()
        assert [await ask(each, "SELECT 42") for each in (link, other)] == [42, 42]
        link.close()
        other.close()


async def test_a_large_result_is_not_kept(dsn: str) -> None:
    """Once several rows are read, the shared cursor that holds them is gone."""
    async with linked(dsn) as link:
        await link.run(link.cursor(), "SELECT * FROM generate_series(1, 1000)")
        cursor = link.cursor()
        assert len(link.read_all(cursor)) == 1000
        assert cursor.closed
        await link.run(link.cursor(), "SELECT 1")
        cursor = link.cursor()
        link.read_all(cursor)
        assert cursor is link.cursor()


async def test_ping(database: Database) -> None:
    """A ping is one round trip; on a frozen network it lasts as long as its caller lets it."""
    with wired(database) as wire:
        async with linked(wire.dsn) as link:
            await link.ping()
            assert wire.queries == ["SELECT 1"]
            wire.frozen = True
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await link.ping()
            wire.frozen = False


def _because(cause: BaseException) -> QueryTimeout:
    error = QueryTimeout()
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("wrap", [lambda error: error, _because])
def test_sqlstate_looks_at_causes(wrap: Any) -> None:
    """The SQLSTATE is found in the error itself or in what caused it; else there is none."""

    class Serialization(psycopg2.OperationalError):
        pgcode = "40001"

    assert sqlstate(wrap(Serialization())) == "40001"
    assert sqlstate(ValueError()) is None


async def test_one_pool_for_each_password_closed_when_empty(dsn: str) -> None:
    """A changed password gets an aiopg pool of its own; the old one goes with its last link."""
    passwords = iter(["first", "second"])
    async with driving(dsn, password=lambda: next(passwords)) as driver:
        old, new = await driver.open(), await driver.open()
        pools = list(driver._pools.values())
        assert len(pools) == 2
        old.close()
        driver.forget_empty()
        assert list(driver._pools.values()) == pools[1:]
        assert pools[0]._closing
        new.close()
        driver.forget_empty()
        assert not driver._pools


async def test_links_of_one_target_share_a_pool(dsn: str) -> None:
    """The same address and password are one aiopg pool, without a limit and without idle connections of its own."""
    async with driving(dsn) as driver:
        links = [await driver.open() for _ in range(3)]
        (pool,) = driver._pools.values()
        assert (pool.size, pool.freesize, pool.minsize, pool.maxsize, pool.timeout) == (3, 0, 0, None, None)
        for link in links:
            link.close()
            link.close()
        assert pool.size == 0


async def test_a_failed_connect_leaves_no_pool(dsn: str) -> None:
    """A target that cannot be reached is not remembered as an aiopg pool."""
    async with driving(dsn, dbname="nowhere") as driver:
        with pytest.raises(DatabaseUnavailable, match="nowhere"):
            await driver.open()
        assert not driver._pools


async def _later(value: str) -> str:
    await asyncio.sleep(0)
    return value


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_password_is_asked_at_every_connect(dsn: str, asynchronous: bool) -> None:
    """A password function, plain or async, is asked each time: a rotated password is found by the next connect."""
    asked: list[str] = []

    def password() -> Any:
        asked.append(f"word {len(asked)}")
        return _later(asked[-1]) if asynchronous else asked[-1]

    async with driving(dsn, password=password) as driver:
        links = [await driver.open() for _ in range(2)]
        assert asked == ["word 0", "word 1"]
        assert [key[2] for key in driver._pools] == asked
        for link in links:
            link.close()


async def test_a_password_function_that_fails_is_a_failed_connect(dsn: str) -> None:
    """Whatever a password function raises is a connect that failed, and not the end of the opener."""

    async def password() -> str:
        raise LookupError("the vault is sealed")

    async with driving(dsn, password=password) as driver:
        with pytest.raises(DatabaseUnavailable, match="the vault is sealed"):
            await driver.open()


async def test_an_old_server_without_the_interval(database: Database) -> None:
    """Where the server does not know client_connection_check_interval, the connection comes without it."""
    with wired(database) as wire:
        wire.swap_start = (b"client_connection_check", b"klient_connection_check")
        wire.swap = (b"klient_connection_check", b"client_connection_check")
        async with driving(wire.dsn) as driver:
            for _ in range(2):
                link = await driver.open()
                assert await ask(link, "SHOW client_connection_check_interval") == "0"
                assert await ask(link, "SHOW statement_timeout") == "30s"
                link.close()
        assert wire.connects == 3


async def test_application_name_is_sent_as_it_is(dsn: str, monkeypatch: Any) -> None:
    """Spaces and backslashes arrive, and neither PGAPPNAME nor a fallback name takes its place."""
    async with linked(dsn, application_name="a b\\c", fallback_application_name="other") as link:
        assert await ask(link, "SHOW application_name") == "a b\\c"
    monkeypatch.setenv("PGAPPNAME", "from the environment")
    async with linked(dsn, application_name="mine") as link:
        assert await ask(link, "SHOW application_name") == "mine"


async def test_a_parameter_the_server_does_not_know(dsn: str) -> None:
    """A misspelt name in options= is said at once: libpq must not try again in a second socket (C6)."""
    async with driving(dsn, options="-c work_memory=1MB", connect_timeout=30) as driver, asyncio.timeout(10):
        with pytest.raises(DatabaseUnavailable, match="work_memory"):
            await driver.open()


async def test_what_is_used_of_aiopgs_inside(dsn: str) -> None:
    """The private names of aiopg that driver.py leans on exist and mean what it takes them for."""
    async with linked(dsn) as link:
        aio = link.aio
        assert aio._conn is link.raw
        assert aio._fileno == link.raw.fileno()
        assert aio._weakref() is aio
        assert aio._waiter is None
        aio._waiter = waiter = asyncio.get_running_loop().create_future()
        link.cursor().execute("SELECT 1")
        aio._ready(aio._weakref)
        await waiter
        aio._waiter = None
        assert isinstance(link.raw.pgconn_ptr, int)
        (pool,) = {link._owner}
        assert (pool.size, len(pool._used)) == (1, 1)
