"""The page in a real browser, beside a service that gets into real trouble. Needs Chromium and playwright."""

# ruff: noqa: F811 - fixtures are found by their names

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import setup_dashboard
from tests.conftest import DEADLINE, until

from .dashboard_browser import SOON, Shop, browser, look, server  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
    from tests.conftest import Audit, Serve

pytestmark = [pytest.mark.system, pytest.mark.one_loop]

CONTRAST = """
(selector) => {
  const light = (text) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll(selector)) {
    let under = element;
    while (/rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(under).backgroundColor)) under = under.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(under).backgroundColor].map(light);
    found.push((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return found;
}
"""


async def test_the_headline_says_how_it_is(
    server: EmbeddedPostgres, serve: Serve, look: Callable[..., Any], audit: Audit
) -> None:
    """Healthy, saturated, away, back and draining: each is said in words with its numbers and the next step."""
    audit.allow_backends = True
    shop = Shop(server.dsn, breaker_failures=2, breaker_reset=0.1)
    setup_dashboard(shop.web, shop.scope, allow="loopback")
    async with serve(shop.web, shutdown_timeout=60) as served:
        watched = await look(served)
        assert await watched.becomes("healthy") == ("Healthy", "Nothing to do.")
        shop.hold_connections(served, 9)
        text, advice = await watched.becomes("saturated")
        assert text.startswith("Saturated: 4 of 4 in use, 5 waiting, the longest for ")
        assert "raise maxsize" in advice
        assert await watched.page.locator("#leases tbody tr").count() == 4
        assert await watched.page.locator(".cell[data-state='lent']:not(.key)").count() == 4
        assert await shop.let_go() == [200] * 9
        await watched.becomes("healthy")
        await asyncio.to_thread(server.stop)
        try:
            await until(lambda: shop.scope.stats().size == 0 or shop.scope.stats().idle)
            async with shop.busy(served):
                async with asyncio.timeout(DEADLINE):
                    text, advice = await watched.becomes("away")
                    while not text.startswith("The database is away: requests have been refused for "):
                        assert "waiting for it" in text  # for a moment, until the breaker has opened
                        await asyncio.sleep(0.05)
                        text, advice = await watched.becomes("away")
                assert "Look whether PostgreSQL runs" in advice
                assert await watched.page.get_attribute("#verdict", "data-level") == "bad"
        finally:
            await asyncio.to_thread(server.start)
        async with shop.busy(served):
            await until(lambda: shop.scope.stats().breaker == "closed")
        shop.hold_connections(served, 3)
        await until(lambda: shop.scope.stats().in_use == 3)
        assert watched.wrong == []
        ending = asyncio.create_task(served.runner.cleanup())
        text, advice = await watched.becomes("draining")
        assert (text, "New work is refused" in advice) == ("Draining: 3 connections to wait for", True)
        assert await shop.let_go() == [200] * 3
        await ending
        assert (await watched.becomes("lost"))[0] == "The process has ended"


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
async def test_nothing_jumps_or_sticks_out(dsn: str, serve: Serve, look: Callable[..., Any], width: int) -> None:
    """From a phone to a wide screen: no sideways scrolling, and nothing moves as numbers and headlines change."""
    shop = Shop(dsn)
    setup_dashboard(shop.web, shop.scope, allow="loopback")
    async with serve(shop.web) as served:
        watched = await look(served, width=width)
        async with shop.busy(served):
            await watched.becomes("healthy")
            shop.hold_connections(served, 30, **{"X-Request-ID": "x" * 128})
            await watched.becomes("saturated")
            await watched.page.wait_for_function(
                "document.querySelectorAll('#leases tbody tr').length === 4", timeout=SOON
            )
            sizes = await watched.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            await shop.let_go()
        await watched.becomes("healthy")
        assert sizes[0] <= sizes[1]
        assert await watched.shifts() == []
        assert watched.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_read(dsn: str, serve: Serve, look: Callable[..., Any], scheme: str) -> None:
    """By day and by night every text has a contrast of 4.5 to what is under it, in good and in bad times."""
    shop = Shop(dsn, leak_threshold=0.2)
    setup_dashboard(shop.web, shop.scope, allow="loopback")
    async with serve(shop.web) as served:
        watched = await look(served, color_scheme=scheme)
        background = await watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) is (scheme == "dark")
        texts = "h1, h2, .worker, #link-text, .verdict p, dt, dd, .legend li, figcaption span, td span, th, footer p, a"
        for state in ("healthy", "leaked"):
            if state == "leaked":
                shop.hold_connections(served, 6)
            await watched.becomes(state)
            await watched.page.wait_for_timeout(400)  # the colours of the headline fade into each other for so long
            contrasts = await watched.page.evaluate(CONTRAST, texts)
            assert len(contrasts) > 40
            assert min(contrasts) >= 4.5
        await shop.let_go()


