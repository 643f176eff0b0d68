"""Clients that behave badly: plain sockets that send what they like and leave when and how they like."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Leaving = Literal["fin", "rst"]


@contextlib.contextmanager
def client(port: int, sent: bytes) -> Iterator[socket.socket]:
    """A client that has connected and sent something, and reads nothing unless it is told to."""
    with socket.create_connection(("127.0.0.1", port)) as connected:
        connected.sendall(sent)
        yield connected


def request(path: str = "/", *headers: str, method: str = "GET") -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


def leave(connected: socket.socket, how: Leaving) -> None:
    """Leave politely (FIN), or as a crashed process does (RST)."""
    if how == "rst":
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()
