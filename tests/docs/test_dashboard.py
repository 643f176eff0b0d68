"""docs/dashboard.md shows a document of the page: a real one has the same fields, with values of the same kinds."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import setup_dashboard
from tests.conftest import until
from tests.kit.documents import ROOT, blocks, names, section, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

PAGE = (ROOT / "docs" / "dashboard.md").read_text()


def shown() -> Any:
    [block] = blocks(PAGE, "json")
    return json.loads(block.body)


async def real(dsn: str, serve: Serve) -> Any:
    """What the page tells of a full pool, just after a request was refused."""
    go = asyncio.Event()

    async def report(request: web.Request) -> web.Response:
        async with request["db"].transaction() as tx:
            await tx.fetchval("SELECT 1")
            await go.wait()
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2, max_waiting=1, processes=4)
    setup_dashboard(app, scope, allow="loopback")
    app.router.add_get("/report", report)
    async with serve(app) as served:
        asked = [asyncio.create_task(served.status("/report", headers={"X-Request-ID": "6f1c-42"})) for _ in range(3)]
        try:
            await until(lambda: (scope.stats().in_use, scope.stats().waiting) == (2, 1), "a full pool")
            assert await served.status("/report", headers={"X-Request-ID": "6f1c-40"}) == 503
            told = json.loads((await served.get("/_pool/state.json"))[1])
        finally:
            go.set()
        assert await asyncio.gather(*asked) == [200] * 3
    return told


def other(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Where two documents differ in their fields, or in the kinds of their values."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        differ = found.keys() - wanted.keys() if "..." not in wanted else set()
        for name in sorted(differ | (wanted.keys() - found.keys() - {"..."})):
            yield f"{path}.{name} is on one side only"
        for name in sorted(wanted.keys() & found.keys()):
            yield from other(wanted[name], found[name], f"{path}.{name}")
    elif isinstance(wanted, list) and isinstance(found, list):
        if not found or not wanted:
            yield f"{path} is empty"
        for each in found:
            yield from other(wanted[0], each, f"{path}[]")
    elif kind(wanted) != kind(found) and found is not None:
        yield f"{path} is {found!r}, not like {wanted!r}"


def kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


async def test_the_document_is_of_this_shape(dsn: str, serve: Serve) -> None:
    """state.json of a full pool has every field that the page shows, and no other; its words are in the table."""
    found = await real(dsn, serve)
    [scope] = found["scopes"]
    scope["events"] = [event for event in scope["events"] if event["kind"] == "refused"]  # the fields of shed
    assert list(other(shown(), found)) == []
    rows = {name: row[1] for row in table(section(PAGE, "state.json")) for name in names(row[0])}
    assert {scope["state"]} <= set(names(rows["state"]))
    assert {slot["state"] for slot in scope["slots"]} <= set(names(rows["slots"]))
    assert f"`{scope['verdict']['kind']}`" in rows["verdict.kind"]
    assert f"`{scope['verdict']['level']}`" in rows["verdict.level"]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda told: told["worker"].pop("pid"), ".worker.pid is on one side only"),
        (lambda told: told["scopes"][0].update(more=1), ".scopes[].more is on one side only"),
        (lambda told: told["scopes"][0]["rates"]["errors"].pop("shed"), ".shed is on one side only"),
        (lambda told: told["scopes"][0]["leases"].clear(), ".leases is empty"),
        (lambda told: told["scopes"][0].update(key=7), ".scopes[].key is 7, not like 'db'"),
    ],
)
def test_the_comparison_can_fail(spoil: Any, complaint: str) -> None:
    """A document with a field more or less, or another kind of value, is found out."""
    told = shown()
    assert list(other(shown(), told)) == []
    spoil(told)
    assert any(complaint in each for each in other(shown(), told))
