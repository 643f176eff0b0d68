"""The hunt for leaks: it empties what loses connections, lets live what does not, and says which is which."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.cli.stress import CANNOT_TELL, HEALTHY, INTERRUPTED, SICK
from tests.kit.wire import wired

from .programs import LIMIT, REPOSITORY, Terminal, command, environment, run, service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Database

pytestmark = pytest.mark.slow

NAIVE, BASIC = REPOSITORY / "examples" / "naive.py", REPOSITORY / "examples" / "basic.py"
SHORT = ("--duration", "2", "--pause", "2", "--patience", "2")
NOTE = ("--method", "POST", "--data", '{"text": "milk"}')


def stress(url: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Its exit status, and what it says to programs."""
    done = run("stress", url, *SHORT, "--json", *options)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def _healthy(_database: Database) -> Iterator[str]:
    with service(BASIC, _database) as served:
        yield f"{served.url}/settings/max_connections"


@pytest.fixture
def healthy(_healthy: str) -> str:
    """A request of a service that is well."""
    return _healthy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "cancelling"), [(NOTE, False), ((), True)], ids=["bodies, as aiohttp runs by default", "cancellation"]
)
def test_it_empties_the_pool_of_ten_lines_by_hand(
    database: Database, options: tuple[str, ...], cancelling: bool
) -> None:
    """The naive example answers everything before and next to nothing afterwards: sick, and why in words."""
    with service(NAIVE, database, cancelling=cancelling) as served:
        status, said = stress(f"{served.url}/notes", *options, "--dsn", database.dsn)
    assert (status, said["verdict"]) == (SICK, "sick")
    before, after = said["phases"]["before"], said["phases"]["after"]
    assert before["outcomes"] == {"answered": before["sent"]}
    assert after["outcomes"]["silent"] > 0.9 * after["sent"]
    assert "not returned" in said["reasons"][0]


@pytest.mark.slow
@pytest.mark.parametrize("cancelling", [False, True])
def test_it_does_not_empty_the_pool_of_this_package(database: Database, cancelling: bool) -> None:
    """The basic example answers all who stay, during and afterwards, and leaves nothing on the server: healthy."""
    with service(BASIC, database, cancelling=cancelling) as served:
        status, said = stress(f"{served.url}/settings/max_connections", "--dsn", database.dsn)
    assert (status, said["verdict"], said["reasons"]) == (HEALTHY, "healthy", [])
    for name in ("before", "staying", "staying_beside_slow", "after"):
        phase = said["phases"][name]
        assert phase["statuses"] == {"200": phase["sent"]}, name
    assert said["phases"]["leaving"]["outcomes"]["left"] > 20
    assert said["phases"]["slow"]["outcomes"]["left"] > 0
    assert said["server"]["left"] == {"idle_in_transaction": 0, "active": 0}
    assert 0 < said["server"]["most"] <= 20


