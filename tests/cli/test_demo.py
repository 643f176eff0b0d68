"""The demo: what it prints is true, it ends when it is told to, and its audit can fail."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from aiohttp_poolscope.cli.demo.audit import Audit, Watch
from aiohttp_poolscope.cli.demo.load import Tallies
from tests.conftest import DEADLINE, Database
from tests.kit import curl

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
START_LIMIT = 60.0
END_LIMIT = 30.0


class Demo:
    """A demo that runs as a program of its own."""

    def __init__(self, *args: str, database_url: str | None = None) -> None:
        environ = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        if database_url is not None:
            environ["DATABASE_URL"] = database_url
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "aiohttp_poolscope", "demo", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            env=environ | {"PYTHONUNBUFFERED": "1"},
            text=True,
        )
        self.output = ""

    def until(self, pattern: str, limit: float = START_LIMIT) -> re.Match[str]:
        """Read what it prints until something is in it."""
        end = time.monotonic() + limit
        output = self.process.stdout
        assert output is not None
        while not (found := re.search(pattern, self.output)):
            ready = select.select([output], [], [], max(0.0, end - time.monotonic()))[0]
            assert ready, f"no {pattern!r} within {limit:g} s in:\n{self.output}"
            line = os.read(output.fileno(), 65536).decode()
            assert line, f"it ended without {pattern!r}:\n{self.output}\n{self.process.communicate()[1]}"
            self.output += line
        return found

    def started(self) -> URL:
        """Wait until it serves; its address."""
        self.until("checks what is left")
        return URL(self.until(r"http://127\.0\.0\.1:\d+/")[0])

    def end(self, *signals: signal.Signals) -> int:
        """Send signals and wait for its end; its exit status."""
        for number in signals:
            self.process.send_signal(number)
        rest, errors = self.process.communicate(timeout=END_LIMIT)
        self.output += rest
        assert "Traceback" not in errors, errors
        return self.process.returncode

    def folder(self) -> Path:
        """Where its server is."""
        return Path(self.until(r"runs in (\S+),")[1])


@contextlib.contextmanager
def running(*args: str, database_url: str | None = None) -> Iterator[Demo]:
    demo = Demo(*args, database_url=database_url)
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.kill()
        demo.process.communicate()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running("--port", "0", "--maxsize", "4") as served:
        served.started()
        yield served


def ask(url: URL, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", url.port, timeout=END_LIMIT)
    try:
        if body is not None:
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        connection.request(method, url.raw_path_qs, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def pool(url: URL) -> Any:
    return json.loads(ask(url.with_path("/pool"))[1])["stats"]


def gone(folder: Path, server: int) -> bool:
    """Whether a server has ended and its folder is deleted."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, 0)
        return False
    return not folder.exists()


def none_left(database: Database) -> bool:
    """Whether all backends end; a server needs a moment to see that a connection is closed."""
    end = time.monotonic() + DEADLINE
    while database.backends() and time.monotonic() < end:
        time.sleep(0.01)
    return not database.backends()


PROMISES = {
    "/accounts/42": (200, '"branch": "Cork"'),
    "/transfer": (200, '"amount": 100'),
    "/report": (504, '"code": "query-timeout"'),
    "/export": (200, "id,branch,balance,reference\n1,Bergen,1000,"),
    "/healthz": (200, '"status": "ok"'),
    "/pool": (200, '"leases"'),
}


def commands(demo: Demo) -> dict[str, str]:
    """The commands it printed, by the path that they end with."""
    lines = re.findall(r"^  ((?:curl|seq) .*)$", demo.output, re.MULTILINE)
    found = {}
    for line in lines:
        url = re.findall(r"http://[^'\s;|]+", line)[-1]
        found[URL(url).path] = line
    return found


def test_the_printed_commands_are_the_ones_checked_here(demo: Demo) -> None:
    """Each command that is printed has its promise below, and none has been forgotten."""
    assert commands(demo).keys() == PROMISES.keys()


@pytest.mark.parametrize("path", PROMISES)
def test_each_printed_url_answers_as_promised(demo: Demo, path: str) -> None:
    """The URL, method and form of each printed command get the answer they are printed for."""
    words = shlex.split(commands(demo)[path].rpartition(";")[2].partition("|")[0])
    form = "&".join(words[i + 1] for i, word in enumerate(words) if word == "-d")
    url = next(URL(word) for word in words if word.startswith("http"))
    status, body = PROMISES[path]
    answered = ask(url, "POST" if form else "GET", form or None)
    assert answered[0] == status
    assert body in answered[1]


