"""What a request is called: its id, and how the server's list of backends shows it."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.request import comment_for, path_of

if TYPE_CHECKING:
    from .conftest import Database, Serve

GENERATED = re.compile("[0-9a-f]{16}")


def request_with(**headers: str) -> web.Request:
    return make_mocked_request("GET", "/", headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("given", ["a", "6f1c-42", "x" * 128, "';DROP--*/"])
def test_an_id_that_is_given(given: str) -> None:
    """Visible ASCII of up to 128 characters is taken as it is."""
    assert poolscope.request_id(request_with(X_Request_ID=given)) == given


@pytest.mark.parametrize("given", ["", " ", "two words", "x" * 129, "tab\there", "größe"])
def test_an_id_that_cannot_be_shown(given: str) -> None:
    """Another one is made for it, and stays."""
    request = request_with(X_Request_ID=given)
    made = poolscope.request_id(request)
    assert GENERATED.fullmatch(made)
    assert poolscope.request_id(request) == made


def test_made_ids_differ() -> None:
    """Each request has its own."""
    assert len({poolscope.request_id(request_with()) for _ in range(1000)}) == 1000


async def activity(dsn: str, serve: Serve, database: Database, tag: str, **headers: str) -> tuple[str, str]:
    """application_name and query of the backend that works for a request."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, request_tag=tag, application_name="the app")

    async def handler(request: web.Request) -> web.Response:
        sql = "SELECT application_name, query FROM pg_stat_activity WHERE pid = pg_backend_pid() AND %s = '100%%'"
        name, query = await request["db"].fetchrow(sql, ("100%",))
        return web.json_response([name, query])

    app.router.add_get("/users/{id}", handler)
    async with serve(app) as served:
        async with served.client.get(served.url / "users/1", headers=headers) as answer:
            name, query = await answer.json()
        outside = await scope.fetchrow("SELECT current_setting('application_name'), current_query()")
        assert outside == ("the app", "SELECT current_setting('application_name'), current_query()")
        return name, query


async def test_as_application_name(dsn: str, serve: Serve, database: Database) -> None:
    """With request_tag="application_name" pg_stat_activity names pool and request; outside of requests, the pool."""
    name, _ = await activity(dsn, serve, database, "application_name", **{"X-Request-ID": "x" * 128})
    assert name == "db:" + "x" * 60
    name, query = await activity(dsn, serve, database, "application_name", **{"X-Request-ID": "it's-7"})
    assert name == "db:it's-7"
    assert "/*" not in query


async def test_as_a_comment(dsn: str, serve: Serve, database: Database) -> None:
    """With request_tag="comment" each statement says it, as sqlcommenter does; parameters and % are as they were."""
    parent = f"00-{'4b' * 16}-{'00f0' * 4}-01"
    headers = {"X-Request-ID": "*/;'%s", "traceparent": parent}
    name, query = await activity(dsn, serve, database, "comment", **headers)
    assert name == "the app"
    assert query.endswith(
        f"AND '100%' = '100%' /*request_id='%2A%2F%3B%27%25s',route='%2Fusers%2F%7Bid%7D',traceparent='{parent}'*/"
    )


async def test_not_at_all(dsn: str, serve: Serve, database: Database) -> None:
    """By default nothing of the request reaches the server."""
    name, query = await activity(dsn, serve, database, "off", **{"X-Request-ID": "id-7"})
    assert name == "the app"
    assert "id-7" not in query


async def test_every_kind_of_statement_bears_a_comment(dsn: str, serve: Serve, database: Database) -> None:
    """Transactions, cursors, streams, executemany and composed statements work with one."""
    database.sql("CREATE TABLE t (n int)")
    app = web.Application()
    poolscope.setup(app, dsn, request_tag="comment")

    async def handler(request: web.Request) -> web.Response:
        from psycopg2 import sql

        db = request["db"]
        async with db.transaction() as tx:
            await tx.executemany("INSERT INTO t VALUES (%s)", [(n,) for n in range(250)])
        found = [row async for row in db.stream("SELECT n FROM t WHERE n %% 2 = %s ORDER BY n", (1,), size=50)]
        async with db.cursor() as cursor:
            await cursor.execute("SELECT max(n) FROM t -- to the end of the line")
            (most,) = await cursor.fetchone()
        composed = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("t"))
        return web.json_response([len(found), most, await db.fetchval(composed)])

    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.get() == (200, "[125, 249, 250]")


async def test_the_users_own_hook_comes_after_the_tag(dsn: str, serve: Serve) -> None:
    """on_acquire still runs, and sees the session named."""
    seen: list[Any] = []

    async def hook(db: poolscope.ScopedConnection) -> None:
        seen.append(await db.fetchval("SELECT current_setting('application_name')"))

    app = web.Application()
    poolscope.setup(app, dsn, request_tag="application_name", on_acquire=hook)

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status(headers={"X-Request-ID": "one"}) == 200
    assert seen == ["db:one"]


def test_nothing_outside_of_requests() -> None:
    """No request, no comment."""
    assert comment_for(None, None) == ""


async def test_a_ping_is_nobodys(dsn: str, serve: Serve, database: Database) -> None:
    """What the pool itself asks does not bear the comment of the request before."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, request_tag="comment")

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(await request["db"].fetchval("SELECT 2"))

    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.get() == (200, "2")
        assert "request_id" in database.backends("query")[0][0]
        assert await scope._run.pool.recycler.probe()  # type: ignore[union-attr]
        assert database.backends("query") == [("SELECT 1",)]


def test_a_path_that_no_parser_in_c_lets_through() -> None:
    """aiohttp's parser in Python does: it is shown in ASCII, and breaks no line."""
    request: Any = SimpleNamespace(rel_url=SimpleNamespace(raw_path="/a\u2028b\udcff"))
    assert path_of(request) == r"/a\u2028b\udcff"
