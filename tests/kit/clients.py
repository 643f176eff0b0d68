"""Clients on bare sockets: they send what they like, read what they like, and leave when and how they like."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

PATIENCE = 30.0
"""Seconds after which a client that wants its answer has been forgotten by the server."""

Socket = tuple[asyncio.StreamReader, asyncio.StreamWriter]

Leaving = Literal["fin", "rst"]


class Answer(NamedTuple):
    """What came back; status 0: the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def head(path: str = "/", method: str = "GET", **headers: object) -> bytes:
    """A request's head; ``Connection="close"`` and the like as keyword arguments."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def answer(reader: asyncio.StreamReader, begun: bytes = b"") -> Answer:
    """One answer, of which ``begun`` was read already, with the body that its headers announce; or an error."""
    text = (begun + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *rest = text.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(first.split()[1]), headers, body)


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One answer, or that there is none."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await answer(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, {}, b"")


async def ask(port: int, path: str, *, keep: bool = False) -> Answer:
    """A client that waits for its answer; ``keep``: and would like to keep its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head(path) if keep else head(path, Connection="close"))
        return await read_answer(reader)
    finally:
        writer.close()


@contextlib.contextmanager
def client(port: int, sent: bytes) -> Iterator[socket.socket]:
    """A client that has connected and sent something, and reads nothing unless it is told to. It blocks."""
    with socket.create_connection(("127.0.0.1", port)) as connected:
        connected.sendall(sent)
        yield connected


def leave(connected: socket.socket, how: Leaving) -> None:
    """Leave politely (FIN), or as a crashed process does (RST)."""
    if how == "rst":
        connected.setsockopt(*RESET)
    connected.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Leave with RST instead of FIN."""
    with contextlib.suppress(OSError):  # the server was faster
        writer.get_extra_info("socket").setsockopt(*RESET)
    writer.transport.abort()


RESET = socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
"""A socket that lingers for no time at all ends with RST."""

MOMENTS = ("half a head", "at once", "a moment later", "later", "mid-answer")


async def ask_and_leave(port: int, path: str, moment: str, rng: random.Random) -> None:
    """A client that leaves at ``moment``, by FIN or by RST."""
    farewell, patience = rng.choice((reset, asyncio.StreamWriter.close)), rng.random()
    request = head(path)
    if moment == "half a head":
        request = request[: rng.randrange(1, len(request))]
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return
    try:
        writer.write(request)
        with contextlib.suppress(ConnectionError, TimeoutError):
            if moment == "a moment later":
                await asyncio.sleep(0.003 * patience)
            elif moment == "later":
                await asyncio.sleep(0.1 * patience)
            elif moment == "mid-answer":
                async with asyncio.timeout(1.0):
                    await reader.readexactly(rng.randrange(1, 300))
    except asyncio.IncompleteReadError:
        pass
    finally:
        farewell(writer)