@pytest.mark.parametrize("path", PROMISES)
def test_each_printed_command_works_when_pasted(demo: Demo, path: str, tmp_path: Path) -> None:
    """A shell that is given the printed line shows the promised answer."""
    pasted = ["sh", "-c", commands(demo)[path]]
    environ = os.environ | {"PATH": curl.on_path(tmp_path)}
    done = subprocess.run(pasted, env=environ, capture_output=True, check=False, text=True, timeout=END_LIMIT)
    assert PROMISES[path][1] in done.stdout, done
    assert done.returncode == 0


def test_fifty_clients_that_leave_leave_nothing(demo: Demo) -> None:
    """What the guide says about its last command: those who left the queue never had a connection."""
    url = demo.started()
    deadline = time.monotonic() + DEADLINE
    while (before := pool(url))["in_use"]:  # of the test before
        assert time.monotonic() < deadline
    sockets = [socket.create_connection(("127.0.0.1", url.port or 0)) for _ in range(50)]
    for each in sockets:
        each.sendall(b"GET /report?seconds=0.5 HTTP/1.1\r\nHost: demo\r\n\r\n")
    while pool(url)["waiting"] < 46:
        assert time.monotonic() < deadline
    for each in sockets:
        each.close()
    while (stats := pool(url))["in_use"] or stats["waiting"]:
        assert time.monotonic() < deadline
    assert stats["client_gone"] - before["client_gone"] == 46


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("from=1&to=2&amount=1000000", 409),
        ("from=1&to=999999&amount=1", 404),
        ("from=1&to=1&amount=1", 400),
        ("from=1&to=2&amount=-5", 400),
        ("from=1&to=2&amount=1.5", 400),
        ("from=1&to=2", 400),
        ('{"from": 3, "to": 2, "amount": 5}', 200),
        ('{"from": 3, "to": 2, "amount": 5.5}', 400),
        ("[]", 400),
        ("{", 400),
        (json.dumps({"from": "9" * 5000, "to": 1, "amount": 1}), 400),
    ],
)
def test_a_transfer_is_checked(demo: Demo, form: str, status: int) -> None:
    """Money that is not there, accounts that are not there and nonsense are told apart; nothing is a 500."""
    kind = "application/json" if form[0] in "[{" else "application/x-www-form-urlencoded"
    assert ask(demo.started() / "transfer", "POST", form, **{"Content-Type": kind})[0] == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("accounts/0", 404),
        ("accounts/12345678901234567890", 404),
        ("accounts/x", 404),
        ("report?seconds=nan", 400),
        ("report?seconds=61", 400),
        ("report?seconds=0", 200),
    ],
)
def test_a_question_is_checked(demo: Demo, path: str, status: int) -> None:
    """What is not there is 404, what cannot be is 400."""
    assert ask(URL(f"{demo.started()}{path}"))[0] == status


