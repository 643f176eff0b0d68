"""What driver tests need: a link without a pool, and a wire to the server that can misbehave."""

# ruff: noqa: ASYNC110 - its switches are flipped from another thread

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.driver import Driver, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from .conftest import Database

CANCEL_REQUEST = 80877102


@contextlib.asynccontextmanager
async def driving(dsn: str | None, **settings: Any) -> AsyncIterator[Driver]:
    """A driver without a pool. Its links are to be closed by the test."""
    config = PoolConfig.build(dsn, **settings)
    driver = Driver(config, config.application_name or "driver test")
    try:
        yield driver
    finally:
        await driver.close(2.0)


@contextlib.asynccontextmanager
async def linked(dsn: str | None, **settings: Any) -> AsyncIterator[Link]:
    """One link of a driver of its own."""
    async with driving(dsn, **settings) as driver:
        link = await driver.open()
        try:
            yield link
        finally:
            link.close()


async def ask(link: Link, sql: str, params: Any = None) -> Any:
    """First column of the first row."""
    await link.run(link.cursor(), sql, params)
    return link.read_first(link.cursor())[0]


class Wire:
    """A TCP proxy in front of the server, in a thread with a loop of its own.

    ``queries`` and ``cancels`` count what clients sent. ``frozen``: nothing passes in either direction;
    ``freeze()``: not on the connections that are open now. ``hang``: new connections are accepted and left alone.
    ``deaf_to_cancel``: cancel requests are accepted and never answered. ``swap``: bytes to be replaced in what the
    server says; ``swap_start``: in the packet with which a client starts.
    """

    def __init__(self, info: Any, port: int = 0) -> None:
        self.queries: list[str] = []
        self.cancels = 0
        self.connects = 0
        self.frozen = self.hang = self.deaf_to_cancel = False
        self.swap: tuple[bytes, bytes] | None = None
        self.swap_start: tuple[bytes, bytes] | None = None
        self.port = port
        self._info = info
        self._loop = asyncio.new_event_loop()
        self._frozen_below = 0
        self._pairs: set[asyncio.StreamWriter] = set()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="wire")
        self._thread.start()
        assert ready.wait(5)

    @property
    def dsn(self) -> str:
        """As the database's own, by this way."""
        info = self._info
        password = f":{info.password}" if info.password else ""
        return f"postgresql://{info.user}{password}@127.0.0.1:{self.port}/{info.dbname}?sslmode=disable"

    def freeze(self) -> None:
        """Let nothing pass any more on the connections there are."""
        self._frozen_below = self.connects

    def cut(self) -> None:
        """Cut every connection, as a firewall would that answers with a reset."""
        self._loop.call_soon_threadsafe(self._cut)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(5)
        assert not self._thread.is_alive()

    def _run(self, ready: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopping.wait()
        server.close()
        self._cut()

    def _cut(self) -> None:
        for writer in self._pairs:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connects
        self.connects += 1
        self._pairs.add(writer)
        server: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            first = await self._packet(reader)
            if struct.unpack_from("!I", first, 4)[0] == CANCEL_REQUEST:
                self.cancels += 1
                while self.deaf_to_cancel:
                    await asyncio.sleep(0.01)
            while self.hang:
                await asyncio.sleep(0.005)
            answers, server = await self._server()
            self._pairs.add(server)
            server.write(first.replace(*self.swap_start) if self.swap_start else first)
            await self._pump(number, reader, server, answers, writer)
        for each in (writer, server):
            if each is not None:
                self._pairs.discard(each)
                each.close()

    async def _pump(self, number: int, reader: Any, server: Any, answers: Any, writer: Any) -> None:
        both = self._requests(number, reader, server), self._answers(number, answers, writer)
        ways = [asyncio.ensure_future(way) for way in both]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._info.host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._info.host}/.s.PGSQL.{self._info.port}")
        return await asyncio.open_connection(self._info.host, self._info.port)

    async def _packet(self, reader: asyncio.StreamReader, kind: int = 0) -> bytes:
        head = await reader.readexactly(4 + kind)
        return head + await reader.readexactly(struct.unpack_from("!I", head, kind)[0] - 4)

    async def _requests(self, number: int, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while True:
            message = await self._packet(reader, kind=1)
            if message[:1] == b"Q":
                self.queries.append(message[5:-1].decode())
            await self._thaw(number)
            server.write(message)

    async def _answers(self, number: int, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(65536):
            await self._thaw(number)
            writer.write(data.replace(*self.swap) if self.swap else data)

    async def _thaw(self, number: int) -> None:
        while self.frozen or number < self._frozen_below:
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def wired(database: Database, port: int = 0) -> Iterator[Wire]:
    """``with wired(database) as wire``: reach the test database over ``wire.dsn``."""
    wire = Wire(database.connection.info, port)
    try:
        yield wire
    finally:
        wire.close()
