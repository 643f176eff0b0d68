"""The example of traces does what it says. (It runs as a script beside the others as well.)"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .test_examples import script

if TYPE_CHECKING:
    from tests.conftest import Database


def test_tracing(database: Database) -> None:
    """Of two requests at once one has a wait in its trace, and what was measured is printed at the end."""
    with script("tracing.py", database) as running:
        answers = running.ask("/report", count=2)
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * 2
    found = [json.loads(text) for text in objects(running.printed)]
    spans = {each["context"]["span_id"]: each for each in found if "context" in each}
    [wait] = [span for span in spans.values() if span["name"] == "poolscope wait db"]
    assert spans[wait["parent_id"]]["kind"] == "SpanKind.SERVER"
    assert wait["attributes"]["poolscope.waited"] > 0.001
    assert "db.client.connection.wait_time" in running.printed


def objects(printed: str) -> list[str]:
    """The JSON objects in what was printed: each begins and ends with a brace at the start of a line."""
    found: list[str] = []
    for line in printed.splitlines():
        if line == "{":
            found.append("")
        if found and (line[:1] in "{} " or not line):
            found[-1] += line
    return found
