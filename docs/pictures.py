"""The pictures of the page in docs/images, from a real service that is driven into real trouble.

    python docs/pictures.py            four minutes; needs the extra `demo`, playwright, pillow and Chromium

``--chromium`` names the browser's program, ``--only healthy saturated`` takes some of the pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError, ClientSession, web
from PIL import Image
from playwright.async_api import async_playwright

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.cli.arrivals import arrivals
from aiohttp_poolscope.contrib.dashboard import setup_dashboard
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page

IMAGES = Path(__file__).parent / "images"
WIDE = (1280, 940)
NARROW = (360, 800)
LARGEST = 150_000
STATES = ("healthy", "leak", "saturated", "away", "draining")


async def user(request: web.Request) -> web.Response:
    await request["db"].fetchval("SELECT pg_sleep(%s)", (random.uniform(0.002, 0.03),))
    return web.Response()


async def order(request: web.Request) -> web.Response:
    async with request["db"].transaction() as tx:
        await tx.fetchval("SELECT pg_sleep(%s)", (random.uniform(0.01, 0.06),))
    return web.Response()


async def report(request: web.Request) -> web.Response:
    await request["db"].fetchval("SELECT pg_sleep(%s)", (float(request.query["seconds"]),))
    return web.Response()


async def export(request: web.Request) -> web.Response:
    await request["db"].fetchval("SELECT count(*) FROM pg_class")
    await asyncio.sleep(float(request.query["seconds"]))  # to another service, with the connection in hand
    return web.Response()


async def broken(request: web.Request) -> web.Response:
    await request["db"].execute("INSERT INTO orders (customer) VALUES (%s)", (1,))
    return web.Response()


class Service:
    """The service, and clients for it."""

    def __init__(self, dsn: str) -> None:
        self.app = web.Application()
        self.scope = poolscope.setup(
            self.app, dsn, maxsize=10, leak_threshold=8, statement_timeout=20, drain_grace=20, drain_timeout=25
        )
        setup_dashboard(self.app, self.scope, allow="loopback")
        self.app.add_routes(
            [
                web.get("/users/{id}", user), web.post("/orders", order), web.get("/report", report),
                web.get("/export/{id}", export), web.post("/import", broken),
            ]
        )  # fmt: skip
        self.runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=20)
        self.url = ""
        self._clients: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        async with ClientSession() as self.session:
            try:
                yield
            finally:
                await self.runner.cleanup()
                await asyncio.gather(*self._clients)

    def send(self, method: str, path: str) -> None:
        task = asyncio.create_task(self._send(method, path))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _send(self, method: str, path: str) -> None:
        headers = {"X-Request-ID": f"req-{next(self._numbers):05}"}
        with contextlib.suppress(ClientError, TimeoutError):
            async with self.session.request(method, self.url + path, headers=headers) as response:
                await response.read()

    async def load(self, duration: float, rate: float, slow: float = 0.0) -> None:
        """Requests at random, ``rate`` a second; of these the share ``slow`` takes most of a second."""
        async for _ in arrivals(rate, random.Random(random.random()), duration):
            if random.random() < slow:
                self.send("GET", f"/report?seconds={random.uniform(0.4, 0.9):.2f}")
            elif random.random() < 0.7:
                self.send("GET", f"/users/{random.randrange(1000)}")
            else:
                self.send("POST", "/orders")


async def take(page: Page, name: str, *, full: bool = False) -> None:
    """One picture."""
    target = IMAGES / f"page-{name}.png"
    await page.screenshot(path=target, full_page=full, animations="disabled")
    with Image.open(target) as picture:  # a palette is half the size, and looks the same
        picture.convert("RGB").quantize(256).save(target, optimize=True)
    size = target.stat().st_size
    print(f"{target.name}: {size / 1000:.0f} kB", flush=True)
    if size > LARGEST:
        raise SystemExit(f"{target.name} is larger than {LARGEST / 1000:.0f} kB")


async def shows(page: Page, kind: str) -> None:
    """Wait until the headline is about this."""
    await page.wait_for_selector(f"#verdict[data-kind='{kind}']", timeout=60_000)


async def opened(browser: Browser, url: str, size: tuple[int, int], scheme: Any) -> Page:
    page = await browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    await page.goto(f"{url}/_pool/")
    await page.wait_for_selector("#link[data-link='live']")
    return page


async def story(browser: Browser, server: EmbeddedPostgres, only: set[str]) -> None:
    """One service, from good days to its end."""
    service = Service(server.dsn)
    async with service.running():
        usual = asyncio.create_task(service.load(600, 67, 0.01))
        wide = await opened(browser, service.url, WIDE, "light")
        dark = await opened(browser, service.url, WIDE, "dark")
        narrow = await opened(browser, service.url, NARROW, "light")
        if "healthy" in only:
            await asyncio.sleep(90)
            for page, name in ((wide, "healthy"), (dark, "healthy-dark")):
                await shows(page, "healthy")
                await take(page, name, full=True)
        if "leak" in only:
            service.send("GET", "/export/17?seconds=16")
            service.send("POST", "/import")
            await asyncio.sleep(11)
            await shows(wide, "leaked")
            await take(wide, "leak")
            await asyncio.sleep(6)
        if "saturated" in only:
            more = asyncio.create_task(service.load(24, 108, 0.6))
            await asyncio.sleep(18)
            for page, name in ((wide, "saturated"), (narrow, "saturated-narrow")):
                await shows(page, "saturated")
                await take(page, name)
            await more
            await asyncio.sleep(25)
        if "away" in only:
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(9)
            for page, name in ((wide, "away"), (dark, "away-dark")):
                await shows(page, "away")
                await take(page, name)
            await asyncio.to_thread(server.start)
            await asyncio.sleep(15)
        usual.cancel()
        await asyncio.wait((usual,))
        if "draining" in only:
            for seconds in (6, 7, 8):
                service.send("GET", f"/report?seconds={seconds}")
            await asyncio.sleep(1)
            ending = asyncio.create_task(service.runner.cleanup())
            await shows(wide, "draining")
            await asyncio.sleep(1.2)
            await take(wide, "draining")
            await ending


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser's program (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=STATES, default=STATES)
    args = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    random.seed(1)
    with EmbeddedPostgres(tcp=True) as server:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            try:
                await story(browser, server, set(args.only))
            finally:
                await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
