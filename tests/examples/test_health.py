"""The examples of health routes, in docs and as a script, do what they say. (It runs as one beside the others.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.contrib.test_health import becomes, probe
from tests.kit.documents import ROOT, blocks
from tests.kit.following import follow
from tests.kit.wire import wired

from .test_examples import load

if TYPE_CHECKING:
    from tests.conftest import Database, Serve

pytestmark = pytest.mark.usefixtures("poolscope_audit")


async def test_health(dsn: str, serve: Serve, database: Database) -> None:
    """Its routes answer, and reports that are away are told on their own path, not to the balancer."""
    with wired(database) as wire:
        wire.refuse()
        async with serve(load("health").make_app(dsn, wire.dsn)) as served:
            for path in ("/readyz", "/livez", "/startupz"):
                assert (await probe(served, path)).status == 200
            assert (await becomes(served, 503, "/readyz/reports")).body["pools"].keys() == {"reports"}
            assert await served.status("/report") == 503
            wire.accept()
            assert await served.get("/") == (200, f'"{database.sql("SELECT current_database()")[0][0]}"')


async def test_the_block_in_the_document(dsn: str, serve: Serve, database: Database) -> None:
    """The code in docs/health.md runs, and does what its comment says."""
    [block] = blocks((ROOT / "docs" / "health.md").read_text(), "python")
    app = web.Application()
    context: dict[str, Any] = {"__name__": "document", "app": app, "poolscope": poolscope}
    exec(block.body.replace("postgresql://localhost/app", dsn).replace("postgresql://replica/app", dsn), context)
    async with serve(app) as served:
        for step in (block.how or "").split("; "):
            await follow(step, served, context, database)
