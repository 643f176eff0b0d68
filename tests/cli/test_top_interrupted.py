"""The live view ends with Ctrl-C: however it was started, and whatever the page it asks is doing."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from aiohttp_poolscope.cli.top import WELL
from aiohttp_poolscope.cli.top import page as top_page

from .programs import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_live_in_a_terminal_but_started_in_the_background(dsn: str) -> None:
    """A script's & makes it ignore Ctrl-C; a view on a terminal has no other end, so there it listens again."""
    with Terminal("top", dsn, "--interval", "0.05", background=True) as terminal:
        terminal.until("backends")
        terminal.key("\x03")
        assert terminal.end() == WELL


@contextlib.contextmanager
def stalling(at: bytes) -> Iterator[str]:
    """The address of a page that answers the first look, and then sends ``at`` again and again, which is never all."""
    state = json.dumps({"worker": {"pid": 1, "started": 1.0}, "scopes": []}).encode()
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(state), state)
    ended, answered = threading.Event(), itertools.count()

    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            if next(answered) < top_page.AT_ONCE:
                client.sendall(whole)
                return
            client.sendall(b"HTTP/1.1 200 OK\r\n")
            while not ended.wait(0.2):
                client.sendall(at)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/_pool"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


@pytest.mark.parametrize("at", [b"X-More: 1\r\n", b"\r\n "], ids=["head", "body"])
def test_an_answer_without_an_end_holds_up_neither_the_view_nor_ctrl_c(at: bytes) -> None:
    """Who sends a little again and again is given up after 3 s, and told; Ctrl-C does not wait for it."""
    with stalling(at) as page, Terminal("top", page, "--interval", "0.05") as terminal:
        terminal.until("workers seen")
        terminal.until("no answer from .* within 3 s")
        terminal.key("\x03")
        assert terminal.end() == WELL
        assert "Traceback" not in terminal.output
