"""A service that gets into real trouble, and its page in a real browser. Needs Chromium and playwright."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import sampler
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from tests.conftest import DEADLINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from playwright.async_api import Browser, Page

    from tests.conftest import Served

SOON = 4 * DEADLINE * 1000
"""Milliseconds for a browser on a machine that has other work to do."""

SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    const at = ({ x, y, width, height }) => [x, y, width, height].map(Math.round).join(" ");
    const name = (node) => node?.id || node?.className || node?.parentElement?.className || node?.nodeName;
    const where = entry.sources.map((it) => `${name(it.node)}: ${at(it.previousRect)} -> ${at(it.currentRect)}`);
    window.shifts.push([entry.value, where]);
  }
}).observe({ type: "layout-shift", buffered: true });
"""


class Shop:
    """A service whose handler holds its connection until ``go``, and clients for it."""

    def __init__(self, dsn: str, **settings: Any) -> None:
        self.go = asyncio.Event()
        self.web = web.Application()
        settings = {"maxsize": 4, "acquire_timeout": 30.0, "drain_grace": 30.0, "drain_timeout": 40.0, **settings}
        self.scope = poolscope.setup(self.web, dsn, acquire="eager", **settings)
        self.web.router.add_get("/quick", self.quick)
        self.web.router.add_get("/hold", self.hold)
        self.tasks: list[asyncio.Task[int]] = []

    async def quick(self, request: web.Request) -> web.Response:
        await request["db"].fetchval("SELECT pg_sleep(0.002)")
        return web.Response()

    async def hold(self, request: web.Request) -> web.Response:
        await self.go.wait()
        return web.Response()

    def hold_connections(self, served: Served, count: int, **headers: str) -> None:
        self.go.clear()
        self.tasks += [asyncio.create_task(served.status("/hold", headers=headers)) for _ in range(count)]

    async def let_go(self) -> list[int]:
        self.go.set()
        tasks, self.tasks = self.tasks, []
        return list(await asyncio.gather(*tasks))

    @contextlib.asynccontextmanager
    async def busy(self, served: Served) -> AsyncIterator[None]:
        """Three clients that ask all the time."""

        async def ask() -> None:
            while True:
                await served.status("/quick")

        clients = [asyncio.create_task(ask()) for _ in range(3)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


class Watched:
    """A page, and what it did that it must not do."""

    def __init__(self, page: Page, served: Served) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("console", lambda message: self.wrong.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        own = f"{served.url}"
        page.on("request", lambda request: None if request.url.startswith(own) else self.wrong.append(request.url))

    async def becomes(self, kind: str) -> tuple[str, str]:
        """Wait for a headline of this kind; what it says and advises."""
        await self.page.wait_for_selector(f"#verdict[data-kind='{kind}']", timeout=SOON)
        return await self.page.inner_text("#headline"), await self.page.inner_text("#advice")

    async def shifts(self) -> list[str]:
        """What has moved; not the lines in the headline's own box, whose size is fixed."""
        told = [where for _, moved in await self.page.evaluate("window.shifts") for where in moved]
        return [where for where in told if not where.startswith(("headline:", "advice:"))]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    from playwright.async_api import async_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "these tests need Chromium: apt-get install chromium"
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield found
        await found.close()


@pytest.fixture
def look(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``await look(served, width=360)``: the page, opened in a window of its own."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.1)

    async def opened(served: Served, *, width: int = 1280, height: int = 900, **options: Any) -> Watched:
        context = await browser.new_context(viewport={"width": width, "height": height}, **options)
        page = await context.new_page()
        await page.add_init_script(SHIFTS)
        watched = Watched(page, served)
        await page.goto(f"{served.url}/_pool/")
        await page.wait_for_selector("#link[data-link='live']", timeout=SOON)
        return watched

    return opened


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, to be stopped and started."""
    with EmbeddedPostgres(tcp=True) as server:
        yield server