CARELESS = """
import itertools, os
import aiopg
from aiohttp import web

NUMBERS = itertools.count(1)
POOL = web.AppKey("pool", aiopg.Pool)

async def hold_pool(app):
    app[POOL] = await aiopg.create_pool(os.environ["DATABASE_URL"], minsize=1, maxsize=50)
    yield

async def runs_on(request):
    async with request.app[POOL].acquire() as connection, connection.cursor() as cursor:
        await cursor.execute("SELECT pg_sleep(%s)", (0 if next(NUMBERS) % 20 else 30,))
    return web.Response()

async def stays_open(request):
    connection = await request.app[POOL].acquire()
    cursor = await connection.cursor()
    await cursor.execute("BEGIN")
    await cursor.execute("SELECT 1")
    await request.read()
    await cursor.execute("COMMIT")
    request.app[POOL].release(connection)
    return web.Response()

app = web.Application()
app.cleanup_ctx.append(hold_pool)
app.add_routes([web.get("/runs-on", runs_on), web.post("/stays-open", stays_open)])
web.run_app(app)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "kind", "said_in_words"),
    [
        (("runs-on", "--patience", "0.5", "--pause", "1"), "active", "statements of clients that left still run"),
        (("stays-open", *NOTE), "idle_in_transaction", "transactions of clients that left are still open"),
    ],
)
def test_what_is_left_on_the_server_is_seen(
    database: Database, tmp_path: Path, asked: tuple[str, ...], kind: str, said_in_words: str
) -> None:
    """Statements that run on and transactions that stay open behind clients that left are told of: sick."""
    (tmp_path / "careless.py").write_text(CARELESS)
    with service(tmp_path / "careless.py", database, cancelling=True) as served:
        status, said = stress(f"{served.url}/{asked[0]}", "--dsn", database.dsn, *asked[1:])
    assert status == SICK
    assert said["server"]["left"][kind] > 0
    assert [reason for reason in said["reasons"] if said_in_words in reason]


@pytest.mark.slow
def test_on_a_terminal_it_shows_what_goes_on(healthy: str) -> None:
    """A bar for each phase with its counts, a table, and the verdict in a word that has its colour."""
    with Terminal("stress", healthy, "--duration", "1", "--pause", "0") as terminal:
        for phase in ("Normal load", "90% of the clients leave", "30 slow clients", "A pause", "Normal load again"):
            terminal.until(phase)
        terminal.until("beside them: stay")
        terminal.until(r"\x1b\[\d+mHealthy:\x1b\[0m .* clients left")
        assert terminal.end() == HEALTHY


def test_off_a_terminal_it_is_plain_text(healthy: str) -> None:
    """A line for each phase, the table, the verdict; no control characters; and the seed is there."""
    done = run("stress", healthy, "--duration", "0.5", "--pause", "0", "--slow", "2", "--seed", "42")
    assert (done.returncode, done.stderr) == (HEALTHY, "")
    assert "\x1b" not in done.stdout
    assert "Seed 42." in done.stdout
    assert re.search(r"^ +sent +answered +left +silent +cut +refused +p50 +p99 +statuses$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith("Healthy: ")


@pytest.mark.parametrize(
    "phase", ["Normal load, ", "90% of the clients leave", "30 slow clients", "A pause", "Normal load again"]
)
def test_ctrl_c_has_proved_nothing(healthy: str, database: Database, phase: str) -> None:
    """Interrupted in whichever phase, it says so and ends with 130, without a traceback."""
    with Terminal("stress", healthy, "--duration", "1", "--pause", "1", "--dsn", database.dsn) as terminal:
        terminal.until(phase)
        terminal.key("\x03")
        terminal.until("interrupted, nothing is proved")
        assert terminal.end() == INTERRUPTED
        assert "Traceback" not in terminal.output


def test_a_body_is_sent_as_it_was_typed(healthy: str) -> None:
    """Bytes that are no UTF-8 are no reason to fail: they are sent as they are."""
    body = b"\xff".decode(errors="surrogateescape")
    done = run("stress", healthy, "--duration", "0.5", "--pause", "0", "--slow", "2", "--data", body)
    assert (done.returncode, done.stderr) == (HEALTHY, "")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_has_seen_enough(healthy: str, form: tuple[str, ...]) -> None:
    """`stress | head -1` ends by itself with 0, without a complaint, also where there is more to come."""
    with subprocess.Popen(
        command("stress", healthy, "--duration", "0.5", "--pause", "0", "--slow", "2", *form),
        env=environment(),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        assert (process.wait(LIMIT), process.stderr.read()) == (HEALTHY, b"")


def test_a_service_that_ends_is_sick(database: Database) -> None:
    """One that does not listen any more afterwards is told apart from one that is silent."""
    with service(BASIC, database) as served:
        process = subprocess.Popen(
            command("stress", f"{served.url}/settings/max_connections", *SHORT, "--slow", "0"),
            env=environment(),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        while "clients leave" not in process.stdout.readline():
            assert process.poll() is None
        served.process.kill()
        output = process.communicate()[0]
    assert process.returncode == SICK
    assert "It does not listen any more" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ftp://127.0.0.1/",), "must begin with http:// or https://"),
        (("http://",), "name a host"),
        (("http://[",), "cannot be read"),
        (("http://127.0.0.1:99999/",), "cannot be read"),
        (("http://me:hunter2@127.0.0.1/",), "--header 'Authorization"),
        (("http://192.0.2.1/",), "--i-own-this-host"),
        (("http://127.0.0.1/", "--rate", "100000"), "--rate must be between"),
        (("http://127.0.0.1/", "--abort", "1.5"), "--abort must be between"),
        (("http://127.0.0.1/", "--duration", "nan"), "--duration must be between"),
        (("http://127.0.0.1/", "--header", "nonsense"), "'Name: value'"),
        (("http://127.0.0.1/", "--header", "A: b\r\nC: d"), "one line"),
        (("http://127.0.0.1/", "--method", "GET /x"), "--method"),
        (("http://127.0.0.1/", "--dsn", "postgresql://me:hunter2@127.0.0.1:1/x"), "127.0.0.1:1"),
        (("http://127.0.0.1/", "--dsn", ""), "--dsn is empty"),
        (("http://..../",), "is no name of a host"),
        (("http://xn--/",), "cannot be read"),
        ((), "URL"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2 before anything is sent, with what to write instead; never the password."""
    done = run("stress", *arguments)
    assert done.returncode == CANNOT_TELL
    assert said in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nobody_there(unused: int, host: str) -> None:
    """Where nobody listens, at any address of the name, nothing can be tested: exit code 2."""
    done = run("stress", f"http://{host}:{unused}/", "--duration", "0.5")
    assert done.returncode == CANNOT_TELL
    assert "nobody listens there" in done.stderr


def test_a_request_that_is_not_answered_well_proves_nothing(healthy: str) -> None:
    """A URL that is a 404 never comes to the database: exit code 2, and what to give instead."""
    done = run("stress", f"{healthy}/nowhere", "--duration", "0.5")
    assert done.returncode == CANNOT_TELL
    assert "times 404" in done.stderr
    assert "uses the database" in done.stderr


@pytest.fixture
def unused() -> Iterator[int]:
    """A port that is bound, and where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def test_a_watched_database_that_goes_away_proves_nothing(healthy: str, database: Database) -> None:
    """When the sessions cannot be watched to the end, nothing is said of them: exit code 2."""
    with wired(database) as wire:
        process = subprocess.Popen(
            command("stress", healthy, *SHORT, "--slow", "0", "--dsn", wire.dsn),
            env=environment(),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        while "clients leave" not in process.stdout.readline():
            assert process.poll() is None
        wire.refuse()
        wire.cut()
        _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == CANNOT_TELL
    assert errors.startswith("stress: ")
    assert "Traceback" not in errors
    assert "never retrieved" not in errors
