"""The documents say what is true: their code runs, their tables match the code, their links and names exist.

A Python block in README.md says in a comment right above it how it is tried::

    <!-- test: GET /users/1 get_user -> 200 ada; ok scope.stats().in_use == 0 -->

It is executed with ``app`` and ``scope`` there (unless it makes its own), ``web``, ``poolscope``, ``asyncio`` and
``contextvars``, and the DSN it names replaced by that of the test database. Then, on a real socket, in this order:

    GET /path handler -> 200 text     a request; the handler's route is added first, if one is named
    WS /path handler word -> text     a websocket that sends a word and is answered
    await function() -> value         a coroutine of the block
    ok expression                     true
    until 3 SELECT ...                a statement that comes to give this value
    env NAME=value ...                variables, set before the block runs
    pytest                            the block is a test file, and passes
    gunicorn service:runner           the block is a module; the README's own command serves it
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import contextvars
import dataclasses
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession, UnixConnector, web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import config, errors

from .conftest import Database, Serve, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(
    r"(?:^<!-- test: (?P<how>.*?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
CODE_DSN = re.compile(r"postgresql://[\w,]+/\w+(\??)")

INTERNAL = {"client", "handling", "held", "method", "reported", "route", "running", "task", "where", "who"}
"""What the scope and the pool keep on a connection: no promise to a handler."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    body: str
    line: int
    how: str | None


def blocks(text: str, language: str) -> list[Block]:
    found = [
        Block(match["language"], match["body"], text.count("\n", 0, match.start("body")) + 1, match["how"])
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language == language]


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


def wrong_settings(text: str) -> Iterator[str]:
    """The table of settings against PoolConfig."""
    rows = {name: row for row in table(section(text, "Settings")) for name in names(row[0])}
    fields = {field.name: field for field in dataclasses.fields(poolscope.PoolConfig)}
    if rows.keys() != config.SETTINGS.keys():
        yield f"settings: {sorted(rows.keys() ^ config.SETTINGS.keys())} on one side only"
    for name in rows.keys() & config.SETTINGS.keys():
        default, unit = re.findall(r"^`(.*)`( s)?$", rows[name][1])[0]
        if default != repr(fields[name].default).replace("'", '"'):
            yield f"settings: {name} has the default {fields[name].default!r}, not {default}"
        if bool(unit) != config.SETTINGS[name].allowed.startswith("a number of seconds"):
            yield f"settings: {name} has the wrong unit"


def wrong_errors(text: str) -> Iterator[str]:
    """The table of errors against errors.py."""
    said = {names(row[0])[0]: (int(row[1]), row[2].strip("`")) for row in table(section(text, "Errors"))}
    kinds = [getattr(errors, name) for name in errors.__all__ if name != "PoolScopeError"]
    true = {kind.__name__: (kind.status, kind.code) for kind in kinds}
    for name in said.keys() | true.keys():
        if said.get(name) != true.get(name):
            yield f"errors: {name} is {true.get(name)}, not {said.get(name)}"
    if any((kind.status == 503) != (kind.retry_after is not None) for kind in kinds):
        yield "errors: Retry-After is not on every 503, or on others"


def wrong_methods(text: str) -> Iterator[str]:
    """The table of methods against ScopedConnection, and the scope's own anywhere in the text."""
    said = {name for row in table(section(text, "The connection")) for name in names(row[0])}
    true = {name for name in dir(poolscope.ScopedConnection) if not name.startswith("_")} - INTERNAL
    if said != true:
        yield f"methods: {sorted(said ^ true)} on one side only"
    for name in dir(poolscope.PoolScope):
        if not name.startswith("_") and not re.search(rf"[.`]{name}\b", text):
            yield f"methods: PoolScope.{name} is not mentioned"
    marks = {name.partition(".")[2] for row in table(section(text, "Marks")) for name in names(row[0].replace("@", ""))}
    if marks != {"no_connection", "lazy", "eager", "replica", "transactional"}:
        yield f"marks: {sorted(marks)}"


