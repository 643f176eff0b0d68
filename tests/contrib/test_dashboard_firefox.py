"""The page in a real Firefox. Needs the system package firefox-esr, or Firefox."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from aiohttp_poolscope.contrib.dashboard import sampler, setup_dashboard

from .dashboard_browser import SOON, Shop
from .dashboard_firefox import PROGRAM, Firefox

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve

pytestmark = [
    pytest.mark.system,
    pytest.mark.one_loop,
    pytest.mark.skipif(PROGRAM is None, reason="needs Firefox: firefox-esr of Debian"),
]

KIND = "document.getElementById('verdict').dataset.kind"
TOPS = """
[...document.querySelectorAll("#tiles, #cells, .plot, #leases-scroll, #events-scroll")]
  .map((it) => Math.round(it.getBoundingClientRect().top + scrollY))
"""
OUTSIDE = """
[...document.querySelectorAll("main *")].filter((it) => it.getBoundingClientRect().right > innerWidth + 1)
  .filter((it) => !it.closest(".unseen, thead")).map((it) => it.outerHTML)
"""


async def becomes(browser: Firefox, expression: str, wanted: Any) -> None:
    """Wait until an expression is something in the page."""
    end = time.monotonic() + SOON / 1000
    while (found := await browser.evaluate(expression)) != wanted:
        assert time.monotonic() < end, f"{expression} is {found!r}, not {wanted!r}"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1920, True)])
async def test_firefox_shows_it(
    dsn: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, *, dark: bool
) -> None:
    """In Firefox, too: trouble is shown, nothing jumps or sticks out, markup is text, and the next process is found."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.1)
    hostile = "<img/src=x/onerror=document.title='run'>" + "x" * 80
    shop, after = Shop(dsn), Shop(dsn)
    for each in (shop, after):
        setup_dashboard(each.web, each.scope, allow="loopback")
    async with Firefox.started(tmp_path, dark=dark) as browser:
        async with serve(shop.web) as served:
            await browser.resize(width)
            await browser.open(f"{served.url}/_pool/")
            await becomes(browser, KIND, "healthy")
            await becomes(browser, "document.querySelectorAll('.plot canvas').length", 6)
            before = await browser.evaluate(TOPS)
            shop.hold_connections(served, 9, **{"X-Request-ID": hostile})
            await becomes(browser, KIND, "saturated")
            await becomes(browser, "document.querySelectorAll('#leases tbody tr').length", 4)
            shown = await browser.evaluate("document.querySelector('#leases tbody').textContent")
            assert shown.count(hostile) == 4
            assert await browser.evaluate(OUTSIDE) == []
            assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert await browser.evaluate("document.querySelectorAll('main img').length") == 0
            dark_page = "matchMedia('(prefers-color-scheme: dark)').matches"
            assert await browser.evaluate(dark_page) is dark
            assert await browser.evaluate(TOPS) == before
            assert await shop.let_go() == [200] * 9
        await becomes(browser, KIND, "lost")
        assert await browser.evaluate(TOPS) == before
        runner = web.AppRunner(after.web)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", served.port).start()
        await becomes(browser, KIND, "healthy")
        await becomes(browser, "document.getElementById('link').dataset.link", "live")
        assert await browser.evaluate(TOPS) == before
        assert await browser.evaluate("document.title") != "run"
        assert browser.wrong == []
        await runner.cleanup()
