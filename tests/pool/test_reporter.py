"""Slow statements, and what is shown of a statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from psycopg2 import sql

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import events as ev
from aiohttp_poolscope import logs
from aiohttp_poolscope.connection.statements import Batch
from aiohttp_poolscope.sql.masking import LONGEST, shown

if TYPE_CHECKING:
    from tests.conftest import Serve


async def test_slow_statements(dsn: str, serve: Serve, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event and one line for a statement above slow_threshold: its route, its time, and its text without values."""
    monkeypatch.setattr(logs, "_limiter", logs.LogLimiter())
    told: list[Any] = []
    app = web.Application()
    scope = poolscope.setup(app, dsn, slow_threshold=0.3)
    scope.on_event(told.append, ev.SlowStatement)

    async def handler(request: web.Request) -> web.Response:
        await request["db"].fetchval("SELECT 1")
        await request["db"].fetchval("SELECT %s FROM pg_sleep(0.35) -- 0815", ("a secret",))
        return web.Response()

    app.router.add_get("/slow/{what}", handler)
    async with serve(app) as served:
        assert await served.status("slow/down", headers={"X-Request-ID": "tortoise"}) == 200
        with pytest.raises(poolscope.QueryTimeout):
            await scope.fetchval("SELECT pg_sleep(60)", timeout=0.35)
    first, second = told
    assert (first.route, first.request_id, first.statement) == (
        "/slow/{what}",
        "tortoise",
        "SELECT %s FROM pg_sleep(?)",
    )
    assert 0.35 <= first.duration < 5
    assert (second.route, second.statement) == (None, "SELECT pg_sleep(?)")
    said = [record.getMessage() for record in caplog.records if "took" in record.getMessage()]
    assert len(said) == 1  # the second one came within the same second
    assert "a statement of GET /slow/{what} took 0." in said[0]
    assert "secret" not in caplog.text


async def test_without_a_threshold_nothing_is_slow(make_scope: Any) -> None:
    """None, the default: nobody looks at the clock."""
    told: list[Any] = []
    async with make_scope() as scope:
        scope.on_event(told.append, ev.SlowStatement)
        await scope.fetchval("SELECT pg_sleep(0.05)")
    assert told == []


async def test_a_batch_shows_its_statement(make_scope: Any) -> None:
    """executemany sends values in its text; what is shown is the statement it was given."""
    told: list[Any] = []
    async with make_scope(slow_threshold=0.0) as scope:
        scope.on_event(told.append, ev.SlowStatement)
        async with scope.transaction() as tx:
            await tx.execute("CREATE TEMPORARY TABLE t (word text)")
            await tx.executemany("INSERT INTO t VALUES (%s)", [("secret",), ("another",)])
            await tx.execute("DROP TABLE t")
    assert "INSERT INTO t VALUES (%s)" in [event.statement for event in told]
    assert "secret" not in repr(told)


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT t1.a2, %s, %(x)s FROM t1 LIMIT 10", "SELECT t1.a2, %s, %(x)s FROM t1 LIMIT ?"),
        ("SELECT 'it''s', $$body$$, $q$a$q$, $A$ b $a$ c $A$", "SELECT ?, ?, ?, ?"),
        ("SELECT E'\\'x', y", "SELECT E?"),
        ("SELECT E'a' \n 'b\\'secret', y", "SELECT E?"),
        ("SELECT 'standard_conforming_strings=off \\'secret'", "SELECT ?"),
        ("SELECT 4_111, 0xDEAD, 1e10, .731, 1e+20, x%97531", "SELECT ?, ?, ?, ?, ?, x%?"),
        ("/* a /* b /* c */ d */ secret */ SELECT 1", ""),
        ("SELECT a/*x*/b, c/d*e", "SELECT a b, c/d*e"),
        ('SELECT "Column 1" FROM t', 'SELECT "Column 1" FROM t'),
        ("SELECT a -- the password is x\n  FROM /* 4711 */ t", "SELECT a FROM t"),
        ("SELECT 'not closed", "SELECT ?"),
        ("SELECT 1.5, -3, 1e9", "SELECT ?, -?, ?"),
        (b"SELECT 'x'", "<bytes>"),
        (sql.SQL("SELECT {}").format(sql.Literal("x")), "<Composed>"),
        (Batch([b"INSERT INTO t VALUES ('x')"], "INSERT INTO t VALUES (%s)"), "INSERT INTO t VALUES (%s)"),
    ],
)
def test_what_is_shown(statement: Any, text: str) -> None:
    """Literals and comments are left out; names stay."""
    assert shown(statement) == text


def test_long_statements_end() -> None:
    """A literal that the cut goes through is left out, too."""
    text = shown("SELECT " + "a, " * 600 + "'" + "secret" * 1000)
    assert len(text) <= LONGEST + 3
    assert text.endswith("...")
    assert "secret" not in text
