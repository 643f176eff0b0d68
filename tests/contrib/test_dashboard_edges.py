"""The page in a real browser where something is odd: clocks, restarts, numbers. Needs Chromium and playwright."""

# ruff: noqa: F811 - fixtures are found by their names

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from aiohttp_poolscope.contrib.dashboard import setup_dashboard
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from tests.conftest import until

from .dashboard_browser import SOON, Shop, browser, look  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import Audit, Serve

pytestmark = [pytest.mark.system, pytest.mark.one_loop]

SAID = """
window.said = [];
new MutationObserver(() => said.push(document.getElementById("announce").textContent))
  .observe(document.getElementById("announce"), { childList: true, characterData: true, subtree: true });
"""

TOLD = """
(seen) => {
  const told = [];
  [announced, latest, lasted] = [{ matter: "ok healthy", rank: 0 }, "ok healthy", 1];
  seen.forEach((matter, i) => {
    document.getElementById("announce").textContent = "";
    announce(matter, matter.split(" ")[0], matter);
    const text = document.getElementById("announce").textContent;
    if (text) told.push([i, text]);
  });
  return told;
}
"""
"""What is announced of these matters, one a message, and at which message."""

FITS = "[...document.querySelectorAll('.big')].every((it) => it.scrollWidth <= it.clientWidth)"


def paged(dsn: str, **settings: Any) -> Shop:
    shop = Shop(dsn, **settings)
    setup_dashboard(shop.web, shop.scope, allow="loopback")
    return shop


@contextlib.asynccontextmanager
async def at(port: int, app: web.Application) -> AsyncIterator[None]:
    """An application at the port of one that has ended."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield
    finally:
        await runner.cleanup()


async def test_a_restart_begins_anew(dsn: str, serve: Serve, look: Callable[..., Any]) -> None:
    """The next service, though its process has the same number, has no past of another's; loss and return are said."""
    before, after = paged(dsn), paged(dsn)
    async with serve(before.web) as served:
        watched = await look(served)
        await watched.becomes("healthy")
        await watched.page.evaluate(SAID)
    await watched.becomes("lost")
    restarted = time.time()
    async with at(served.port, after.web):
        await watched.becomes("healthy")
        assert await watched.page.evaluate("history.get('db')[0][0]") >= restarted - 1
        await watched.page.wait_for_function("() => said.at(-1) === 'Healthy.'", timeout=SOON)
        *_, lost, _ = await watched.page.evaluate("said")
        assert lost.startswith("The process has ended. What is below was so at ")


async def test_no_chatter(dsn: str, serve: Serve, look: Callable[..., Any]) -> None:
    """A screen reader is told at once of what is worse, of all else when it has lasted, and of nothing twice."""
    shop = paged(dsn)
    async with serve(shop.web) as served:
        watched = await look(served)
        await watched.page.evaluate("source.close()")
        limit = ["warn saturated", "warn refused"] * 5  # in and out of it each second
        seen = ["ok healthy", *limit, "ok healthy", *limit, *["ok healthy"] * 4, "warn dead", "bad away", "warn dead"]
        told = await watched.page.evaluate(TOLD, seen)
        assert [tuple(each) for each in told] == [
            (1, "warn saturated"),
            (24, "ok healthy"),
            (26, "warn dead"),
            (27, "bad away"),
        ]


@pytest.mark.parametrize(("skew", "words"), [(7200, "2 h behind"), (-7200, "2 h ahead of")])
async def test_clocks_that_differ(dsn: str, serve: Serve, look: Callable[..., Any], skew: int, words: str) -> None:
    """A browser whose clock is wrong shows the times of the service, and says that they are."""
    shop = paged(dsn)
    async with serve(shop.web) as served:
        watched = await look(served)
        assert await watched.page.inner_text("#times") == (
            "Times are by the clock of the process, in the time zone of this browser."
        )
        await watched.page.evaluate("(skew) => { const now = Date.now; Date.now = () => now() + skew * 1000 }", skew)
        await watched.page.wait_for_function("(words) => times.textContent.includes(words)", arg=words, timeout=SOON)
        ended = time.time()
    _, advice = await watched.becomes("lost")
    told = await watched.page.evaluate("(at) => [clock(at - 2), clock(at - 1), clock(at), clock(at + 1)]", ended)
    assert any(f"was so at {each}." in advice for each in told)


async def test_without_curves(dsn: str, serve: Serve, look: Callable[..., Any], browser: Any) -> None:
    """Where the curves cannot be drawn, the page says so, and shows all else."""
    shop = paged(dsn)
    async with serve(shop.web) as served:
        page = await browser.new_page()
        await page.route("**/uplot.min.js", lambda route: route.abort())
        await page.goto(f"{served.url}/_pool/")
        shop.hold_connections(served, 9)
        await page.wait_for_selector("#verdict[data-kind='saturated']", timeout=SOON)
        await page.wait_for_selector("#link[data-link='live']", timeout=SOON)
        assert await page.inner_text("#curves") == "This browser cannot draw the curves."
        assert await page.locator("#leases tbody tr").count() == 4
        await shop.let_go()


@pytest.mark.parametrize("width", [360, 1280])
async def test_large_letters(dsn: str, serve: Serve, look: Callable[..., Any], width: int) -> None:
    """With letters of twice the size no number is cut, and nothing sticks out."""
    shop = paged(dsn)
    async with serve(shop.web) as served:
        watched = await look(served, width=width)
        await watched.page.evaluate("document.documentElement.style.fontSize = '200%'")
        shop.hold_connections(served, 9, **{"X-Request-ID": "x" * 128})
        await watched.becomes("saturated")
        assert await watched.page.inner_text("#tiles .big >> nth=0") == "4 of 4"
        assert await watched.page.evaluate(FITS)
        assert await watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await shop.let_go()


async def test_many_of_all(serve: Serve, look: Callable[..., Any], audit: Audit) -> None:
    """200 connections, 300 requests behind them, 64 processes, hostile names: a narrow page keeps its shape."""
    audit.allow_backends = True
    key = "<img src=x onerror=alert(1)>" + "k" * 20
    with EmbeddedPostgres(settings={"max_connections": 220}) as server:
        shop = paged(server.dsn, key=key, maxsize=200, processes=64, queue_target=None, leak_threshold=2.0)
        released = asyncio.Event()

        async def hold() -> None:
            async with shop.scope.acquire():
                await released.wait()

        async with serve(shop.web) as served:
            holders = [asyncio.create_task(hold(), name=f"<svg/onload=alert({i})>" + "n" * 200) for i in range(500)]
            await until(lambda: shop.scope.stats().in_use == 200, deadline=60)
            watched = await look(served, width=360)
            watched.page.on("dialog", lambda dialog: watched.wrong.append(dialog.message))
            text, _ = await watched.becomes("leaked")
            assert "<svg/onload=alert(" in text
            assert await watched.page.locator("#leases tbody tr").count() == 100
            assert await watched.page.inner_text("#leases-beyond") == "and 100 more, which state.json has"
            assert "one of 64" in await watched.page.inner_text("#worker")
            assert await watched.page.evaluate(FITS)
            assert await watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert await watched.page.locator("main img, main script, main svg").count() == 0
            assert watched.wrong == []
            released.set()
            await asyncio.gather(*holders)
