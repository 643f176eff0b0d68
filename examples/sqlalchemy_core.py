"""SQLAlchemy Core writes the statements, request["db"] runs them: no engine, and no second pool.

DATABASE_URL=postgresql://localhost/app python examples/sqlalchemy_core.py    (makes a table; needs sqlalchemy 2)
curl -d title=Emma -d year=1815 http://127.0.0.1:8080/
curl 'http://127.0.0.1:8080/?year=1815&year=1818'
"""

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa
from aiohttp import web
from sqlalchemy.dialects.postgresql import JSONB, insert, psycopg2

import aiohttp_poolscope as poolscope

SCOPE = web.AppKey("scope", poolscope.PoolScope)
DIALECT = psycopg2.dialect()

BOOKS = sa.Table(
    "poolscope_books",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("title", sa.Text, nullable=False, unique=True),
    sa.Column("year", sa.Integer),
    sa.Column("extra", JSONB, nullable=False, server_default="{}"),
)


def sql(statement: sa.ClauseElement, **values: Any) -> tuple[str, dict[str, Any]]:
    """A Core statement as text and parameters: ``await db.fetch(*sql(statement))``. ``values`` are for bindparam().

    Rows come as psycopg2 reads them: numbers, dates and JSON as always, but no Enum or type of your own.
    """
    compiled: Any = statement.compile(dialect=DIALECT)
    if compiled.insert_prefetch or compiled.update_prefetch:
        # SQLAlchemy's engine would call them; here the column would be NULL, and nobody would notice.
        raise TypeError("default= and onupdate= of a column are not run here: use server_default=, or give the value")
    state = compiled.construct_expanded_state(values)  # one parameter for each value of an IN
    types = {name: bound.type.dialect_impl(DIALECT) for name, bound in compiled.binds.items()}
    process = {name: kind.bind_processor(DIALECT) for name, kind in types.items()} | state.processors
    return state.statement, {
        name: process[name](value) if process.get(name) else value for name, value in state.parameters.items()
    }


async def books(request: web.Request) -> web.Response:
    """The condition depends on the request: this is what Core is good at."""
    wanted = sa.select(BOOKS.c.title, BOOKS.c.year, BOOKS.c.extra).order_by(BOOKS.c.title)
    if years := request.query.getall("year", []):
        wanted = wanted.where(BOOKS.c.year.in_([int(year) for year in years if year.isdecimal()]))
    if start := request.query.get("title"):
        wanted = wanted.where(BOOKS.c.title.istartswith(start, autoescape=True))
    return web.json_response([tuple(row) for row in await request["db"].fetch(*sql(wanted))])


@poolscope.transactional
async def add(request: web.Request) -> web.Response:
    form = await request.post()
    new = insert(BOOKS).values(title=form["title"], year=int(str(form["year"])), extra={"from": request.remote})
    same = new.on_conflict_do_update(index_elements=["title"], set_={"year": new.excluded.year})
    number = await request["db"].fetchval(*sql(same.returning(BOOKS.c.id)))
    return web.json_response({"id": number}, status=201)


async def table(app: web.Application) -> AsyncIterator[None]:
    await app[SCOPE].execute(str(sa.schema.CreateTable(BOOKS, if_not_exists=True).compile(dialect=DIALECT)))
    yield


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn)
    app.cleanup_ctx.append(table)  # after the pool's: it can use the pool
    app.add_routes([web.get("/", books), web.post("/", add)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
