"""The demo's impatient clients: they leave at any moment, politely (FIN) or not (RST)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import random
import socket
import struct
from typing import TYPE_CHECKING

from .database import ACCOUNTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from .load import Tallies, Tally

__all__ = ("deserters",)

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time at all: closing sends RST."""
_ROOM = 16_384
"""Bytes, so that a server that sends an export has to wait for its reader. (With less, the kernel makes it seconds.)"""
_SIP = 4_096
_EXPORT_SIZE = 380_000
"""Bytes of an export, not quite."""
_PATIENCE = 20.0
"""Seconds after which a server that is silent has lost the request."""


class Deserter:
    """A client that does not wait for its answer.

    Each way to leave returns the status of an answer that came before it could, else None.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
        self._reader = reader
        self._writer = writer
        self._chance = chance

    async def half_a_head(self) -> None:
        """Leave before the request is one."""
        head = self._head("GET", f"/accounts/{self._account()}")
        self._writer.write(head[: self._chance.randint(1, len(head) - 1)])
        await self._pause(0.02)

    async def dribbling_body(self) -> None:
        """Send a body byte by byte, and not all of it."""
        body = self._order()
        self._writer.write(self._head("POST", "/transfer", length=len(body)))
        for byte in body[: self._chance.randint(0, len(body) - 1)]:
            self._writer.write(bytes([byte]))
            await self._pause(0.01)

    async def waiting_for_account(self) -> str | None:
        """Leave before a short answer, or not."""
        return await self._ask(self._head("GET", f"/accounts/{self._account()}"), 0.05)

    async def waiting_for_transfer(self) -> str | None:
        """Leave before, inside or after a transaction."""
        body = self._order()
        return await self._ask(self._head("POST", "/transfer", length=len(body)) + body, 0.08)

    async def waiting_for_report(self) -> str | None:
        """Leave while a slow statement runs, or while it waits for a connection."""
        seconds = self._chance.uniform(0.05, 0.3)
        return await self._ask(self._head("GET", f"/report?seconds={seconds:.3f}"), seconds)

    async def half_an_export(self) -> str | None:
        """Leave in the middle of the answer, which is read slowly."""
        self._writer.write(self._head("GET", "/export"))
        wanted = self._chance.randint(0, _EXPORT_SIZE)
        async with asyncio.timeout(_PATIENCE):
            status = await self._status()
            while status == "200" and wanted > 0:
                await self._pause(0.001)
                got = await self._reader.read(_SIP)
                if not got:
                    raise asyncio.IncompleteReadError(b"", wanted)
                wanted -= len(got)
        return None if status == "200" else status

    async def websocket(self) -> str | None:
        """Talk, and leave without goodbye while an answer is due."""
        self._writer.write(self._head("GET", "/ws", upgrade=True))
        async with asyncio.timeout(_PATIENCE):
            status = await self._status()
            if status != "101":
                return status
            for _ in range(self._chance.randint(0, 5)):
                self._writer.write(self._frame(str(self._account())))
                await self._reader.readuntil(b"}")
        self._writer.write(self._frame(str(self._account())))
        await self._pause(0.005)
        return None

    async def _ask(self, request: bytes, longest: float) -> str | None:
        self._writer.write(request)
        try:
            async with asyncio.timeout(self._chance.uniform(0, longest)):
                return await self._status()
        except TimeoutError:
            return None

    async def _status(self) -> str:
        head = await self._reader.readuntil(b"\r\n\r\n")
        return head.split(maxsplit=2)[1].decode()

    async def _pause(self, longest: float) -> None:
        await asyncio.sleep(self._chance.uniform(0, longest))

    def _account(self) -> int:
        return self._chance.randint(1, ACCOUNTS)

    def _order(self) -> bytes:
        payer, payee = self._chance.sample(range(1, ACCOUNTS + 1), 2)
        return f"from={payer}&to={payee}&amount={self._chance.randint(1, 50)}".encode()

    def _head(self, method: str, path: str, *, length: int = 0, upgrade: bool = False) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: demo", "User-Agent: aiohttp-poolscope-demo"]
        if length:
            lines += ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {length}"]
        if upgrade:
            key = base64.b64encode(self._chance.randbytes(16)).decode()
            lines += ["Connection: Upgrade", "Upgrade: websocket"]
            lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
        return "\r\n".join([*lines, "", ""]).encode()

    def _frame(self, text: str) -> bytes:
        """A websocket message: one short text frame, masked as a client's must be."""
        mask = self._chance.randbytes(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(text.encode()))
        return bytes([0x81, 0x80 | len(masked)]) + mask + masked


_BEHAVIOURS: dict[str, tuple[Callable[[Deserter], Awaitable[str | None]], int]] = {
    "half a request head": (Deserter.half_a_head, 15),
    "POST /transfer, half a body, dribbling": (Deserter.dribbling_body, 15),
    "GET /accounts/{id}, before the answer": (Deserter.waiting_for_account, 25),
    "POST /transfer, before the answer": (Deserter.waiting_for_transfer, 25),
    "GET /report, before the answer": (Deserter.waiting_for_report, 4),
    "GET /export, in the middle of the answer": (Deserter.half_an_export, 6),
    "GET /ws, without goodbye": (Deserter.websocket, 10),
}
"""How to behave, as the table shows it, and how often."""


def deserters(
    number: int, host: str, port: int, chance: random.Random, tallies: Tallies
) -> list[Callable[[], Awaitable[None]]]:
    """So many visits, of all kinds, in a random order; what each does depends on ``chance`` alone."""
    visits: list[Callable[[], Awaitable[None]]] = []
    labels = {name: tallies[f"left: {name}"] for name in _BEHAVIOURS}  # in the order of the table
    for name in chance.choices(list(_BEHAVIOURS), weights=[share for _, share in _BEHAVIOURS.values()], k=number):
        own = random.Random(chance.getrandbits(64))  # noqa: S311  no secret
        visits.append(functools.partial(_visit, host, port, _BEHAVIOURS[name][0], own, labels[name]))
    return visits


async def _visit(
    host: str,
    port: int,
    behave: Callable[[Deserter], Awaitable[str | None]],
    chance: random.Random,
    tally: Tally,
) -> None:
    tally.sent += 1
    try:
        async with _connected(host, port, chance) as (reader, writer):
            status = await behave(Deserter(reader, writer, chance))
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        tally.lost += 1
    else:
        if status is None:
            tally.aborted += 1
        else:
            tally.answered[status] += 1


@contextlib.asynccontextmanager
async def _connected(
    host: str, port: int, chance: random.Random
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(host, port, limit=_SIP)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
    try:
        yield reader, writer
    finally:
        if chance.choice((True, False)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
