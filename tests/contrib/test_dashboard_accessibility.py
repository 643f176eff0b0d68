"""The page by axe-core and by the accessibility tree. Needs Chromium, playwright and axe-playwright-python."""

# ruff: noqa: F811 - fixtures are found by their names

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import setup_dashboard
from tests.conftest import until

from .dashboard_browser import SOON, Shop, Watched, browser, look, server  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
    from tests.conftest import Audit, Serve

pytestmark = [pytest.mark.system, pytest.mark.one_loop]


async def violations(watched: Watched) -> list[str]:
    """What axe-core, which comes with the package, has to say of the page as it is now; by all of its rules."""
    from axe_playwright_python.async_playwright import Axe

    everything = {
        "resultTypes": ["violations"],
        "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    }
    await watched.page.wait_for_timeout(400)  # the colours of the headline fade into each other for so long
    found = (await Axe().run(watched.page, options=everything)).response
    assert len(found["passes"]) > 20  # it has looked
    return [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]


async def test_axe_finds_nothing(
    server: EmbeddedPostgres, serve: Serve, look: Callable[..., Any], audit: Audit
) -> None:
    """Healthy, saturated, leaked, away, draining or lost, wide by day or narrow by night: axe-core is content."""
    audit.allow_backends = True
    shop = Shop(server.dsn, breaker_failures=2, breaker_reset=0.1, leak_threshold=10.0)
    setup_dashboard(shop.web, shop.scope, allow="loopback")
    found = {}
    async with serve(shop.web, shutdown_timeout=60) as served:
        pages = [await look(served), await look(served, width=360, color_scheme="dark")]

        async def judge(kind: str) -> None:
            for page in pages:
                await page.becomes(kind)
            found[kind] = [each for page in pages for each in await violations(page)]

        await judge("healthy")
        shop.hold_connections(served, 9)
        await judge("saturated")
        await judge("leaked")
        assert await shop.let_go() == [200] * 9
        await asyncio.to_thread(server.stop)
        try:
            async with shop.busy(served):
                await judge("away")
        finally:
            await asyncio.to_thread(server.start)
        async with shop.busy(served):
            await until(lambda: shop.scope.stats().breaker == "closed")
        shop.hold_connections(served, 3)
        await until(lambda: shop.scope.stats().in_use == 3)
        ending = asyncio.create_task(served.runner.cleanup())
        await judge("draining")
        assert await shop.let_go() == [200] * 3
        await ending
        await judge("lost")
        assert found == {kind: [] for kind in ("healthy", "saturated", "leaked", "away", "draining", "lost")}


async def test_names_are_calm(dsn: str, serve: Serve, look: Callable[..., Any]) -> None:
    """What can have the focus keeps its name while numbers change, cells and curves have names, rows have headers."""
    shop = Shop(dsn)
    other = poolscope.setup(shop.web, dsn, key="reports", acquire="lazy")
    setup_dashboard(shop.web, shop.scope, other, allow="loopback")
    changed = "(before) => document.getElementById('headline').innerText !== before"
    async with serve(shop.web) as served:
        watched = await look(served)
        shop.hold_connections(served, 9)
        await watched.becomes("saturated")
        session = await watched.page.context.new_cdp_session(watched.page)
        seen = []
        for _ in range(2):
            before = await watched.page.inner_text("#headline")
            nodes = (await session.send("Accessibility.getFullAXTree"))["nodes"]
            seen.append([(each["role"]["value"], each["name"]["value"]) for each in nodes if not each["ignored"]])
            await watched.page.wait_for_function(changed, arg=before)
        for role, names in {
            "button": ["db : saturated", "reports : healthy"],
            "region": ["How it is", "Now", "Connections", "The last 15 minutes", "Who holds what", "Recent events"],
            "columnheader": ["Held", "Request", "Borrowed at", "At", "What", "About"],
            "group": ["Who holds what", "Recent events"],
        }.items():
            assert [[name for found, name in tree if found == role] for tree in seen] == [names, names]
        images = [name for role, name in seen[1] if role == "image"]
        assert images[0] == "4 places: 4 in use"
        assert [name.partition(":")[0] for name in images[1:]] == [
            "In use", "Waiting", "Borrows per second", "Time waited", "Time held", "Errors",
        ]  # fmt: skip
        await shop.let_go()
