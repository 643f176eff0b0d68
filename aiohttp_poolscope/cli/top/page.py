"""`top` by way of the page that ``setup_dashboard`` adds to a service."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .view import PageView

if TYPE_CHECKING:
    from collections.abc import Callable

    from yarl import URL

__all__ = ("Page", "PageError")

T = TypeVar("T")

AT_ONCE = 4
"""Questions at each look, each on a connection of its own: the kernel chooses who answers, so it takes some to meet
all workers."""

PATIENCE = 3.0
"""Seconds for an answer, all of it."""

LARGEST = 10_000_000
"""Bytes of an answer."""

FORGET_AFTER = 15.0
"""Seconds after which a worker that was not met any more is left out."""

NOT_FOUND = 404


class PageError(Exception):
    """No state could be had from there; the message says what to do."""


class Page:
    """The page at a URL. Workers are known by their process ids, and when they were started."""

    def __init__(self, url: URL, headers: dict[str, str], interval: float, times: int) -> None:
        self._url = url if url.name == "state.json" else url.with_path(f"{url.path.rstrip('/') or '/_pool'}/state.json")
        self._headers = headers
        self._times = times
        self._forget_after = max(FORGET_AFTER, 5 * interval)
        # In containers all of them may have the same process id.
        self._workers: dict[tuple[int, float], tuple[float, dict[str, Any]]] = {}

    async def look(self) -> PageView:
        """Ask a few times, and put together what all workers have said lately."""
        problem: str | None = None
        for _ in range(self._times):
            answers = await asyncio.gather(*(self._ask() for _ in range(AT_ONCE)), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, PageError):
                    problem = str(answer)
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    worker = answer["worker"]
                    self._workers[worker["pid"], worker["started"]] = (time.monotonic(), answer)
        if not self._workers and problem is not None:
            raise PageError(problem)
        oldest = time.monotonic() - self._forget_after
        self._workers = {name: met for name, met in sorted(self._workers.items()) if met[0] > oldest}
        return PageView(str(self._url.parent), [state for _, state in self._workers.values()], problem)

    async def _ask(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE):
                status, body = await _aside(self._get)
        except TimeoutError as error:
            raise PageError(f"no answer from {self._url} within {PATIENCE:g} s") from error
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise PageError(f"{self._url} cannot be reached: {error}") from error
        return self._read(status, body)

    def _get(self) -> tuple[int, bytes]:
        """One request, on a connection of its own: a kept one would always lead to the same worker."""
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.host or "", self._url.port, timeout=PATIENCE)
        try:
            connection.request("GET", self._url.raw_path, headers=self._headers | {"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read(LARGEST)
        finally:
            connection.close()

    def _read(self, status: int, body: bytes) -> dict[str, Any]:
        if status == NOT_FOUND:
            raise PageError(
                f"{self._url} answers 404: give the prefix of setup_dashboard(app, scope, prefix=...), and let its "
                "allow= admit you"
            )
        if status >= 300:  # noqa: PLR2004
            raise PageError(f"{self._url} answers {status}: has it let you in? --header 'Authorization: ...' may help")
        try:
            state: dict[str, Any] = json.loads(body)
            int(state["worker"]["pid"]), float(state["worker"]["started"]), list(state["scopes"])
        except (ValueError, KeyError, TypeError) as error:
            raise PageError(f"{self._url} is not the page of setup_dashboard: it answers something else") from error
        return state


async def _aside(work: Callable[[], T]) -> T:
    """Do what blocks in a thread that nobody waits for: a host that never answers must not hold up Ctrl-C.

    The threads of ``asyncio.to_thread`` are waited for, by ``asyncio.run`` and by the interpreter at its end.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def told(tell: Callable[[], None]) -> None:
        if not done.done():  # given up meanwhile
            tell()

    def run() -> None:
        try:
            tell = partial(done.set_result, work())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the asker's
            tell = partial(done.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(told, tell)

    threading.Thread(target=run, name="poolscope-top", daemon=True).start()
    return await done
