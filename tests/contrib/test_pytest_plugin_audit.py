"""poolscope_audit: the test that leaves something fails, and hears what, whose and where."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest

from .inner_runs import SERVICE, Inner

pytest_plugins = ("pytester",)

LEFT = SERVICE + dedent("""
    async def leak(request):
        kept.append(await request.app[SCOPE].acquire())  # the line to name
        return web.Response()

    async def begin(request):
        await request["db"].execute("BEGIN")
        return web.Response()

    async def spawn(request):
        kept.append(asyncio.create_task(forever()))  # and this one
        return web.Response()

    async def spawn_and_hold(request):
        kept.append(asyncio.create_task(hold(request.app[SCOPE])))
        await asyncio.sleep(0.05)
        return web.Response()

    async def forever():
        await asyncio.sleep(1000)

    async def hold(scope):
        async with scope.transaction():
            await asyncio.sleep(1000)

    async def drop_stream(request):
        async for _ in request["db"].stream("SELECT generate_series(1, 5000)"):
            break
        return web.Response()

    async def fail(request):
        async with request["db"].transaction():
            raise web.HTTPConflict

    HANDLERS = [leak, begin, spawn, spawn_and_hold, drop_stream, fail]

    def made(dsn):
        app = make_app(dsn, drain_grace=0.2, drain_timeout=0.5)
        for handler in HANDLERS:
            app.router.add_get("/" + handler.__name__, handler)
        return app
""")

IN_THE_TEST = """
@pytest.mark.usefixtures("poolscope_audit")
@pytest.mark.parametrize("path", PATHS)
async def test_it(dsn, path):
    async with TestClient(TestServer(made(dsn))) as client:
        await client.get("/" + path)
"""

IN_A_FIXTURE = """
@pytest.fixture
async def client(dsn):
    async with TestClient(TestServer(made(dsn))) as client:
        yield client

pytestmark = pytest.mark.usefixtures("poolscope_audit")

@pytest.mark.parametrize("path", PATHS)
async def test_it(client, path):
    await client.get("/" + path)
"""

WITH_A_ROLLBACK = (
    IN_A_FIXTURE.replace("async def client(dsn)", "async def client(dsn, poolscope_rollback)")
    .replace("    async with", "    app = made(dsn)\n    poolscope_rollback(app[SCOPE])\n    async with", 1)
    .replace("TestServer(made(dsn))", "TestServer(app)")
)

FOR_THE_SESSION = """
import pytest_asyncio

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(dsn):
    async with TestClient(TestServer(made(dsn))) as client:
        yield client

@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("path", PATHS)
async def test_it(client, path, poolscope_audit):
    await client.get("/" + path)
"""

IN_A_BLOCK = FOR_THE_SESSION.replace("poolscope_audit):", "poolscope_audit, poolscope_rollback):").replace(
    "    await client.get", "    async with poolscope_rollback.running(client.app[SCOPE]):\n        await client.get", 1
)

UNASKED = """
@pytest.mark.parametrize("path", PATHS)
async def test_unasked(dsn, path):
    async with TestClient(TestServer(made(dsn))) as client:
        await client.get("/" + path)

async def test_of_its_own(dsn, poolscope_audit):
    async with TestClient(TestServer(made(dsn))) as client:
        await client.get("/begin")
    assert False, "mine"
"""

SAID = {
    "leak": "a connection was left in use by GET /leak, borrowed at *test_*.py:{} in leak (*",
    "begin": "a transaction was left open by GET /begin, borrowed at *test_*.py:* in begin: it was rolled back",
    "spawn": "a task was left behind by GET /spawn: forever, begun at *test_*.py:{}",
    "spawn_and_hold": "a connection was left in use, in a transaction by GET /spawn_and_hold, borrowed at * in hold (*",
}
NOTHING_LEFT = ("", "drop_stream", "fail", "not-there")


def line_of(mark: str) -> int:
    """The line of the inner file, of which pytester strips what is empty at the beginning."""
    return next(number for number, line in enumerate(LEFT.lstrip("\n").splitlines(), 1) if mark in line)


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server_dsn: str) -> Inner:
    return Inner(pytester, monkeypatch, server_dsn)


def blamed(result: pytest.RunResult) -> set[str]:
    """The paths whose tests did not pass."""
    found = (re.match(r"(?:FAILED|ERROR) .*::test_it\[(.*?)\]", line) for line in result.stdout.lines)
    return {match[1] for match in found if match}


@pytest.mark.parametrize(
    "tests",
    [IN_THE_TEST, IN_A_FIXTURE, WITH_A_ROLLBACK, FOR_THE_SESSION],
    ids=["in-the-test", "in-a-fixture", "rolled-back", "for-the-session"],
)
def test_who_leaves_something_fails(inner: Inner, tests: str) -> None:
    """A connection in use, an open transaction, a task: this test fails, and hears of the request and the line.

    Wherever the application is started; and answers, errors, a stream that was dropped and a transaction that was
    rolled back leave nothing, also after a test that did.
    """
    paths = [path for pair in zip(SAID, NOTHING_LEFT, strict=True) for path in pair]
    result = inner.run(f"{LEFT}\nPATHS = {paths}\n{tests}")
    assert blamed(result) == SAID.keys()
    assert result.parseoutcomes()["passed"] >= len(NOTHING_LEFT)
    marks = {"leak": "# the line to name", "spawn": "# and this one"}
    for path, said in SAID.items():
        result.stdout.fnmatch_lines_random([f"*{said.format(line_of(marks.get(path, '')))}"])


def test_in_a_block_that_is_rolled_back(inner: Inner) -> None:
    """There, too, what was left is found, and the application and its first pool go on."""
    result = inner.run(f"{LEFT}\nPATHS = ['', 'begin', 'drop_stream', 'fail', 'spawn']\n{IN_A_BLOCK}")
    assert blamed(result) == {"begin", "spawn"}
    for path in ("begin", "spawn"):
        result.stdout.fnmatch_lines_random([f"*{SAID[path].format('*')}"])


def test_nobody_is_audited_who_did_not_ask(inner: Inner) -> None:
    """Without the fixture nothing is looked at; and a test that failed for its own reason is reported once."""
    result = inner.run(f"{LEFT}\nPATHS = ['begin', 'leak', 'spawn']\n{UNASKED}")
    result.assert_outcomes(passed=3, failed=1)
    assert "poolscope_audit:" not in result.stdout.str()


def test_it_says_which_backend_is_left(inner: Inner) -> None:
    """A session with the pool's name that outlives it on the server is found there, and told with what it does."""
    tests = """
    import psycopg2
    from aiohttp_poolscope.contrib.testing import audit

    async def test_it(dsn, monkeypatch, poolscope_audit):
        audit.BACKEND_LIMIT = 0.05
        app = make_app(dsn)
        async with TestClient(TestServer(app)) as client:
            assert (await client.get("/")).status == 200
            name = app[SCOPE]._run.pool.driver.name
        kept.append(psycopg2.connect(dsn, application_name=name))
        kept[0].cursor().execute("SELECT 'still here'")
    """
    result = inner.run(SERVICE + dedent(tests))
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["poolscope_audit: backend * of pool 'db' is left on the server, idle in transaction: *"]
    )
