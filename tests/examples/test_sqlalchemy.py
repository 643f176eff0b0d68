"""The example of SQLAlchemy Core does what it says. (It runs as a script beside the others.)"""

from __future__ import annotations

import datetime as dt
import enum
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from .test_examples import load

if TYPE_CHECKING:
    from tests.conftest import Database, Serve

pytestmark = pytest.mark.usefixtures("poolscope_audit")


async def test_sqlalchemy_core(dsn: str, serve: Serve, database: Database) -> None:
    """Conditions as the request has them, an upsert, values with every dangerous character, all in one pool."""
    example = load("sqlalchemy_core")
    app = example.make_app(dsn)
    titles = {"Emma": 1815, "Persuasion": 1818, "50% of 'it'; --": 1818, "%(year)s": 1900, "50 ways": 1900}
    async with serve(app) as served:

        async def add(title: str, year: int) -> Any:
            async with served.client.post(served.url, data={"title": title, "year": str(year)}) as response:
                assert response.status == 201, await response.text()
                return (await response.json())["id"]

        numbers = {title: await add(title, year) for title, year in titles.items()}
        assert await add("Emma", 1816) == numbers["Emma"]  # the same row, changed
        assert len(json.loads((await served.get("/"))[1])) == len(titles)
        found = json.loads((await served.get(params=[("year", "1816"), ("year", "1818"), ("year", "x")]))[1])
        assert [title for title, *_ in found] == sorted(["Emma", "Persuasion", "50% of 'it'; --"])
        assert {json.dumps(extra) for *_, extra in found} == {'{"from": "127.0.0.1"}'}
        [[title, *_]] = json.loads((await served.get(params={"title": "50%"}))[1])
        assert title == "50% of 'it'; --"  # and not '50 ways'
        assert len(database.backends()) == app[example.SCOPE].stats().size  # SQLAlchemy has opened none of its own
    assert database.sql("SELECT count(*) FROM poolscope_books") == [(len(titles),)]


async def test_a_statement_and_the_values_for_it(dsn: str, make_scope: Any) -> None:
    """Values of Core's own types, in an IN as well, reach the server as its engine would send them."""
    sql = load("sqlalchemy_core").sql

    class Colour(enum.Enum):
        RED = "r"
        BLUE = "b"

    day, number = dt.date(2026, 2, 28), uuid.UUID(int=5)
    values = (
        sa.literal({"a": [1, None]}, JSONB),
        sa.literal(Colour.RED, sa.Enum(Colour, native_enum=False)),
        sa.literal(day),
        sa.literal(number, sa.Uuid),
        sa.literal([1, 2], ARRAY(sa.Integer)),
        sa.literal_column("'5%'"),
    )
    async with make_scope() as scope:
        row = await scope.fetchrow(*sql(sa.select(*values)))
        assert [*row[:3], str(row[3]), *row[4:]] == [{"a": [1, None]}, "RED", day, str(number), [1, 2], "5%"]
        colour = sa.column("c", sa.Enum(Colour, native_enum=False))
        known = sa.select(colour).select_from(sa.text("(VALUES ('RED'), ('BLUE'), ('GREEN')) AS x (c)"))
        assert len(await scope.fetch(*sql(known.where(colour.in_(Colour))))) == 2
        assert await scope.fetch(*sql(known.where(colour.in_([])))) == []
        doubled = sa.select(sa.bindparam("n", type_=sa.Integer) * 2)
        assert [await scope.fetchval(*sql(doubled, n=n)) for n in (1, 21)] == [2, 42]
        with pytest.raises(sa.exc.InvalidRequestError):
            sql(doubled.where(sa.bindparam("missing", required=True) == 1), n=1)


def test_what_only_an_engine_does_is_refused() -> None:
    """A default that Python computes is an error that says so, not a NULL."""
    sql = load("sqlalchemy_core").sql
    table = sa.Table(
        "x", sa.MetaData(), sa.Column("a", sa.Integer), sa.Column("b", sa.Text, default="x", onupdate=lambda: "y")
    )
    for statement in (sa.insert(table).values(a=1), sa.update(table).values(a=1)):
        with pytest.raises(TypeError, match="server_default"):
            sql(statement)
    assert sql(sa.insert(table).values(a=1, b="z"))[1] == {"a": 1, "b": "z"}
