"""The Markdown files of the repository, and how each fenced block in them is tried.

A comment right above a block says it, in steps that ``;`` separates::

    <!-- test: GET /users/1 get_user -> 200 ada; ok scope.stats().in_use == 0 -->

Python that makes a service, run in the order of the steps (tests/docs/test_blocks.py):

    GET /path handler -> 200 text     a request; the handler's route is added first, if one is named
    WS /path handler word -> text     a websocket that sends a word and is answered
    await function() -> value         a coroutine of the block
    ok expression                     true
    until 3 SELECT ...                a statement that comes to give this value
    env NAME=value ...                variables, set before the block runs

Python that is a file of its own (likewise there):

    pytest 3                          a file of tests, and so many pass
    pytest 1 after NAME               likewise, behind the code of this name in ``BEFORE``
    gunicorn service:runner           a module; the README's own command serves it

What somebody does in a terminal, from the top of the page to its end (tests/docs/reader.py):

    file NAME                         write the block into the file
    append NAME                       add it to the end of the file
    install                           the commands that set up: see ``Reader.do_install``
    run                               run the commands
    run -> 1                          likewise, and the exit code is 1
    run -> 1 with --duration 2        likewise, with options behind the last command that the page leaves out
    output                            what the last ``run`` printed; ``…`` stands for anything
    shape                             the same words in the same lines as it printed; figures and units may be others
    shape part                        likewise, but it printed other lines as well
    shape part but for TEXT           likewise, and lines that begin with this may be missing
    start NAME until TEXT             run the commands in a terminal of their own, until they print this
    start NAME until TEXT: COMMAND    likewise a command that the page does not show, in a comment without a block
    restart NAME, stop NAME           Ctrl-C there, which must end it with exit code 0; and start it again
    kill NAME                         as SIGKILL does: for what would not end
    log NAME                          lines that this terminal has shown

What takes too long, or is tried by another test:

    rehearse                          make says what it would run, and what it would run has these options
    elsewhere tests/x.py::test_y      this test does it; ``, with its output``: and compares the next block

Or there is a reason against all of them::

    <!-- not tested: Django is no part of the tests -->

Blocks of ``DIRECTIVES`` are for the site and no code: its build tries them.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FOLDERS = ("aiohttp_poolscope", "benchmarks", "docs", "examples", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])

WRITTEN = {"docs/benchmarks.md": "rehearse"}
"""Pages that a program writes over, which have no comments for that: how each of their blocks is tried."""
TRIED = {"docs/opentelemetry.md": "tests/contrib/test_opentelemetry.py::test_the_code_in_the_document"}
"""Pages whose steps another test takes, since it needs more than the others have."""

SERVICE = {"GET", "POST", "WS", "await", "ok", "until", "env"}
PROGRAM = {"pytest", "gunicorn"}
TERMINAL = {"file", "append", "install", "run", "output", "shape", "start", "restart", "stop", "kill", "log"}
ALONE = {"start", "restart", "stop", "kill"}
"""What a comment without a block may say."""

DIRECTIVES = {"{eval-rst}", "{toctree}"}

PART = re.compile(
    r"^[ >*.\d-]*(?P<fence>`{3,}|~{3,}|:{3,})(?P<language>[^\n`]*)\n(?P<body>.*?)(?:^[ >]*(?P=fence)[`~:]*[ ]*$|\Z)"
    r"|^<!-- (?P<sort>test|not tested): (?P<how>(?:(?!-->).)*) -->$",
    re.MULTILINE | re.DOTALL,
)
ELSEWHERE = re.compile(
    r"elsewhere (?P<tests>tests/[\w/]+\.py::\w+(?: tests/[\w/]+\.py::\w+)*)(?P<both>, with its output)?"
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block and the comment above it; or, without a language, a comment that stands alone."""

    language: str
    body: str
    line: int
    how: str | None = None
    why_not: str | None = None

    @property
    def steps(self) -> list[str]:
        return [each.strip() for each in (self.how or "").split("; ") if each.strip()]

    @property
    def kinds(self) -> set[str]:
        """The first word of each step."""
        return {each.split()[0] for each in self.steps}

    def directives(self, kind: str) -> list[str]:
        """What stands behind this first word."""
        return [each.removeprefix(kind).strip() for each in self.steps if each.split()[0] == kind]


def marked(text: str, written: str | None = None) -> list[Block]:
    """Every fenced block of a text and every comment that stands alone, in order."""
    found: list[Block] = []
    end = -1
    for part in PART.finditer(text):
        if part["sort"]:
            key = "how" if part["sort"] == "test" else "why_not"
            found.append(Block("", "", text.count("\n", 0, part.start()) + 1, **{key: part["how"]}))
            end = part.end() + 1
            continue
        block = Block(part["language"].strip(), part["body"], text.count("\n", 0, part.start("body")) + 1, written)
        if part.start() == end:
            comment = found.pop()
            block = dataclasses.replace(block, how=comment.how, why_not=comment.why_not)
        found.append(block)
    return found


def name_of(path: Path) -> str:
    """Its path in the repository."""
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> list[Block]:
    """The blocks of a page."""
    return marked(path.read_text(), WRITTEN.get(name_of(path)))


def blocks(text: str, language: str) -> list[Block]:
    """Those of one language."""
    return [block for block in marked(text) if block.language == language]


def without_blocks(text: str) -> str:
    return PART.sub("", text)


def section(text: str, title: str) -> str:
    """A chapter of a document, by its heading."""
    return re.split(r"^#+ .*$", text.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """The rows of all tables in a text, without their heads."""
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    heads = [number for number, row in enumerate(found) if set("".join(row)) <= set("-| ")]
    return [row for number, row in enumerate(found) if number not in heads and number + 1 not in heads]


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)", cell)


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)


def missing(file: str, test: str = "") -> str | None:
    """What to say of a test that a document names, if it does not exist."""
    path = ROOT / file
    if not path.exists():
        return f"{file} does not exist"
    return f"{file}::{test} does not exist" if test and test not in defined(path) else None


@functools.cache
def defined(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)}


def wrong_blocks(parts: list[Block]) -> Iterator[str]:
    """Blocks that nothing tries and no reason excuses; steps that nobody would take."""
    shown = False
    for block in parts:
        if block.language in DIRECTIVES and "code-block" not in block.body:
            continue
        said = f"blocks: the one at line {block.line}"
        if block.why_not is not None:
            if not block.why_not.strip() or not block.language:
                yield f"{said} has no reason, or the reason no block"
        elif not block.steps:
            if not (shown and block.language == "text"):
                yield f"{said} has no test"
        elif trouble := wrong_steps(block):
            yield f"{said} {trouble}"
        shown = bool((found := ELSEWHERE.fullmatch(block.how or "")) and found["both"])


def wrong_steps(block: Block) -> str | None:
    """What is wrong with the comment above a block."""
    if not block.language:
        return None if block.kinds <= ALONE else f"stands above no block: {block.how}"
    if found := ELSEWHERE.fullmatch(block.how or ""):
        absent = filter(None, (missing(*each.split("::")) for each in found["tests"].split()))
        return next((f"is tried nowhere: {each}" for each in absent), None)
    if block.kinds == {"rehearse"}:
        return None if block.language == "sh" else "is no command to rehearse"
    if block.kinds <= TERMINAL:
        return None if len(block.steps) == 1 else f"has more than one step: {block.how}"
    for known in (SERVICE, {"pytest"}, {"gunicorn", "GET"}):
        if block.kinds <= known:
            return None if block.language == "python" else f"is no Python: {block.how}"
    return f"has an unknown directive: {block.how}"