def wrong_commands(text: str) -> Iterator[str]:
    """Make's targets and the files named in commands."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = "\n".join(block.body for block in blocks(text, "sh"))
    for target in re.findall(r"^make ([\w-]+)", commands, re.MULTILINE) + re.findall(r"`make ([\w-]+)", text):
        if target not in targets:
            yield f"commands: make {target} does not exist"
    for file in re.findall(r"python ([\w/]+\.py)", text):
        if not (ROOT / file).exists():
            yield f"commands: {file} does not exist"


def wrong_links(text: str, home: Path) -> Iterator[str]:
    """Links to files and to headings."""
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = (home / file).resolve() if file else None
        if target is not None and not target.exists():
            yield f"links: {file} does not exist"
        elif heading:
            there = text if target is None else target.read_text()
            slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings(there)]
            if heading not in slugs:
                yield f"links: no heading #{heading}"


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)


def wrong_blocks(text: str) -> Iterator[str]:
    """Python that nothing runs."""
    for block in blocks(text, "python"):
        if not block.how:
            yield f"blocks: the one at line {block.line} has no test"


def wrong_tests(text: str) -> Iterator[str]:
    """Tests that a document names, and that do not exist."""
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        path = ROOT / file
        if not path.exists():
            yield f"tests: {file} does not exist"
        elif test and test not in defined(path):
            yield f"tests: {file}::{test} does not exist"


def defined(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)}


PROMISES = {
    *(f"R{n}" for n in range(1, 9)), *(f"B{n}" for n in range(1, 10)),
    *(f"S{n}" for n in range(1, 6)), *(f"F{n}" for n in range(1, 6)), "O3", "O5",
}  # fmt: skip
HAZARDS = {*(f"P{n}" for n in range(1, 15)), *(f"C{n}" for n in range(1, 19)), *(f"A{n}" for n in range(1, 18))}


def wrong_guarantees(text: str) -> Iterator[str]:
    """Each promise and each hazard has one row, with a test; each defence that is named is there."""
    rows = table(text.partition("\n## Figures\n")[0])  # which have commands instead of tests
    ids = [row[0] for row in rows]
    for each in sorted(PROMISES | HAZARDS):
        if ids.count(each) != 1:
            yield f"guarantees: {each} has {ids.count(each)} rows"
    for row in rows:
        if "`tests/" not in row[-1] and not row[-1].startswith("documented"):
            yield f"guarantees: {row[0]} has no test"
        for place in names(row[2]) if row[0] in HAZARDS else []:
            if not exists(place):
                yield f"guarantees: {row[0]}: {place} does not exist"


def exists(place: str) -> bool:
    """Whether it is a setting, or ``module.Class.method`` of the package."""
    module, *rest = place.split(".")
    if not rest:
        return place in config.SETTINGS
    try:
        found: Any = importlib.import_module(f"aiohttp_poolscope.{module}")
        for name in rest:
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return False
    return True


def wrong(path: Path, text: str) -> list[str]:
    """Everything that is wrong with a document."""
    found = [*wrong_links(text, path.parent), *wrong_commands(text), *wrong_tests(text)]
    if path == README:
        for check in (wrong_settings, wrong_errors, wrong_methods, wrong_blocks):
            found += check(text)
    if path == GUARANTEES:
        found += wrong_guarantees(text)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_document_is_right(path: Path) -> None:
    """Tables, links, commands and names of tests are what the code has."""
    assert wrong(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "pattern", "instead", "complaint"),
    [
        (README, r"\| `maxsize` \| `10` ", "| `maxsize` | `11` ", "settings: maxsize has the default 10, not 11"),
        (README, r"\| `reset` \| .*\n", "", "settings: ['reset'] on one side only"),
        (README, r"`60.0` s", "`60.0`", "settings: idle_in_transaction_timeout has the wrong unit"),
        (README, r"`QueryTimeout` \| 504", "`QueryTimeout` | 503", "errors: QueryTimeout is (504, 'query-timeout')"),
        (README, r"\| `fetchval\(", "| `fetchvalue(", "methods: ['fetchval', 'fetchvalue'] on one side only"),
        (README, r"begin_drain", "drain", "methods: PoolScope.begin_drain is not mentioned"),
        (README, r"make test ", "make tests ", "commands: make tests does not exist"),
        (README, r"\(LICENSE\)", "(LICENCE)", "links: LICENCE does not exist"),
        (README, r"\(#limits\)", "(#limit)", "links: no heading #limit"),
        (README, r"<!-- test: .*\n", "", "has no test"),
        (GUARANTEES, r"\| P1 \|", "| P99 |", "guarantees: P1 has 0 rows"),
        (GUARANTEES, r"::test_", "::test_no_", "does not exist"),
        (GUARANTEES, r"`gate\.Gate", "`gate.Goat", "does not exist"),
        (GUARANTEES, r"(\| R1 \|.*\|) `.*`", r"\1 soon", "guarantees: R1 has no test"),
    ],
)
def test_the_checks_can_fail(path: Path, pattern: str, instead: str, complaint: str) -> None:
    """A document with one thing wrong in it is found out."""
    text = path.read_text()
    spoiled = re.sub(pattern, instead, text, count=0 if pattern == "begin_drain" else 1)
    assert spoiled != text
    assert any(complaint in each for each in wrong(path, spoiled))


PYTHON = blocks(README.read_text(), "python")


def directives(block: Block, kind: str = "") -> list[str]:
    every = [each.strip() for each in (block.how or "").split("; ")]
    return [each.removeprefix(kind).strip() for each in every if each.startswith(kind)]


def is_served(block: Block) -> bool:
    return not directives(block, "pytest") and not directives(block, "gunicorn")


@pytest.fixture
def people(database: Database) -> None:
    """What the README's examples find in their database."""
    database.sql("CREATE TABLE users (id serial PRIMARY KEY, email text NOT NULL)")
    database.sql("INSERT INTO users (email) VALUES ('ada@example.org'), ('bob@example.org')")
    database.sql("CREATE TABLE accounts (id serial PRIMARY KEY, balance int NOT NULL)")
    database.sql("INSERT INTO accounts (balance) VALUES (100), (0)")


