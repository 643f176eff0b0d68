"""The clients of the stress command: what they send, how they leave, and what they call an answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from aiohttp_poolscope.cli.stress.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp_poolscope.cli.stress.client import Answer

BODY = '{"text": "0123456789"}'


class Listener:
    """A server that says what it is told to, and keeps what it hears."""

    def __init__(self, says: bytes, *, stays: bool = False) -> None:
        self.says = says
        self.stays = stays
        self.heard = b""
        self.ended = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = False
        try:
            while part := await reader.read(4096):
                self.heard += part
                if not said and b"\r\n\r\n" in self.heard:
                    said = True
                    writer.write(self.says)
                    if self.says and not self.stays:
                        break
        except ConnectionResetError:
            pass
        finally:
            self.ended.set()
            writer.close()


@contextlib.asynccontextmanager
async def listening(says: bytes = b"", *, stays: bool = False) -> AsyncIterator[Listener]:
    listener = Listener(says, stays=stays)
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
        async with asyncio.timeout(5):
            await listener.ended.wait()
    finally:
        server.close()


def client(port: int, method: str = "GET", data: str | None = None, patience: float = 5.0) -> Client:
    return Client(URL(f"http://127.0.0.1:{port}/path?a=b%20c"), method, ["X-Mine: 1"], data, patience)


@pytest.mark.parametrize(("politely", "end"), [(True, "FIN"), (False, "RST")])
async def test_it_leaves_as_it_is_told(politely: bool, end: str) -> None:
    """A polite client ends its connection with FIN, the other one with RST, after the time it was given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a plain one: streams of uvloop do not tell them apart
        ending = asyncio.get_running_loop().run_in_executor(None, end_of_first, listener)
        answer = await client(listener.getsockname()[1]).leave(0.05, politely=politely)
        assert await ending == end
    assert answer.outcome == "left"
    assert answer.seconds > 0.04  # timers of uvloop count milliseconds


def end_of_first(listener: socket.socket) -> str:
    """How the first connection ends."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(5)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            return "RST"
        return "FIN"


async def test_what_is_sent() -> None:
    """The request has its path as it was given, its headers, and a body with its length and kind."""
    async with listening(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as listener:
        assert (await client(listener.port, "POST", BODY).ask()).status == 200
    head, _, body = listener.heard.decode().partition("\r\n\r\n")
    assert head.splitlines()[0] == "POST /path?a=b%20c HTTP/1.1"
    assert {"X-Mine: 1", "Content-Type: application/json", f"Content-Length: {len(BODY)}"} < set(head.splitlines())
    assert body == BODY


ANSWERS: list[tuple[str, bytes, Callable[[Answer], bool]]] = [
    (
        "GET",
        b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
        lambda its: (its.outcome, its.status) == ("answered", 503),
    ),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", lambda its: its.outcome == "answered"),
    ("GET", b"HTTP/1.1 200 OK\r\n\r\nto the end", lambda its: its.outcome == "answered"),
    ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", lambda its: its.outcome == "cut"),
    (
        "GET",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        lambda its: its.outcome == "answered",
    ),
    ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", lambda its: its.outcome == "cut"),
    ("GET", b"HTTP/1.1 2", lambda its: its.outcome == "cut"),
    ("GET", b"SSH-2.0-OpenSSH\r\n\r\n", lambda its: its.outcome == "cut"),
]


@pytest.mark.parametrize(("method", "says", "right"), ANSWERS)
async def test_what_is_an_answer(method: str, says: bytes, right: Callable[[Answer], bool]) -> None:
    """An answer counts when all of it has come; what is cut short or no HTTP is "cut"."""
    async with listening(says) as listener:
        answer = await client(listener.port, method).ask()
    assert right(answer), answer


async def test_silence_and_nobody() -> None:
    """No answer within the patience is "silent"; nobody who listens is "refused"."""
    async with listening() as listener:
        assert (await client(listener.port, patience=0.05).ask()).outcome == "silent"
    assert (await client(listener.port).ask()).outcome == "refused"


async def test_half_a_body() -> None:
    """A slow client sends its whole head and exactly half of its body, bit by bit, and leaves."""
    async with listening() as listener:
        assert (await client(listener.port, "POST", BODY).dribble_body(0.05, random.Random(1))).outcome == "left"
    head, _, body = listener.heard.decode().partition("\r\n\r\n")
    assert f"Content-Length: {len(BODY)}" in head
    assert BODY.startswith(body)
    assert len(body) == len(BODY) // 2


async def test_half_a_head() -> None:
    """Another one does not even send its head to the end."""
    async with listening() as listener:
        assert (await client(listener.port).dribble_head(0.05, random.Random(1))).outcome == "left"
    assert b"\r\n\r\n" not in listener.heard


async def test_an_answer_to_a_slow_client_ends_its_request() -> None:
    """A server that answers, or refuses, before the body has come is heard."""
    async with listening(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n", stays=True) as listener:
        answer = await client(listener.port).dribble_body(5.0, random.Random(1))
    assert (answer.outcome, answer.status) == ("answered", 413)
    assert answer.seconds < 5.0
