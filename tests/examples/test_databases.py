"""The example of several databases does what it says. (It runs as a script beside the others.)"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.conftest import DATABASE, Database, Serve, Served

from .test_examples import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp_poolscope.contrib.testing.faults import Faults

pytestmark = pytest.mark.usefixtures("poolscope_audit")

ORDERS = {"1": "hello", "2": "world"}


@pytest.fixture
def archive(database: Database) -> Iterator[Database]:
    """A second database."""
    name = f"{DATABASE}_archive"
    database.sql(f"CREATE DATABASE {name}")
    dsn = database.dsn.replace(f"/{DATABASE}", f"/{name}")
    observer = psycopg2.connect(dsn)
    observer.autocommit = True
    yield Database(dsn, observer)
    observer.close()
    database.sql(f"DROP DATABASE {name} WITH (FORCE)")


async def post(served: Served, path: str = "", **form: str) -> int:
    async with served.client.post(served.url / path, data=form) as response:
        return response.status


async def test_two_databases(dsn: str, serve: Serve, database: Database, archive: Database) -> None:
    """Each has its own tables; an order moves from one to the other, once, whoever asks how often."""
    example = load("several_databases")
    app = example.make_app(dsn, archive.dsn)
    async with serve(app) as served:
        assert [await post(served, text=text) for text in ORDERS.values()] == [201, 201]
        assert json.loads((await served.get())[1]) == ORDERS
        lent = app[example.ARCHIVE].stats().lent
        assert await served.status() == 200
        assert app[example.ARCHIVE].stats().lent == lent  # not borrowed by who does not use it
        assert [await post(served, "1/archive"), await post(served, "1/archive")] == [204, 404]
        assert json.loads((await served.get())[1]) == {"2": "world"}
    assert archive.sql("SELECT * FROM poolscope_archive") == [(1, "hello")]
    for one, other in ((database, "poolscope_archive"), (archive, "poolscope_orders")):
        assert one.sql("SELECT to_regclass(%s)", other) == [(None,)]


async def test_the_second_is_away(
    dsn: str, serve: Serve, database: Database, archive: Database, poolscope_faults: Faults
) -> None:
    """Who does not need it is served; who does gets 503, nothing is lost in between, and then all is as before."""
    example = load("several_databases")
    app = example.make_app(dsn, archive.dsn)
    async with serve(app) as served:
        assert await post(served, text="hello") == 201
        async with poolscope_faults.database_away(app[example.ARCHIVE]):
            for _ in range(7):  # through the closed and the open breaker
                assert await post(served, "1/archive") == 503
            assert json.loads((await served.get())[1]) == {"1": "hello"}
            assert app[example.DB].stats().dead == 0
            assert database.sql("SELECT count(*) FROM poolscope_orders") == [(1,)]
        assert await post(served, "1/archive") == 204
    assert archive.sql("SELECT * FROM poolscope_archive") == [(1, "hello")]
    assert database.sql("SELECT count(*) FROM poolscope_orders") == [(0,)]


async def test_an_end_in_between(dsn: str, serve: Serve, database: Database, archive: Database) -> None:
    """If the second step fails after the first is done, the order is in both; asked again, it is in one."""
    example = load("several_databases")
    async with serve(example.make_app(dsn, archive.dsn)) as served:
        assert await post(served, text="hello") == 201
        database.sql(
            "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';"
            "CREATE TRIGGER stop BEFORE DELETE ON poolscope_orders EXECUTE FUNCTION stop()"
        )
        assert await post(served, "1/archive") == 500
        assert database.sql("SELECT count(*) FROM poolscope_orders") == [(1,)]
        assert archive.sql("SELECT count(*) FROM poolscope_archive") == [(1,)]
        database.sql("DROP TRIGGER stop ON poolscope_orders")
        assert await post(served, "1/archive") == 204
    assert database.sql("SELECT count(*) FROM poolscope_orders") == [(0,)]
    assert archive.sql("SELECT * FROM poolscope_archive") == [(1, "hello")]
