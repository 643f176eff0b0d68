"""The steps above a Python block, taken one by one: requests to the service that it makes, and what is then true."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.conftest import Database, Served, until

if TYPE_CHECKING:
    from .documents import Block

REQUEST = re.compile(r"(?P<method>GET|POST) (?P<path>\S+)(?: (?P<handler>\w+))? -> (?P<status>\d+) ?(?P<text>.*)")
SOCKET = re.compile(r"WS (?P<path>\S+) (?P<handler>\w+) (?P<word>\S+) -> (?P<text>.*)")
CODE_DSN = re.compile(r"postgresql://[\w,@:]+/\w+(\??)")


def source(block: Block, dsn: str) -> str:
    """The code, with the DSN of the test database, its lines numbered as on the page."""
    code = CODE_DSN.sub(lambda match: dsn + ("&" if match[1] else ""), block.body)
    return "\n" * (block.line - 1) + code


async def follow(step: str, served: Served, context: dict[str, Any], database: Database) -> None:
    """Do what one directive says."""
    kind, _, rest = step.partition(" ")
    if match := REQUEST.fullmatch(step):
        async with served.client.request(match["method"], served.url / match["path"][1:]) as response:
            text = await response.text()
            assert response.status == int(match["status"]), text
            assert match["text"] in text
    elif match := SOCKET.fullmatch(step):
        async with served.client.ws_connect(served.url / match["path"][1:]) as ws:
            await ws.send_str(match["word"])
            assert await ws.receive_str(timeout=5) == match["text"]
    elif kind == "await":
        call, _, value = rest.partition(" -> ")
        assert await eval(call, context) == (eval(value, context) if value else None) or not value
    elif kind == "ok":
        assert eval(rest, context), rest
    elif kind == "until":
        value, _, statement = rest.partition(" ")
        await until(lambda: str(database.sql(statement)[0][0]) == value, statement)
    else:
        assert kind == "env", f"unknown directive: {step}"
