"""The log: levels, structure, and a limit on what may come often."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import events as ev
from aiohttp_poolscope import logs
from aiohttp_poolscope.web import responses

from .conftest import Database, Serve, until

RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (logs, responses):
        monkeypatch.setattr(module, "_limiter", logs.LogLimiter())


def ours(caplog: Any) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "aiohttp_poolscope"]


async def test_a_healthy_day(make_scope: Any, caplog: Any) -> None:
    """Start, work, SQL errors of the user's, expiry and shutdown say nothing above INFO."""
    caplog.set_level(logging.DEBUG)
    async with make_scope(maxsize=2, minsize=2) as scope:
        for _ in range(10):
            await scope.fetchval("SELECT 1")
        with pytest.raises(Exception, match="division"):
            await scope.fetchval("SELECT 1/0")
        scope.expire()
        await until(lambda: scope.stats().opened == 4, "the refill")
    said = ours(caplog)
    assert [record.levelname for record in said if record.levelno > logging.INFO] == []
    assert [record.getMessage() for record in said if record.levelno == logging.INFO] == [
        record.getMessage() for record in said if "drained in" in record.getMessage()
    ]


async def test_records_are_structured(make_scope: Any, caplog: Any) -> None:
    """A record has its event's fields as attributes, the lease as plain values, and hides none of logging's own."""
    async with make_scope(maxsize=1, leak_threshold=0.05) as scope, scope.acquire():
        await until(lambda: scope.stats().leaked)
    (record,) = [record for record in ours(caplog) if record.__dict__.get("event") == "leaked"]
    assert record.levelno == logging.WARNING
    assert record.__dict__["pool"] == "db"
    assert record.__dict__["lease"]["where"].endswith("test_records_are_structured")
    assert "method" not in record.__dict__  # nothing is said of a request where there was none


async def test_refusals_name_their_request(dsn: str, serve: Serve, caplog: Any) -> None:
    """The line about a refusal, the error and its answer all carry the request's id."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, acquire_timeout=0.05)

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get("/things/{id}", handler)
    async with (
        serve(app) as served,
        scope.acquire(),
        served.client.get(served.url / "things/1", headers={"X-Request-ID": "call-7"}) as answer,
    ):
        assert (answer.status, answer.headers["X-Request-ID"]) == (503, "call-7")
    (record,) = [each for each in ours(caplog) if each.__dict__.get("event") == "pool-exhausted"]
    told = record.__dict__
    assert (told["request_id"], told["method"], told["route"]) == ("call-7", "GET", "/things/{id}")


async def test_many_dead_connections_are_one_line(make_scope: Any, caplog: Any, database: Database) -> None:
    """A restart closes hundreds at once: one line a second, which the next one counts up."""
    caplog.set_level(logging.INFO)
    async with make_scope(minsize=5, maxsize=5) as scope:
        await until(lambda: scope.stats().idle == 5)
        database.kill()
        await until(lambda: scope.stats().dead == 5)
        said = [record for record in ours(caplog) if record.__dict__.get("event") == "closed"]
        assert len(said) == 1
        assert logs._limiter.suffix(("db", "closed"), time.monotonic()) is None


def test_how_many_were_left_out() -> None:
    """The next line says it, and counts from there."""
    seldom = logs.LogLimiter()
    calls = (("a", 7.0), ("a", 7.5), ("a", 7.9), ("b", 7.9), ("a", 8.0), ("a", 9.0))
    said = [seldom.suffix(kind, now) for kind, now in calls]
    assert said == ["", None, None, "", " (and 2 more since the last such line)", ""]


def test_no_field_collides_with_the_log() -> None:
    """logging refuses a record whose extra hides one of its own attributes."""
    names = {field.name for kind in ev.KINDS for field in dataclasses.fields(kind)} | {"event"}
    assert names & RESERVED == set()
