"""The commands of the documents do what is shown below them: tests/kit/documents.py has the steps.

They see a PostgreSQL with the role ``app``, a copy of the examples, and the files of ``GIVEN``.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from tests.kit.documents import DOCUMENTS, ROOT, name_of, read

from .reader import Reader, follow_all, steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kit.documents import Block

pytestmark = pytest.mark.slow

GIVEN = {
    "service.py": """
import os
from aiohttp import web
import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import setup_dashboard

async def report(request):
    await request["db"].execute("SELECT pg_sleep(%s)", (25,))
    return web.Response()

@web.middleware
async def audit(request, handler):
    print(request["db"])
    return await handler(request)

app = web.Application(middlewares=[audit])
poolscope.setup(app, os.environ["DATABASE_URL"])

async def runner():
    app = web.Application()
    app.router.add_get("/report", report)
    scope = poolscope.setup(app, os.environ["DATABASE_URL"], maxsize=5, processes=2, drain_grace=0, drain_timeout=0.5)
    setup_dashboard(app, scope, allow="loopback")
    return web.AppRunner(app, shutdown_timeout=0.5)
""",
    "visitors.py": """
import asyncio, contextlib, json, os, sys
import aiohttp, psycopg2

WORKERS = "SELECT count(DISTINCT application_name) FROM pg_stat_activity WHERE application_name LIKE 'db@%'"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(25)%'"

async def main():
    observer = psycopg2.connect(os.environ["DATABASE_URL"])
    observer.autocommit = True
    cursor = observer.cursor()

    async def until(number, statement):
        while cursor.execute(statement) or cursor.fetchone()[0] != number:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(until(2, WORKERS), 20)
    async with aiohttp.ClientSession() as session:
        asked = [asyncio.ensure_future(visit(session)) for _ in range(3)]
        await asyncio.wait_for(until(3, WAITING), 20)
        observer.close()
        print("three requests wait", flush=True)
        await asyncio.gather(*asked)
        await asyncio.Event().wait()

async def visit(session):
    with contextlib.suppress(aiohttp.ClientError):
        await session.get(f"http://127.0.0.1:{sys.argv[1]}/report")

with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
""",
}
"""What a reader has beside the examples: a service with a mistake in it and a page, and somebody who visits it."""

EVERY = [(name_of(path), read(path)) for path in DOCUMENTS]
PAGES = [(page, parts) for page, parts in EVERY if steps(parts) and page != "docs/tutorial.md"]
REHEARSED = [(page, block) for page, parts in EVERY for block in parts if block.kinds == {"rehearse"}]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that nobody else uses: the outputs tell of all its connections."""
    with EmbeddedPostgres(settings={"max_connections": 100}, tcp=True) as server:
        server.sql(f"CREATE ROLE app LOGIN PASSWORD '{server.password}'; ALTER ROLE app SET statement_timeout = '5s'")
        yield server


@pytest.fixture
def reader(server: EmbeddedPostgres, tmp_path: Path) -> Reader:
    """A reader with a copy of the examples, which serve at the reader's port."""
    reader = Reader(tmp_path, server.dsn.replace("postgres:", "app:", 1))
    shutil.copytree(ROOT / "examples", reader.folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for path in reader.folder.glob("examples/*.py"):
        path.write_text(reader.here(path.read_text()))
    for name, text in GIVEN.items():
        (reader.folder / name).write_text(text)
    return reader


@pytest.mark.parametrize("parts", [parts for _, parts in PAGES], ids=[page for page, _ in PAGES])
def test_the_commands_of_a_page(parts: list[Block], reader: Reader) -> None:
    """Whoever types what the page says sees what it shows."""
    follow_all(reader, parts)


def rehearse(commands: str, reader: Reader) -> list[str]:
    """Ask make what it would do, and each program of ours whether it would understand; which were asked.

    A ``git clone`` is left out: there is the clone.
    """
    asked = []
    for line in commands.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words[:2] == ["git", "clone"]:
            continue
        assert words[0] in {"make", "python"}, f"nobody knows how to rehearse this: {line}"
        planned = [words]
        if words[0] == "make":
            run = reader.command(["make", "--dry-run", *words[1:]], ROOT)
            planned = [shlex.split(each) for each in run.splitlines() if re.match(r"\S+/bin/python (?!-m pip )", each)]
        for program in planned:
            understood(program[1:], reader)
        asked += [shlex.join(program[1:]) for program in planned]
    return asked


def understood(arguments: list[str], reader: Reader) -> None:
    """Whether a program exists and has these options; where tests are named, whether there are such."""
    count = 2 if arguments[0] == "-m" else 1
    program, options = arguments[:count], arguments[count:]
    if program == ["-m", "pytest"]:
        if any(each.startswith("tests/") for each in options):
            reader.command([sys.executable, *arguments, "--collect-only", "-qq", "-n0"], ROOT)
        return  # without a name it is what runs here
    says = reader.command([sys.executable, *program, "--help"], ROOT)
    for option in options:
        if found := re.match(r"--[\w-]+|-\w", option):
            assert re.search(rf"(?<![\w-]){found[0]}(?![\w-])", says), f"{shlex.join(program)} has no {found[0]}"


@pytest.mark.parametrize(("page", "block"), REHEARSED, ids=[f"{page}:{block.line}" for page, block in REHEARSED])
def test_what_would_be_run(page: str, block: Block, reader: Reader) -> None:
    """Make has the target, and what it would run exists and has the options."""
    assert rehearse(block.body, reader), page


@pytest.mark.parametrize(
    ("commands", "complaint"),
    [
        ("make nothing", "No rule to make target"),
        ("make simulate ARGS=--sead=1", "has no --sead"),
        ('make test ARGS="tests/pool/test_pool.py -k nonsense -n0"', "exit code 5"),
        ("python -m benchmarks.decline", "No module named"),
        ("rm -rf build", "nobody knows"),
    ],
)
def test_the_rehearsal_can_fail(commands: str, complaint: str, reader: Reader) -> None:
    """A target, a module, an option or a test that is not there is found out."""
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        rehearse(commands, reader)
