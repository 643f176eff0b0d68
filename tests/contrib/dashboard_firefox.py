"""A real Firefox, told what to do over WebDriver BiDi, which it speaks by itself."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import shutil
from typing import TYPE_CHECKING, Any, Self

from aiohttp import ClientSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PROGRAM = shutil.which("firefox-esr") or shutil.which("firefox")

PREFERENCES = {
    "browser.aboutwelcome.enabled": False, "browser.shell.checkDefaultBrowser": False, "app.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False, "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False, "toolkit.telemetry.enabled": False,
    "ui.prefersReducedMotion": 1,
}  # fmt: skip
"""It asks nobody for anything, and nothing moves."""


class Firefox:
    """One window, and what went wrong in it."""

    def __init__(self, socket: Any) -> None:
        self.wrong: list[str] = []
        self._socket = socket
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._window = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, profile: Path, *, dark: bool) -> AsyncIterator[Self]:
        """A Firefox of its own, with an empty profile."""
        assert PROGRAM is not None
        wanted = PREFERENCES | {"layout.css.prefers-color-scheme.content-override": 0 if dark else 1}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in wanted.items()]
        (profile / "user.js").write_text("".join(lines))
        command = [PROGRAM, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
        process = await asyncio.create_subprocess_exec(
            *command, env={"HOME": str(profile), "PATH": "/usr/bin:/bin"}, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        try:
            while not (found := re.search(r"BiDi listening on (ws://\S+)", (await process.stderr.readline()).decode())):
                assert not process.stderr.at_eof(), "Firefox has ended"
            drained = asyncio.create_task(process.stderr.read())
            async with ClientSession() as client, client.ws_connect(f"{found[1]}/session", max_msg_size=0) as socket:
                browser = cls(socket)
                reader = asyncio.create_task(browser._read())
                await browser._begin()
                yield browser
                await browser.ask("browser.close")
                await reader
            await process.wait()
            await drained
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _begin(self) -> None:
        await self.ask("session.new", capabilities={})
        await self.ask("session.subscribe", events=["log.entryAdded"])
        self._window = (await self.ask("browsingContext.getTree"))["contexts"][0]["context"]

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if told.get("method") == "log.entryAdded":
                self.wrong.append(told["params"]["text"])
            elif told.get("id") in self._answers:
                self._answers.pop(told["id"]).set_result(told)

    async def ask(self, method: str, **params: Any) -> Any:
        """A command, and its result."""
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        told = await answer
        assert told["type"] == "success", told
        return told["result"]

    async def open(self, url: str) -> None:
        """Go there."""
        await self.ask("browsingContext.navigate", context=self._window, url=url, wait="complete")

    async def resize(self, width: int, height: int = 900) -> None:
        """In CSS pixels."""
        await self.ask("browsingContext.setViewport", context=self._window, viewport={"width": width, "height": height})

    async def evaluate(self, expression: str) -> Any:
        """What an expression is in the page."""
        wrapped = f"JSON.stringify(({expression}) ?? null)"
        target = {"context": self._window}
        found = await self.ask("script.evaluate", expression=wrapped, target=target, awaitPromise=False)
        assert found["type"] == "success", found
        return json.loads(found["result"]["value"])
