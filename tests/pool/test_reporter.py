"""What the pool reports: slow statements, and nothing of their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import events as ev
from aiohttp_poolscope import logs

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
    assert "pool 'db': a statement of GET /slow/{what} (request tortoise) took 0." in said[0]
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
