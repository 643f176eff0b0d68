"""Every Python block of the documents does what the comment above it says: tests/kit/documents.py has the steps."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
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
from tests.conftest import until
from tests.kit.documents import DOCUMENTS, PROGRAM, README, ROOT, SERVICE, TRIED, Block, blocks, name_of, read, section
from tests.kit.following import REQUEST, SOCKET, follow, source

from .reader import plugged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import Database, Serve

EVERY = [(name_of(path), block) for path in DOCUMENTS for block in read(path) if block.language == "python"]


def having(kinds: set[str], *, only: bool = True) -> pytest.MarkDecorator:
    """A parameter for each block whose steps are of these kinds."""
    found = [(page, block) for page, block in EVERY if page not in TRIED and block.kinds & kinds]
    found = [(page, block) for page, block in found if block.kinds <= kinds or not only]
    return pytest.mark.parametrize(("page", "block"), found, ids=[f"{page}:{block.line}" for page, block in found])


@pytest.fixture
def people(database: Database) -> Database:
    """What the examples find in their database."""
    database.sql("CREATE TABLE users (id serial PRIMARY KEY, email text NOT NULL)")
    database.sql("INSERT INTO users (email) VALUES ('ada@example.org'), ('bob@example.org')")
    database.sql("CREATE TABLE accounts (id serial PRIMARY KEY, balance int NOT NULL)")
    database.sql("INSERT INTO accounts (balance) VALUES (100), (0)")
    return database


@pytest.mark.usefixtures("dsn")  # the audit then sees what is left on the server
@having(SERVICE)
async def test_a_block_runs(
    page: str, block: Block, people: Database, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code on the page does what the page says, on a real socket."""
    for name, value in (pair.split("=", 1) for each in block.directives("env") for pair in each.split()):
        monkeypatch.setenv(name, value.format(dsn=people.dsn))
    context = executed(page, block, people.dsn)
    app = context["app"]
    steps = [match for each in block.steps if (match := REQUEST.fullmatch(each) or SOCKET.fullmatch(each))]
    wanted = {(match.groupdict().get("method", "GET"), match["path"], match["handler"]) for match in steps}
    for method, path, handler in wanted:
        if handler:
            app.router.add_route(method, path, context[handler])
    async with serve(app) as served:
        for each in block.steps:
            await follow(each, served, context, people)
        if "scope" in context:
            await until(lambda: context["scope"].stats().in_use == 0, "every connection's return")


def executed(page: str, block: Block, dsn: str) -> dict[str, Any]:
    """What the code leaves, with an ``app`` and, but for code with a pool of aiopg's own, a ``scope``."""
    app = web.Application()
    context: dict[str, Any] = {
        "__name__": page,
        "app": app,
        "asyncio": asyncio,
        "contextvars": contextvars,
        "poolscope": poolscope,
        "web": web,
    }
    if re.search(r"\bscope\b", block.body) and "scope = " not in block.body:
        context["scope"] = poolscope.setup(app, dsn, maxsize=4)
    exec(compile(source(block, dsn), page, "exec"), context)
    if "aiopg" not in context and "scope" not in context:
        context["scope"] = poolscope.setup(context["app"], dsn, maxsize=4)
    return context


BEFORE = {
    "a client of an application that goes on": """
import contextlib, pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
import aiohttp_poolscope as poolscope

SCOPE = web.AppKey("scope", poolscope.PoolScope)

async def add(request):
    await request["db"].execute("INSERT INTO people (email) VALUES (%s)", (await request.text(),))
    return web.Response(status=201)

@pytest.fixture
async def client(poolscope_postgres):
    poolscope_postgres.sql("CREATE TABLE people (email text)")
    app = web.Application()
    app.router.add_post("/users", add)
    app[SCOPE] = poolscope.setup(app, poolscope_postgres.dsn)
    async with TestClient(TestServer(app)) as client:
        yield client
        assert await app[SCOPE].fetchval("SELECT count(*) FROM people") == 0
""",
    "a test that is given an audit": """
import pytest

def test_it(request):
    assert "poolscope_audit" in request.fixturenames
""",
}


@pytest.mark.slow
@having({"pytest"})
def test_a_file_of_tests_passes(page: str, block: Block, server_dsn: str, tmp_path: Path) -> None:
    """The example of tests of one's own is one."""
    how = re.fullmatch(r"(\d+)(?: after (.+))?", block.directives("pytest")[0])
    assert how is not None, f"{page}: {block.how}"
    (tmp_path / "test_service.py").write_text((BEFORE[how[2]] if how[2] else "") + source(block, ""))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "POOLSCOPE_TEST_DSN": server_dsn, **plugged()}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{how[1]} passed" in run.stdout


@having({"gunicorn"}, only=False)
async def test_gunicorn_as_in_the_readme(page: str, block: Block, dsn: str, database: Database) -> None:
    """The module and the README's own command serve, and end in order: exit 0 and no connection left."""
    [command] = [each.body.split() for each in blocks(README.read_text(), "sh") if each.body.startswith("gunicorn")]
    assert command[1] == block.directives("gunicorn")[0], page
    async with gunicorn(command[1:], source(block, dsn)) as (process, client):
        for step in block.directives("GET"):
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


def test_no_block_is_left_out() -> None:
    """Each block with such steps is in just one of the tests above."""
    tried = [block for page, block in EVERY if page not in TRIED and block.kinds & (SERVICE | PROGRAM)]
    tests = (test_a_block_runs, test_a_file_of_tests_passes, test_gunicorn_as_in_the_readme)
    marks = [mark for test in tests for mark in test.pytestmark if mark.name == "parametrize"]
    found = [block for mark in marks for _, block in mark.args[1]]
    assert sorted(map(id, found)) == sorted(map(id, tried))


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