async def test_a_websocket_borrows_for_each_message(demo: Demo) -> None:
    """It answers account ids with balances and holds nothing in between."""
    from aiohttp import ClientSession

    url = demo.started()
    async with ClientSession() as client, client.ws_connect(url / "ws") as websocket:
        lent = pool(url)["lent"]
        for question, answer in [
            ("4999", {"id": 4999, "balance": 1000}),
            ("no", {"error": "send the id of an account"}),
            ("999999", {"id": 999999, "balance": None}),
        ]:
            await websocket.send_str(question)
            assert await websocket.receive_json(timeout=DEADLINE) == answer
        assert (pool(url)["lent"] - lent, pool(url)["in_use"]) == (2, 0)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_without_leftovers(ending: signal.Signals) -> None:
    """Ctrl-C and SIGTERM, also twice, are exit code 0; no server, no folder, no port is left, whoever is connected."""
    with running("--port", "0") as demo:
        url = demo.started()
        folder = demo.folder()
        server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        with socket.create_connection(("127.0.0.1", url.port or 0)) as websocket:
            websocket.sendall(
                b"GET /ws HTTP/1.1\r\nHost: demo\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert b" 101 " in websocket.recv(4096)
            assert demo.end(ending, ending) == 0
        assert gone(folder, server)
        with pytest.raises(ConnectionRefusedError):
            ask(url)


def test_a_signal_while_it_starts_ends_it_too() -> None:
    """Its server may be half made by then: exit code 0, and nothing is left."""
    with running("--port", "0") as demo:
        demo.until("Starting a PostgreSQL")
        before = set(Path("/tmp").glob("poolscope-*"))
        assert demo.end(signal.SIGTERM) == 0
        made = set(Path("/tmp").glob("poolscope-*")) - before
        assert not [folder for folder in made if str(folder) in demo.output]


def test_a_taken_port_is_replaced() -> None:
    """It says so and takes a free one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running("--port", str(port)) as demo:
            url = demo.started()
            assert f"Port {port} is taken; {url.port} is free." in demo.output
            assert ask(url / "accounts" / "1")[0] == 200
            assert "curl" in ask(url)[1]
            assert demo.end(signal.SIGINT) == 0


@pytest.mark.slow
def test_once_finds_all_well() -> None:
    """`--once` with a few clients that leave: exit code 0, a table and an audit, nothing on stderr."""
    with running("--once", "--aborts", "150", "--port", "0", "--seed", "7") as demo:
        output, errors = demo.process.communicate(timeout=2 * START_LIMIT)
        assert (demo.process.returncode, errors) == (0, "")
    assert re.search(r"^ +sent +answered +aborted +lost$", output, re.MULTILINE)
    assert len(re.findall(r"^  left: ", output, re.MULTILINE)) == 7
    assert "BAD" not in output
    audited = re.findall(r"^  ok   (\w+(?: \w+| =)*)  ", output, re.MULTILINE)
    assert {"slow query", "health check", "requests lost", "connections in use", "requests waiting"} <= {*audited}
    assert {"borrows = outcomes", "backends", "sum of balances", "receipts", "backends left"} <= {*audited}


@pytest.mark.slow
def test_once_fails_when_money_comes_from_nowhere(database: Database) -> None:
    """With one balance changed behind its back its audit is BAD, and the exit code is 1."""
    with running("--once", "--aborts", "40", "--port", "0", database_url=database.dsn) as demo:
        demo.until("Service: ")
        database.sql("UPDATE poolscope_demo.accounts SET balance = balance + 1 WHERE id = 4000")
        assert demo.end() == 1
    assert re.search(r"^  BAD  sum of balances +5,000,001, at the start 5,000,000$", demo.output, re.MULTILINE)
    assert re.search(r"^  BAD  accounts off their books +1 of 5,000$", demo.output, re.MULTILINE)
    assert demo.output.count("BAD  ") == 2


LEAK = """
from aiohttp_poolscope.connection import ScopedConnection
end, leaked = ScopedConnection._end, []
def once_not(self, why):
    if self.method == "GET" and self.held and not leaked and why == "the end of its handler":
        leaked.append(self)
    else:
        end(self, why)
ScopedConnection._end = once_not
"""


@pytest.mark.slow
def test_once_fails_when_one_connection_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the release of a single request left out, of hundreds, its audit is BAD and the exit code is 1."""
    (tmp_path / "sitecustomize.py").write_text(LEAK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")
    with running("--once", "--aborts", "40", "--port", "0") as demo:
        demo.until("Service: ")
        assert demo.end() == 1
    assert re.search(r"^  BAD  connections in use +1 ", demo.output, re.MULTILINE)
    assert re.search(r"^  BAD  leases +1$", demo.output, re.MULTILINE)
    assert re.search(r"^  ok   requests waiting +0 ", demo.output, re.MULTILINE)


def test_once_interrupted_has_proved_nothing() -> None:
    """Ctrl-C in the middle of `--once` is not a success, and leaves nothing either."""
    with running("--once", "--port", "0") as demo:
        service = int(demo.until(r"process (\d+)\. Seed")[1])
        folder = demo.folder()
        server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        assert demo.end(signal.SIGINT) == 130
    assert gone(folder, server)
    with pytest.raises(ProcessLookupError):
        os.kill(service, 0)


@pytest.mark.slow
def test_once_on_a_database_of_ones_own(database: Database) -> None:
    """DATABASE_URL: it works in a schema of its own, says so without the password, and drops it at the end."""
    database.sql("CREATE TABLE accounts (mine int)")
    with running("--once", "--aborts", "40", "--port", "0", database_url=database.dsn) as demo:
        demo.until("Service: ")
        assert database.sql("SELECT count(*) FROM poolscope_demo.accounts") == [(5000,)]
        assert demo.end() == 0
    assert "schema of its own, poolscope_demo" in demo.output
    password = URL(database.dsn).password
    assert password is None or password not in demo.output
    assert database.sql("SELECT to_regnamespace('poolscope_demo')") == [(None,)]
    assert database.sql("SELECT count(*) FROM accounts") == [(0,)]
    assert none_left(database)


def test_serving_on_a_database_of_ones_own(database: Database) -> None:
    """DATABASE_URL without --once: the schema goes at Ctrl-C, and so do all connections."""
    with running("--port", "0", database_url=database.dsn) as demo:
        assert ask(demo.started() / "accounts" / "42")[0] == 200
        assert demo.end(signal.SIGINT) == 0
    assert database.sql("SELECT to_regnamespace('poolscope_demo')") == [(None,)]
    assert none_left(database)


def test_a_schema_that_is_there_is_not_touched(database: Database) -> None:
    """It may be somebody's: exit code 1, and the sentence says what to do."""
    database.sql("CREATE SCHEMA poolscope_demo CREATE TABLE treasure ()")
    try:
        with running("--port", "0", database_url=database.dsn) as demo:
            _, errors = demo.process.communicate(timeout=START_LIMIT)
        assert demo.process.returncode == 1
        assert "DROP SCHEMA poolscope_demo CASCADE" in errors
        assert "Traceback" not in errors
        assert database.sql("SELECT count(*) FROM poolscope_demo.treasure") == [(0,)]
    finally:
        database.sql("DROP SCHEMA poolscope_demo CASCADE")


@pytest.mark.parametrize("trouble", ["postgresql://nobody@127.0.0.1:1/none", "postgresql:///x?maxsiz=3"])
def test_a_database_that_cannot_be_used_is_one_sentence(trouble: str) -> None:
    """No traceback: exit code 1, and what is wrong."""
    with running("--port", "0", database_url=trouble) as demo:
        _, errors = demo.process.communicate(timeout=START_LIMIT)
    assert demo.process.returncode == 1
    assert re.fullmatch(r"demo: [^\n]+\n", errors)


HEALTHY = {
    "in_use": 0,
    "waiting": 0,
    "borrows": 5,
    "lent": 3,
    "timed_out": 0,
    "refused": 0,
    "shed": 1,
    "client_gone": 1,
    "cancelled": 0,
    "failed": 0,
}


@pytest.mark.parametrize(
    ("wrong", "leases", "quiet", "passed"),
    [
        ({}, [], True, True),
        ({"in_use": 1}, [{}], True, False),
        ({"waiting": 1}, [], True, False),
        ({"borrows": 6}, [], True, False),
        ({}, [{}], True, False),
        ({}, [], False, False),
    ],
)
def test_the_audit_of_the_pool_can_fail(wrong: dict[str, int], leases: list[Any], quiet: bool, passed: bool) -> None:
    """A lease that did not come back, somebody who still waits, a borrow without an outcome: each is BAD."""
    audit = Audit()
    watch = Watch(None, "", None, "")  # type: ignore[arg-type]
    audit.check_pool({"stats": {**HEALTHY, **wrong}, "leases": leases}, watch, quiet=quiet)
    assert audit.passed is passed


@pytest.mark.parametrize(("most", "seen", "now", "passed"), [
    (4, 9, (4, 0, 0), True),
    (5, 9, (4, 0, 0), False),
    (0, 0, (4, 0, 0), False),
    (4, 9, (4, 1, 0), False),
    (4, 9, (4, 0, 1), False),
])  # fmt: skip
async def test_the_audit_of_the_backends_can_fail(
    most: int, seen: int, now: tuple[int, int, int], passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many at any look, none ever seen, one left in a transaction or at work: each is BAD."""

    async def backends(_: Watch) -> tuple[int, int, int]:
        return now

    monkeypatch.setattr(Watch, "backends", backends)
    watch = Watch(None, "", None, "")  # type: ignore[arg-type]
    watch.most_backends, watch.observations = most, seen
    audit = Audit()
    await audit.check_backends(watch, 4)
    assert audit.passed is passed


@pytest.mark.parametrize(("status", "lost", "aborted", "passed"), [
    ("200", 0, 5, True),
    ("500", 0, 5, False),
    ("200", 1, 5, False),
    ("200", 0, 4, False),
])  # fmt: skip
def test_the_audit_of_the_answers_can_fail(status: str, lost: int, aborted: int, passed: bool) -> None:
    """A 500, a request without an answer, or hardly anybody who left: each is BAD."""
    tallies = Tallies()
    tallies["x"].answered[status] += 1
    tallies["x"].lost, tallies["x"].aborted = lost, aborted
    audit = Audit()
    audit.check_answers(tallies, 10)
    assert audit.passed is passed
