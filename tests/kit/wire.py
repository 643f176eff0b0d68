"""What driver tests need: a link without a pool, and a wire to the server that can misbehave."""

# ruff: noqa: ASYNC110 - its switches are flipped from another thread

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import parse_dsn

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.driver import Driver, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from tests.conftest import Database

CANCEL_REQUEST = 80877102

TICK = 0.01
"""Seconds between two pieces of what is throttled."""

NETWORK = OSError, asyncio.IncompleteReadError
"""What may end a connection. Anything else is a mistake of the wire's own."""


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
    """A proxy in front of the server, in a thread with a loop of its own: on TCP, or with ``unix`` on a Unix socket.

    ``queries`` and ``cancels`` count what clients sent, ``connects`` and ``connected`` their connections: all there
    were, and those there are; ``torn`` those that were torn. Switches, for any thread, at any moment:

    ``frozen``: nothing passes in either direction; ``freeze()``: not on the connections that are open now, until
    ``thaw()``. ``hang``: new connections are accepted and left alone. ``refuse()`` and ``accept()``: new connections
    are refused, and taken again, at the same address. ``cut()``: every connection ends with RST, ``cut(fin=True)``:
    with FIN. ``tear(n)``: so many bytes of the server's next answer pass, then its connection ends with FIN
    (``fin=False``: with RST). ``delay``: seconds that each packet waits, in both directions. ``throttle``: bytes per
    second towards each client. ``deaf_to_cancel``: cancel requests are accepted and never answered. ``swap``: bytes to
    be replaced in what the server says; ``swap_start``: in the packet with which a client starts.
    """

    def __init__(self, info: Any, port: int = 0, *, unix: bool = False) -> None:
        self.queries: list[str] = []
        self.cancels = 0
        self.connects = 0
        self.torn = 0
        self.frozen = self.hang = self.deaf_to_cancel = False
        self.delay = 0.0
        self.throttle: float | None = None
        self.swap: tuple[bytes, bytes] | None = None
        self.swap_start: tuple[bytes, bytes] | None = None
        self.port = port
        self._info = info
        self._folder = Path(tempfile.mkdtemp(prefix="wire-")) if unix else None
        self._loop = asyncio.new_event_loop()
        self._frozen_below = 0
        self._tear: tuple[int, bool] | None = None
        self._mistakes: list[Exception] = []
        self._pairs: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="wire")
        self._thread.start()
        assert ready.wait(5)

    @property
    def dsn(self) -> str:
        """As the database's own, by this way."""
        info = self._info
        user = info.user + (f":{info.password}" if info.password else "")
        if self._folder is not None:
            return f"postgresql://{user}@/{info.dbname}?host={self._folder}&port={self.port}"
        return f"postgresql://{user}@127.0.0.1:{self.port}/{info.dbname}?sslmode=disable"

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def freeze(self) -> None:
        """Let nothing pass any more on the connections there are."""
        self._frozen_below = self.connects

    def thaw(self) -> None:
        """Let everything pass again, and what was held back first."""
        self.frozen, self._frozen_below = False, 0

    def cut(self, *, fin: bool = False) -> None:
        """Cut every connection: as a firewall that answers with a reset, or (``fin``) as a server that has ended."""
        self._call(self._cut(fin=fin))

    def tear(self, after: int, *, fin: bool = True) -> None:
        """Let ``after`` bytes of the server's next answer pass, then cut its connection."""
        self._tear = after, fin

    def refuse(self) -> None:
        """Refuse new connections from now on. The open ones stay."""
        self._call(self._close_door())

    def accept(self) -> None:
        """Take new connections again."""
        self._call(self._open_door())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(5)
        assert not self._thread.is_alive()
        if self._folder is not None:
            shutil.rmtree(self._folder)
        assert self._mistakes == []

    def _call(self, change: Coroutine[Any, Any, None]) -> None:
        """Change something in the wire's own thread. It has changed when this returns."""
        asyncio.run_coroutine_threadsafe(change, self._loop).result(5)

    def _run(self, ready: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._stopping = asyncio.Event()
        self._shut = self._bound()
        await self._open_door()
        ready.set()
        await self._stopping.wait()
        await self._close_door()
        self._shut.close()
        await self._cut(fin=False)

    def _bound(self) -> socket.socket:
        """A socket at the wire's address. While it does not listen, connects are refused, and the port stays ours."""
        bound = socket.socket(socket.AF_INET if self._folder is None else socket.AF_UNIX)
        if self._folder is None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", self.port))
            self.port = bound.getsockname()[1]
        else:
            self.port = self.port or 5432
            path = self._folder / f".s.PGSQL.{self.port}"
            path.unlink(missing_ok=True)
            bound.bind(str(path))
        return bound

    async def _open_door(self) -> None:
        self._door = await asyncio.start_server(self._accept, sock=self._shut)

    async def _close_door(self) -> None:
        if not self._door.is_serving():
            return
        # What is being accepted in this moment would never be closed: asyncio forgets it when its server is gone.
        for listening in self._door.sockets:
            self._loop.remove_reader(listening.fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        self._door.close()
        self._shut = self._bound()

    async def _cut(self, *, fin: bool) -> None:
        for writer in self._pairs:
            self._end(writer, fin=fin)

    def _end(self, writer: asyncio.StreamWriter, *, fin: bool) -> None:
        if fin:
            writer.close()
            return
        with contextlib.suppress(OSError):  # closed already, or a Unix socket, which knows no reset
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connects
        self.connects += 1
        self._clients.add(writer)
        self._pairs.add(writer)
        server: asyncio.StreamWriter | None = None
        with contextlib.suppress(*NETWORK, asyncio.CancelledError):
            first = await self._packet(reader)
            if struct.unpack_from("!I", first, 4)[0] == CANCEL_REQUEST:
                self.cancels += 1
                while self.deaf_to_cancel:
                    await asyncio.sleep(0.01)
            while self.hang and not reader.at_eof():
                await asyncio.sleep(0.005)
            answers, server = await self._server()
            self._pairs.add(server)
            server.write(first.replace(*swap) if (swap := self.swap_start) else first)
            await self._pump(number, reader, server, answers, writer)
        self._clients.discard(writer)
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
            for ended in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, NETWORK):
                    self._mistakes.append(ended)

    async def _server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._info.host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._info.host}/.s.PGSQL.{self._info.port}")
        return await asyncio.open_connection(self._info.host, self._info.port)

    async def _packet(self, reader: asyncio.StreamReader, kind: int = 0) -> bytes:
        head = await reader.readexactly(4 + kind)
        return head + await reader.readexactly(struct.unpack_from("!I", head, kind)[0] - 4)

    async def _requests(self, number: int, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        try:
            while True:
                message = await self._packet(reader, kind=1)
                if message[:1] == b"Q":
                    self.queries.append(message[5:-1].decode())
                await self._thaw(number)
                server.write(message)
        except NETWORK:
            await self._thaw(number)  # silence hides an end, too

    async def _answers(self, number: int, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tear: tuple[int, bool] | None = None
        while data := await answers.read(65536):
            await self._thaw(number)
            if tear is None:
                tear, self._tear = self._tear, None
            if tear is not None and tear[0] <= len(data):
                await self._send(writer, data[: tear[0]])
                self._end(writer, fin=tear[1])
                self.torn += 1
                return
            tear = tear and (tear[0] - len(data), tear[1])
            await self._send(writer, data.replace(*swap) if (swap := self.swap) else data)
        await self._thaw(number)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while data and (throttle := self.throttle) is not None:
            piece, data = data[: (size := max(1, int(throttle * TICK)))], data[size:]
            writer.write(piece)
            await asyncio.sleep(len(piece) / throttle)
        writer.write(data)

    async def _thaw(self, number: int) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
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


@contextlib.contextmanager
def wired_to(dsn: str, port: int = 0, *, unix: bool = False) -> Iterator[Wire]:
    """``with wired_to(server.dsn) as wire``: reach any database over ``wire.dsn``."""
    found = {"password": None, **parse_dsn(dsn)}
    wire = Wire(SimpleNamespace(**found), port, unix=unix)
    try:
        yield wire
    finally:
        wire.close()
