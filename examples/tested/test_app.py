"""Tests of the service beside it: each finds the tables empty, and none leaves anything."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer
from app import SCHEMA, SCOPE, make_app

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("poolscope_audit")]

Client = TestClient[Any, Any]


@pytest.fixture(scope="session")
def dsn(poolscope_postgres: Any) -> str:
    """A database with the service's tables. They are committed; what the tests write is not."""
    poolscope_postgres.sql(SCHEMA)
    return str(poolscope_postgres.dsn)


@pytest_asyncio.fixture
async def client(dsn: str, poolscope_rollback: Any) -> AsyncIterator[Client]:
    app = make_app(dsn)
    poolscope_rollback(app[SCOPE])
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_a_note_is_listed(client: Client) -> None:
    assert (await client.post("/notes", data="milk")).status == 201
    assert await (await client.get("/notes")).json() == ["milk"]


async def test_there_is_nothing_at_first(client: Client) -> None:
    assert await (await client.get("/notes")).json() == []


async def test_a_note_that_is_there_already_changes_nothing(client: Client) -> None:
    assert (await client.post("/notes", data="milk")).status == 201
    assert (await client.post("/notes", data="milk")).status == 500
    assert await (await client.get("/notes")).json() == ["milk"]


async def test_the_fourth_note_is_refused(client: Client) -> None:
    scope = client.app[SCOPE]
    await scope.execute("INSERT INTO notes (text) VALUES ('one'), ('two'), ('three')")
    assert (await client.post("/notes", data="four")).status == 409
    assert await scope.fetchval("SELECT count(*) FROM notes") == 3


async def test_a_copy_names_its_original(client: Client) -> None:
    number = await (await client.post("/notes", data="milk")).json()
    assert (await client.post(f"/notes/{number}/copy")).status == 201
    assert (await client.post(f"/notes/{number + 1000}/copy")).status == 404
    assert await (await client.get("/notes")).json() == ["milk", "copy of milk"]


async def test_a_database_that_is_away_is_a_503(client: Client, poolscope_faults: Any) -> None:
    async with poolscope_faults.database_away(client.app[SCOPE]):
        answer = await client.get("/notes")
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
    assert (await client.get("/notes")).status == 200


async def test_a_query_that_takes_too_long_is_a_504(client: Client, poolscope_faults: Any) -> None:
    async with poolscope_faults.statement_timeouts(client.app[SCOPE]):
        assert (await client.get("/notes")).status == 504
    assert (await client.get("/notes")).status == 200


async def test_a_pool_that_is_exhausted_is_a_503(client: Client, poolscope_faults: Any) -> None:
    async with poolscope_faults.exhausted(client.app[SCOPE], acquire_timeout=0.1):
        assert (await client.get("/notes")).status == 503
