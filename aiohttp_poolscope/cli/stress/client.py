"""The clients of `stress`: those who wait for their answer, and those who do not. Sockets, and no HTTP library.

A library would keep connections, finish what it has begun, and say goodbye; these must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from yarl import URL

__all__ = ("Answer", "Client", "Outcome")

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time at all: closing sends RST."""

FILLER = 1000
"""Bytes of a body that nobody has given, half of which is sent."""

STEPS = 10
"""Pieces in which what is sent slowly is sent."""

_BROKEN = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)

Outcome = Literal["answered", "left", "silent", "cut", "refused"]
"""How a request ended: with an answer; its client left; no answer in time; closed without one; no connection."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request, and after how many seconds."""

    outcome: Outcome
    seconds: float
    status: int | None = None


class Client:
    """Sends one kind of request, over a new connection each time."""

    def __init__(self, url: URL, method: str, headers: list[str], data: str | None, patience: float) -> None:
        self._host, self._port = url.host or "", url.port or 0
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._method = method
        self._target = url.raw_path_qs
        self._headers = [f"Host: {url.host_port_subcomponent}", "User-Agent: aiohttp-poolscope-stress", *headers]
        self._body = (data or "").encode(errors="surrogateescape")  # bytes, as they were typed
        if data is not None and not any(line.lower().startswith("content-type:") for line in headers):
            kind = "application/json" if data[:1] in ("{", "[") else "application/x-www-form-urlencoded"
            self._headers.append(f"Content-Type: {kind}")
        self._patience = patience

    async def ask(self) -> Answer:
        """Wait for the whole answer, as long as the patience lasts."""
        return await self._visit(self._request(), self._patience, "silent", politely=True)

    async def leave(self, after: float, *, politely: bool) -> Answer:
        """Ask, and leave after so many seconds, with FIN or, less politely, RST."""
        return await self._visit(self._request(), after, "left", politely=politely)

    async def dribble_head(self, pause: float, chance: random.Random) -> Answer:
        """Send the head bit by bit over ``pause`` seconds, and leave before its end."""
        head = self._head(len(self._body))
        return await self._dribble(b"", head[: chance.randint(1, len(head) - 1)], pause, politely=chance.random() < 0.5)  # noqa: PLR2004

    async def dribble_body(self, pause: float, chance: random.Random) -> Answer:
        """Send a whole head and half a body, over ``pause`` seconds, and leave."""
        body = self._body if len(self._body) > 1 else b"x" * FILLER
        head = self._head(len(body))
        return await self._dribble(head, body[: len(body) // 2], pause, politely=chance.random() < 0.5)  # noqa: PLR2004

    async def _visit(self, request: bytes, limit: float, late: Outcome, *, politely: bool) -> Answer:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            async with asyncio.timeout(limit), self._connected(politely=politely) as (reader, writer):
                writer.write(request)
                return self._ended(await self._status(reader), loop.time() - begun)
        except TimeoutError:
            return Answer(late, loop.time() - begun)
        except _BROKEN as error:
            return _broken(error, loop.time() - begun)

    async def _dribble(self, at_once: bytes, slowly: bytes, pause: float, *, politely: bool) -> Answer:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        size = max(1, len(slowly) // STEPS)
        try:
            async with self._connected(politely=politely) as (reader, writer):
                answer = asyncio.create_task(self._status(reader))  # it may come, or a refusal, before all is sent
                try:
                    writer.write(at_once)
                    for at in range(0, len(slowly), size):
                        writer.write(slowly[at : at + size])
                        if (await asyncio.wait((answer,), timeout=pause / STEPS))[0]:
                            return self._ended(answer.result(), loop.time() - begun)
                finally:
                    answer.cancel()
            return Answer("left", loop.time() - begun)
        except _BROKEN as error:
            return _broken(error, loop.time() - begun)

    @contextlib.asynccontextmanager
    async def _connected(self, *, politely: bool) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        except ssl.SSLError:
            raise
        except OSError as error:  # of several addresses each has failed in its own way
            raise ConnectionRefusedError(str(error)) from error
        try:
            yield reader, writer
        finally:
            if politely:
                writer.close()
            else:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()

    @staticmethod
    def _ended(status: int | None, seconds: float) -> Answer:
        return Answer("cut" if status is None else "answered", seconds, status)

    async def _status(self, reader: asyncio.StreamReader) -> int | None:
        """The status of an answer, once all of it has come; None if it is cut short."""
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(maxsplit=2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/"):  # noqa: PLR2004
            raise ValueError("this is no HTTP")
        status = int(words[1])
        lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
        fields = {name.strip().lower(): value.strip().lower() for name, _, value in lines}
        if self._method == "HEAD":
            return status
        if (length := fields.get(b"content-length")) is not None:
            await reader.readexactly(int(length))
            return status
        last = b""
        while part := await reader.read(65536):  # Connection: close was asked for, so it ends with the connection
            last = (last + part)[-5:]
        chunked = fields.get(b"transfer-encoding", b"").endswith(b"chunked")
        return status if not chunked or last == b"0\r\n\r\n" else None

    def _request(self) -> bytes:
        return self._head(len(self._body)) + self._body

    def _head(self, length: int) -> bytes:
        lines = [f"{self._method} {self._target} HTTP/1.1", *self._headers, "Connection: close"]
        if length or self._method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode()


def _broken(error: Exception, seconds: float) -> Answer:
    return Answer("refused" if isinstance(error, ConnectionRefusedError) else "cut", seconds)
