"""A function in place of the DSN: asked at every connect, so that a moved database or a new password is found."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.errors import DatabaseUnavailable
from tests.conftest import Database, until
from tests.kit.wire import wired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PID = "SELECT pg_backend_pid()"


@pytest.fixture
def role(database: Database) -> Iterator[Callable[[str], None]]:
    """``role(name)``: another user that may log in."""
    made: list[str] = []

    def make(name: str) -> None:
        database.sql(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{name}'")
        made.append(name)

    yield make
    for name in made:
        database.sql(f"DROP ROLE {name}")


@pytest.mark.parametrize("how", ["function", "coroutine function"])
async def test_it_is_asked_at_every_connect(make_scope: Any, dsn: str, role: Callable[[str], None], how: str) -> None:
    """What it says is where and as whom the next connection is made; those there are go on."""
    role("poolscope_before")
    role("poolscope_after")
    user = "poolscope_before"

    def where() -> str:
        return dsn.replace("postgres@", f"{user}@").replace("postgres:", f"{user}:")

    async def where_async() -> str:
        await asyncio.sleep(0)
        return where()

    if f"{user}@" not in where():
        pytest.skip("POOLSCOPE_TEST_DSN names another user than postgres")
    async with make_scope(where if how == "function" else where_async, maxsize=1) as scope:
        assert await scope.fetchval("SELECT current_user") == "poolscope_before"
        user = "poolscope_after"
        assert await scope.fetchval("SELECT current_user") == "poolscope_before"
        scope.expire()
        assert await scope.fetchval("SELECT current_user") == "poolscope_after"
        assert len(scope._run.pool.driver._pools) == 1


async def test_keyword_arguments_win(make_scope: Any, dsn: str) -> None:
    """A setting given as an argument holds whatever the function says."""
    async with make_scope(lambda: f"{dsn}{'&' if '?' in dsn else '?'}dbname=nowhere", dbname="postgres") as scope:
        assert await scope.fetchval("SELECT current_database()") == "postgres"


async def test_a_database_that_has_moved(make_scope: Any, database: Database) -> None:
    """When the old address is dead, the next connect goes to the new one."""
    with wired(database) as old, wired(database) as new:
        place = old.dsn
        async with make_scope(lambda: place, maxsize=2, minsize=2) as scope:
            assert new.connects == 0
            place = new.dsn
            old.cut()
            await until(lambda: new.connects >= 2)
            assert await scope.fetchval("SELECT 1") == 1


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (lambda: "mysql://localhost/app", "write postgresql://"),
        (lambda: "postgresql:///app?maxsize=20", "returned maxsize"),
        (lambda: None, "must be a string|must return"),
        (lambda: 1 / 0, "the DSN function failed"),
        (lambda: asyncio.sleep(60), "the DSN function failed"),
    ],
)
async def test_what_it_may_not_say(make_scope: Any, said: Any, complaint: str) -> None:
    """Nonsense, an exception or no answer at all is a connect that failed, with the reason, within connect_timeout."""
    with pytest.raises(DatabaseUnavailable, match=complaint):
        async with make_scope(said, connect_timeout=0.2):
            pass


async def test_it_may_recover(make_scope: Any, dsn: str) -> None:
    """A function that fails for a while fails nobody who has a connection, and is asked again."""
    broken = False

    def where() -> str:
        if broken:
            raise OSError("the vault is sealed")
        return dsn

    async with make_scope(where, maxsize=1, breaker_failures=2, breaker_reset=0.05) as scope:
        broken = True
        assert await scope.fetchval("SELECT 1") == 1
        scope.expire()
        with pytest.raises(DatabaseUnavailable, match="the vault is sealed"):
            await scope.fetchval("SELECT 1")
        broken = False
        await until(lambda: scope.stats().breaker == "closed")
        assert await scope.fetchval("SELECT 1") == 1


def test_it_is_not_asked_too_early() -> None:
    """Making a scope connects to nothing, and asks nobody."""
    scope = poolscope.PoolScope(lambda: pytest.fail("asked"), maxsize=3)
    assert scope.config.maxsize == 3


async def test_one_that_cancels_itself(make_scope: Any, dsn: str) -> None:
    """A function that raises CancelledError by itself is a connect that failed, and not the end of the opener."""

    def where() -> str:
        raise asyncio.CancelledError

    with pytest.raises(DatabaseUnavailable, match="was cancelled, by itself"):
        async with make_scope(where):
            pass


async def test_a_token_forgets_nothing(make_scope: Any, dsn: str) -> None:
    """A DSN that differs in its password only leads to the same hosts, in the order that was found to work."""
    tokens = iter(range(100))
    host = dsn.partition("host=")[2].partition("&")[0]
    query = f"host=/nowhere,{host}&port=5432,5432" if "host=" in dsn else None
    if query is None:
        pytest.skip("POOLSCOPE_TEST_DSN is not by a Unix socket")
    database = dsn.partition("?")[0].rpartition("/")[2]
    async with make_scope(lambda: f"postgresql://postgres:{next(tokens)}@/{database}?{query}", maxsize=2) as scope:
        targets = scope._run.pool.driver._search
        assert targets._hosts[0].host == host
        scope.expire()
        await scope.fetchval("SELECT 1")
        assert scope._run.pool.driver._search is targets
