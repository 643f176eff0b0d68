"""The example of traces does what it says. (It runs as a script beside the others as well.)"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from .test_examples import EXAMPLES, RUN, START_LIMIT, none_left

if TYPE_CHECKING:
    from .conftest import Database

REQUEST = b"GET /report HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_tracing(database: Database) -> None:
    """Of two requests at once one has a wait in its trace, and what was measured is printed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RUN, str(listener.fileno()), str(EXAMPLES / "tracing.py")],
            env=os.environ | {"DATABASE_URL": database.dsn, "PYTHONUNBUFFERED": "1"},
            cwd=EXAMPLES.parent,
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], START_LIMIT)[0]
            clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
            for client in clients:
                client.sendall(REQUEST)
            answers = [b"".join(iter(lambda: client.recv(4096), b"")) for client in clients]  # noqa: B023
            for client in clients:
                client.close()
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=START_LIMIT)
        finally:
            process.kill()
            process.communicate()
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * 2
    assert (process.returncode, errors) == (0, "")
    found = [json.loads(text) for text in objects(printed)]
    spans = {each["context"]["span_id"]: each for each in found if "context" in each}
    [wait] = [span for span in spans.values() if span["name"] == "poolscope wait db"]
    assert spans[wait["parent_id"]]["kind"] == "SpanKind.SERVER"
    assert wait["attributes"]["poolscope.waited"] > 0.001
    assert "db.client.connection.wait_time" in printed
    assert none_left(database)


def objects(printed: str) -> list[str]:
    """The JSON objects in what was printed: each begins and ends with a brace at the start of a line."""
    found: list[str] = []
    for line in printed.splitlines():
        if line == "{":
            found.append("")
        if found and (line[:1] in "{} " or not line):
            found[-1] += line
    return found