def source(block: Block, dsn: str) -> str:
    """The code, with the DSN of the test database, its lines numbered as in the README."""
    code = CODE_DSN.sub(lambda match: dsn + ("&" if match[1] else ""), block.body)
    return "\n" * (block.line - 1) + code


REQUEST = re.compile(r"(?P<method>GET|POST) (?P<path>\S+)(?: (?P<handler>\w+))? -> (?P<status>\d+) ?(?P<text>.*)")
SOCKET = re.compile(r"WS (?P<path>\S+) (?P<handler>\w+) (?P<word>\S+) -> (?P<text>.*)")


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize(
    "block", [each for each in PYTHON if is_served(each)], ids=lambda block: f"README.md:{block.line}"
)
async def test_a_block_of_the_readme_runs(
    block: Block, dsn: str, database: Database, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code in the README does what the README says, on a real socket."""
    for name, value in (pair.split("=", 1) for each in directives(block, "env") for pair in each.split()):
        monkeypatch.setenv(name, value.format(dsn=dsn))
    app = web.Application()
    context: dict[str, Any] = {
        "__name__": "readme",
        "app": app,
        "asyncio": asyncio,
        "contextvars": contextvars,
        "poolscope": poolscope,
        "web": web,
    }
    if "scope = " not in block.body:
        context["scope"] = poolscope.setup(app, dsn, maxsize=4)
    exec(compile(source(block, dsn), str(README), "exec"), context)
    app = context["app"]
    steps = [match for each in directives(block) if (match := REQUEST.fullmatch(each) or SOCKET.fullmatch(each))]
    wanted = {(match.groupdict().get("method", "GET"), match["path"], match["handler"]) for match in steps}
    for method, path, handler in wanted:
        if handler:
            app.router.add_route(method, path, context[handler])
    async with serve(app) as served:
        for each in directives(block):
            await follow(each, served, context, database)
        await until(lambda: context["scope"].stats().in_use == 0, "every connection's return")


async def follow(step: str, served: Any, context: dict[str, Any], database: Database) -> None:
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


@pytest.mark.parametrize("block", [each for each in PYTHON if directives(each, "pytest")])
def test_the_test_in_the_readme_passes(block: Block, tmp_path: Path) -> None:
    """The example of a test of one's own is one, and finds its own PostgreSQL."""
    (tmp_path / "test_service.py").write_text(source(block, ""))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout


@pytest.mark.parametrize("block", [each for each in PYTHON if directives(each, "gunicorn")])
async def test_gunicorn_as_in_the_readme(block: Block, dsn: str, database: Database) -> None:
    """The README's module and command serve, and end in order: exit 0 and no connection left."""
    [command] = [each.body.split() for each in blocks(README.read_text(), "sh") if each.body.startswith("gunicorn")]
    assert command[1] == directives(block, "gunicorn")[0]
    async with gunicorn(command[1:], source(block, dsn)) as (process, client):
        for step in directives(block, "GET"):
            match = REQUEST.fullmatch(f"GET {step}")
            assert match is not None
            async with client.get(f"http://service{match['path']}") as response:
                assert (response.status, await response.text()) == (int(match["status"]), match["text"])
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    await until(lambda: not database.backends(), "the backends' end")


def test_the_gunicorn_example_keeps_its_rule() -> None:
    """2 * shutdown_timeout + drain_grace + 1 < graceful_timeout holds for the numbers that stand beside the rule."""
    text = section(README.read_text(), "gunicorn")
    number: Callable[[str], float] = lambda name: float(re.findall(rf"{name}[= ](\d+)", text)[0])  # noqa: E731
    assert 2 * number("shutdown_timeout") + number("drain_grace") + 1 < number("--graceful-timeout")


def listens(path: str) -> bool:
    """Whether somebody accepts there: a Unix socket is a file before that."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@contextlib.asynccontextmanager
async def gunicorn(arguments: list[str], module: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    """gunicorn on a socket in a folder of its own, with the module ``service`` there."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "service.py").write_text(module)  # noqa: ASYNC240  a small file, nobody waits
        paths = os.pathsep.join([folder, str(ROOT), os.environ.get("PYTHONPATH", "")])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gunicorn", *arguments, "--bind", f"unix:{folder}/http"),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        log = asyncio.create_task(process.stderr.read())
        try:
            await until(lambda: listens(f"{folder}/http") or process.returncode is not None, "gunicorn", 20)
            async with ClientSession(connector=UnixConnector(f"{folder}/http")) as client:
                yield process, client
        except BaseException:
            if process.returncode is None:
                process.kill()
            print((await log).decode())
            raise
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await log
