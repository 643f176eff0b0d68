"""docs/tutorial.md is done as a reader would do it: files are written, commands run, output compared."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.kit.documents import ROOT, marked, read

from .reader import Reader, follow_all, steps

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_every_block_is_done() -> None:
    """No block of the tutorial is left out, and none is tried elsewhere."""
    parts = read(TUTORIAL)
    assert len(steps(parts)) == len(parts) > 0


def test_the_tutorial_works(reader: Reader) -> None:
    """Whoever does what the tutorial says sees what it shows."""
    follow_all(reader, read(TUTORIAL))


@pytest.mark.system  # it asks a package index, and builds the package
def test_the_tutorial_works_from_nothing(reader: Reader) -> None:
    """It needs nothing but Python, the clone and a curl: also in a virtual environment made as it says."""
    reader.from_nothing = True
    follow_all(reader, read(TUTORIAL))


def page(*parts: tuple[str, str]) -> str:
    return "".join(f"<!-- test: {how} -->\n" + f"```sh\n{body}\n```\n" * bool(body) for how, body in parts)


UP = ("start it until up", "echo up; sleep 60")
WRONG = {
    "other output": (page(("run", "echo one"), ("output", "two")), "it is:"),
    "other words": (page(("run", "echo 5 ms, all well"), ("shape", "7 s, hardly well")), "and not as:"),
    "more words": (page(("run", "echo 5 is well; echo but"), ("shape", "7 is well")), "and not as:"),
    "another order": (page(("run", "echo one; echo two"), ("shape part", "two\none")), "and not as:"),
    "no words": (page(("run", "echo 5 ms"), ("shape part", "7 s")), "nothing is compared"),
    "a line is missing": (page(("run", "echo a one"), ("shape part but for a", "a two\nb two")), "and not as:"),
    "a command fails": (page(("run", "false\necho one")), "at: run"),
    "a command does not fail": (page(("run -> 1", "true")), "exit code 0"),
    "no such option": (page(("run with --bad", "ls")), "exit code 2"),
    "no such directive": (page(("run twice", "true")), "unknown directive: run twice"),
    "a file twice": (page(("file a", "a")) * 2, "a is there already"),
    "it ends at once": (page(("start it until up", "echo down")), "it has ended"),
    "it ends badly": (
        page(("start it until up", "trap 'exit 3' INT; echo up; sleep 60"), ("stop it", "")),
        "exit code 3",
    ),
    "it is left running": (page(UP), "still runs"),
    "no such line": (page(UP, ("log it", "…down")), "no line like '…down'"),
    "nothing to start": (page(("start it until up", "")), "a block, or a command"),
}


@pytest.mark.parametrize(("text", "complaint"), WRONG.values(), ids=WRONG)
def test_the_checks_can_fail(reader: Reader, text: str, complaint: str) -> None:
    """A page that does not work is found out."""
    reader.folder.mkdir()
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        follow_all(reader, marked(text))


def test_what_has_the_shape(reader: Reader) -> None:
    """Other figures, units and addresses are no difference, nor is a line that may be missing."""
    reader.folder.mkdir()
    shown = "db at 127.0.0.1:1  7 s\n\nmaybe this\nall is well"
    for how in ("shape but for maybe", "shape part but for maybe"):
        text = page(("run", "echo 'db   at 127.0.0.1:33   12.5 ms'; echo all is well"), (how, shown))
        follow_all(reader, marked(text))
