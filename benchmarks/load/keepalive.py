"""A few clients that stay connected, in the process that measures."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Any


class Wire(asyncio.Protocol):
    """One connection of a client, kept alive from one request to the next."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._answer: asyncio.Future[str] | None = None
        self._got = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[str]:
        self._answer, self._got = asyncio.get_running_loop().create_future(), b""
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, _, body = self._got.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if length is not None and len(body) >= int(length[1]):
            self._end(head.split()[1].decode())

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("disconnected")

    def _end(self, said: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(said)


@dataclass
class Server:
    """A server process, and the connections to it on which nothing is under way."""

    process: asyncio.subprocess.Process
    port: int
    free: list[Wire] = field(default_factory=list)

    async def ask(self, seconds: float, patience: float) -> tuple[str, float]:
        """Have it sleep in a query: the status (or what came instead of one), and the seconds until then."""
        begun = time.monotonic()
        request = f"GET /sleep?seconds={seconds} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        wire: Wire | None = None
        said = "disconnected"
        try:
            async with asyncio.timeout(patience):
                while wire is None or wire.transport.is_closing():
                    wire = self.free.pop() if self.free else await self._connect()
                said = await wire.ask(request)
        except TimeoutError:
            said = "gave up"
        except OSError:
            pass
        finally:
            if wire is not None and said.isdigit():
                self.free.append(wire)
            elif wire is not None:
                wire.transport.abort()
        return said, time.monotonic() - begun

    async def _connect(self) -> Wire:
        return (await asyncio.get_running_loop().create_connection(Wire, "127.0.0.1", self.port))[1]
