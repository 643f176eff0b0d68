"""The examples of metrics, in docs and as a script, do what they say. (It runs as one beside the others.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

import aiohttp_poolscope as poolscope
from tests.contrib.test_prometheus import scrape, value
from tests.kit.documents import ROOT, blocks
from tests.kit.following import follow

from .test_examples import load

if TYPE_CHECKING:
    from tests.conftest import Database, Serve

pytestmark = pytest.mark.usefixtures("poolscope_audit")


async def test_metrics(dsn: str, serve: Serve) -> None:
    """It tells the pool's numbers beside its own."""
    example = load("metrics")
    try:
        async with serve(example.make_app(dsn)) as served:
            assert (await served.get("/"))[1].startswith("hello, ")
            numbers = await scrape(served)
            assert value(numbers, "poolscope_borrows_total", outcome="lent") == 1
            assert numbers["greetings_total", frozenset()] == 1
    finally:
        REGISTRY.unregister(example.GREETINGS)


async def test_the_block_in_the_document(dsn: str, serve: Serve, database: Database) -> None:
    """The code in docs/prometheus.md runs, and does what its comment says."""
    [block] = blocks((ROOT / "docs" / "prometheus.md").read_text(), "python")
    app = web.Application()
    context: dict[str, Any] = {"__name__": "document", "app": app, "poolscope": poolscope}
    exec(block.body.replace("postgresql://localhost/app", dsn), context)
    async with serve(app) as served:
        for step in (block.how or "").split("; "):
            await follow(step, served, context, database)
