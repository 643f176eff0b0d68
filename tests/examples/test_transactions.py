"""The example of transactions does what it says where others are in its way. (Its other tests are in test_examples.)"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from tests.conftest import until

from .test_examples import load

if TYPE_CHECKING:
    from tests.conftest import Database, Serve

pytestmark = pytest.mark.usefixtures("poolscope_audit")


async def test_it_is_tried_again(dsn: str, serve: Serve, database: Database) -> None:
    """A transfer that meets another one is run once more, on what that one has left; its client sees a 200."""
    example = load("transactions")
    app = example.make_app(dsn)
    async with serve(app) as served:
        scope = app[example.SCOPE]
        for jar in ("left", "right"):
            async with served.client.post(served.url / "put", data={"to": jar, "amount": "10"}) as response:
                assert response.status == 200
        other = psycopg2.connect(dsn)
        with other, other.cursor() as cursor:
            cursor.execute("UPDATE poolscope_jars SET coins = 7 WHERE name = 'left'")
            before = scope.stats()
            form = {"from": "left", "to": "right", "amount": "3"}
            moving = asyncio.create_task(served.client.post(served.url / "move", data=form))
            await until(lambda: database.backends("wait_event_type").count(("Lock",)) == 1, "the wait for the other")
            assert scope.stats().in_use == 1  # not two: the handler is lazy
        other.close()
        async with await moving as response:
            assert (response.status, await response.json()) == (200, {"left": 4})
        after = scope.stats()
        assert after.lent - before.lent == 2
        assert after.errors["statement"] - before.errors["statement"] == 1
    assert database.sql("SELECT * FROM poolscope_jars ORDER BY name") == [("left", 4), ("right", 13)]


async def test_the_last_coin_is_spent_once(dsn: str, serve: Serve, database: Database) -> None:
    """Twenty requests for the one coin there is: one gets it, the others are told so, or that it was too busy."""
    example = load("transactions")
    async with serve(example.make_app(dsn)) as served:
        database.sql("INSERT INTO poolscope_jars VALUES ('left', 1), ('right', 0)")

        async def move() -> Any:
            form = {"from": "left", "to": "right", "amount": "1"}
            async with served.client.post(served.url / "move", data=form) as response:
                return response.status

        answers = await asyncio.gather(*(move() for _ in range(20)))
    assert answers.count(200) == 1
    assert {*answers} <= {200, 409, 500, 503}
    assert 409 in answers
    assert database.sql("SELECT * FROM poolscope_jars ORDER BY name") == [("left", 0), ("right", 1)]
