"""Streams: whoever looks at the page hears of every sample, as server-sent events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("LIMIT", "Streams", "encoded")

LIMIT = 32
"""Streams of one process: each costs a socket, a task and some 100 kB."""

RETRY = b"retry: 1000\n\n"


def encoded(event: str, data: str) -> bytes:
    """One event; ``data`` is JSON, which has no line breaks."""
    return f"event: {event}\ndata: {data}\n\n".encode()


class Stream:
    """One client. Nothing queues up for it: it writes, waits until that is sent, and then tells the latest."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.news = asyncio.Event()
        self.writing = False
        self.seen = 0

    async def send(self, response: web.StreamResponse, data: bytes) -> None:
        """Write, and wait until little of it is left to be sent."""
        self.writing = True
        await response.write(data)
        self.writing = False


class Streams:
    """All clients of one application."""

    def __init__(self, message: Callable[[int], tuple[int, bytes]], draining: Callable[[], bool]) -> None:
        self.ending = False
        self._message = message
        self._draining = draining
        self._streams: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._streams)

    def over(self) -> bool:
        """Whether there is nothing more to tell: the application ends, and no pool drains any more."""
        return self.ending and not self._draining()

    def wake(self) -> None:
        """There is news."""
        over = self.over()
        for stream in self._streams:
            if over and stream.writing and stream.request.transport is not None:
                stream.request.transport.abort()  # it does not read, and aiohttp would wait for it
            stream.news.set()

    async def end(self, _app: web.Application) -> None:
        """For ``app.on_shutdown``: from now on a stream lives only while a pool drains, which is worth watching."""
        self.ending = True
        self.wake()

    async def serve(self, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        """Tell one client until it leaves or the application ends."""
        if self.over() or len(self._streams) >= LIMIT:
            return web.Response(status=503, text="too many look at this page\n", headers=headers | {"Retry-After": "5"})
        response = web.StreamResponse(headers=headers | {"X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        stream = Stream(request)
        self._streams.add(stream)
        try:
            await response.prepare(request)
            await stream.send(response, RETRY)
            while True:
                stream.news.clear()
                last = self.over()
                stream.seen, data = self._message(stream.seen)
                await stream.send(response, data)
                if last:
                    break
                await stream.news.wait()
        except ConnectionError:
            pass  # it has left
        finally:
            self._streams.discard(stream)
        response.force_close()
        return response