async def test_by_keyboard_and_by_ear(dsn: str, serve: Serve, look: Callable[..., Any]) -> None:
    """Tab reaches all there is to use, in the order of reading; a screen reader is told of changes, not of seconds."""
    app = web.Application()
    scopes = [poolscope.setup(app, dsn, key=key, maxsize=2) for key in ("db", "reports")]
    setup_dashboard(app, *scopes, allow="loopback")
    async with serve(app) as served:
        watched = await look(served)
        page = watched.page
        order = []
        for _ in range(6):
            await page.keyboard.press("Tab")
            order.append(
                await page.evaluate("document.activeElement.id || document.activeElement.textContent.split(':')[0]")
            )
        assert order == ["Skip to how it is", "db", "reports", "leases-scroll", "events-scroll", "state.json"]
        for landmark in ("banner", "main", "contentinfo", "navigation", "status"):
            assert await page.get_by_role(landmark).count() == 1, landmark
        headings = await page.evaluate("[...document.querySelectorAll('h1, h2')].map((h) => h.textContent)")
        assert headings[:2] == ["Connection pools", "Healthy"]
        assert await page.get_by_role("table").count() == 2
        assert await page.locator("table caption").count() == 2
        assert await page.get_by_role("img", name="2 places: 1 idle, 1 empty").count() == 1
        assert await page.get_by_role("img", name="In use: in use 0, at most 0").count() == 1

        await page.evaluate(
            "window.said = []; new MutationObserver(() => said.push(document.getElementById('announce').textContent))"
            ".observe(document.getElementById('announce'), { childList: true, characterData: true, subtree: true })"
        )
        held = [await scopes[1].acquire() for _ in range(2)]
        waiting = [asyncio.create_task(scopes[1].fetchval("SELECT 1")) for _ in range(2)]
        await watched.becomes("saturated")
        first = await page.inner_text("#headline")
        await page.wait_for_function("(first) => document.getElementById('headline').innerText !== first", arg=first)
        said = await page.evaluate("said")
        assert len(said) == 1
        assert said[0].startswith("reports: Saturated: 2 of 2 in use, 2 waiting")
        assert first.startswith("reports: Saturated")
        await page.get_by_role("button", name="reports").press("Enter")
        assert await page.inner_text("#tiles .big >> nth=0") == "2 of 2"
        assert page.url.endswith("#reports")
        for db in held:
            db.release()
        assert await asyncio.gather(*waiting) == [1, 1]
        assert watched.wrong == []


async def test_hostile_names_are_text(dsn: str, serve: Serve, look: Callable[..., Any]) -> None:
    """A request id made of markup is shown as it is: it makes no element, and runs nothing."""
    hostile = "<img/src=x/onerror=alert(1)><script>alert(2)</script>"
    shop = Shop(dsn, leak_threshold=0.1)
    setup_dashboard(shop.web, shop.scope, allow="loopback")
    async with serve(shop.web) as served:
        shop.hold_connections(served, 1, **{"X-Request-ID": hostile})
        await until(lambda: shop.scope.stats().leaked == 1)
        watched = await look(served)
        watched.page.on("dialog", lambda dialog: watched.wrong.append(dialog.message))
        await watched.becomes("leaked")
        assert hostile in await watched.page.inner_text("#leases")
        assert hostile in await watched.page.inner_text("#events")
        assert await watched.page.locator("main img, main script").count() == 0
        assert watched.wrong == []
        await shop.let_go()


async def test_who_does_not_look_asks_for_nothing(dsn: str, serve: Serve, look: Callable[..., Any]) -> None:
    """A tab in the background has no stream; back in front, it has what it missed. Motion can be done without."""
    shop = Shop(dsn)
    setup_dashboard(shop.web, shop.scope, allow="loopback")
    (owner,) = [it.__self__ for it in shop.web.on_shutdown if hasattr(getattr(it, "__self__", None), "wake")]
    async with serve(shop.web) as served:
        watched = await look(served, reduced_motion="reduce")
        assert (
            await watched.page.evaluate(
                "getComputedStyle(document.querySelector('.cell'), '::before').transitionDuration"
            )
            == "0s"
        )
        assert len(owner) == 1
        hide = (
            "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')) }"
        )
        await watched.page.evaluate(hide, True)
        await until(lambda: len(owner) == 0)
        await watched.page.evaluate(hide, False)
        await until(lambda: len(owner) == 1)
        assert watched.wrong == []
