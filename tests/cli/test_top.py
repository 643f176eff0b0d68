"""The live view: what it shows is what the workers and the server say, for as long as they say it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2
import pytest
from aiohttp import web
from yarl import URL

from aiohttp_poolscope.cli import main
from aiohttp_poolscope.cli.top import CANNOT_TELL, WELL
from aiohttp_poolscope.cli.top import page as top_page
from aiohttp_poolscope.cli.top.view import PageView
from tests.conftest import DEADLINE

from .programs import REPOSITORY, START_LIMIT, Terminal, command, environment, interruptible, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Database, Serve

BOARD = """
import asyncio, os
from aiohttp import web
import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import setup_dashboard

async def hold(request):
    await request["db"].execute("SELECT pg_sleep(%s) -- %s", (60, "hunter2"))

@poolscope.no_connection
async def secret(request):
    raise web.HTTPUnauthorized

async def runner():
    app = web.Application()
    limits = {"statement_timeout": 90, "drain_grace": 0}
    scope = poolscope.setup(app, os.environ["DATABASE_URL"], maxsize=4, processes=2, **limits)
    setup_dashboard(app, scope, allow=lambda request: request.headers.get("Authorization", "let me in") == "let me in")
    app.router.add_get("/hold", hold)
    app.router.add_get("/secret/state.json", secret)
    app.router.add_get("/other/state.json", poolscope.no_connection(other))
    return web.AppRunner(app, shutdown_timeout=1, access_log=None)

async def other(request):
    return web.json_response({"worker": "me"})
"""


class Board(NamedTuple):
    """A service of two workers with a page."""

    url: str
    port: int
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def serving(folder: Path, database: Database, port: int = 0) -> Iterator[Board]:
    (folder / "board.py").write_text(BOARD)
    with socket.create_server(("127.0.0.1", port)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "board:runner", "--worker-class", "aiohttp.GunicornWebWorker",
                "--workers", "2", "--bind", f"fd://{listener.fileno()}",
            ],
            cwd=folder,
            env=environment(DATABASE_URL=database.dsn),
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        end, url, seen = time.monotonic() + START_LIMIT, f"http://127.0.0.1:{port}/_pool/state.json", set()
        while len(seen) < 2:
            assert time.monotonic() < end
            assert process.poll() is None
            with urllib.request.urlopen(url, timeout=START_LIMIT) as answer:
                seen.add(json.load(answer)["worker"]["pid"])
        yield Board(f"http://127.0.0.1:{port}", port, process)
    finally:
        process.terminate()
        process.wait(START_LIMIT)


@pytest.fixture(scope="module")
def _board(_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with serving(tmp_path_factory.mktemp("board"), _database) as board:
        yield board


@pytest.fixture
def board(_board: Board) -> Board:
    """A service of two workers with a page, that all tests here share."""
    return _board


@contextlib.contextmanager
def holding(board: Board, database: Database, number: int) -> Iterator[None]:
    """So many requests that hold a connection."""
    busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active'"
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", board.port)))
            client.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\nX-Request-ID: r-1\r\n\r\n")
        end = time.monotonic() + DEADLINE
        while database.sql(busy)[0][0] - 1 < number:  # this one has the text in it, too
            assert time.monotonic() < end
            time.sleep(0.02)
        try:
            yield
        finally:
            database.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)%'")


def seen(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What it says to programs, once."""
    assert main(["top", *arguments, "--once", "--json"]) == WELL
    said = capsys.readouterr()
    assert said.err == ""
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_the_page_of_two_workers(board: Board, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Both workers are met, by their process ids; together they have what is held, and by whom."""
    with holding(board, database, 3):
        said = seen(capsys, board.url)
    pids = {state["worker"]["pid"] for state in said["workers"]}
    backends = {int(name.rpartition(":")[2]) for (name,) in database.backends("application_name") if "db@" in name}
    assert pids == backends
    assert len(pids) == 2
    assert (said["source"], said["problem"], said["url"]) == ("page", None, f"{board.url}/_pool")
    scopes = [scope for state in said["workers"] for scope in state["scopes"]]
    assert sum(scope["now"]["in_use"] for scope in scopes) == 3
    leases = [lease for scope in scopes for lease in scope["leases"]]
    assert [(lease["method"], lease["route"], lease["request_id"]) for lease in leases] == [("GET", "/hold", "r-1")] * 3


@pytest.mark.parametrize("form", ["", "/_pool", "/_pool/", "/_pool/state.json", "/_pool?x=1"])
def test_any_form_of_its_address(board: Board, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """The host alone means the usual prefix; the page and its JSON are as good."""
    assert len(seen(capsys, board.url + form)["workers"]) == 2


def test_once_in_words(board: Board, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each worker, those who hold with their requests, within 100 columns and without control characters."""
    with holding(board, database, 2):
        assert main(["top", board.url, "--once"]) == WELL
    text = capsys.readouterr().out
    assert "2 of 2 workers seen" in text
    assert len(re.findall(r"^ +\d+ +db +serving +\d/4 ", text, re.MULTILINE)) == 2
    assert len(re.findall(r"^ +[\d.]+ m?s +\d+ +db +GET /hold +r-1 +.*board\.py:\d+ in hold$", text, re.MULTILINE)) == 2
    assert "\x1b" not in text


def test_live_on_a_terminal(board: Board, database: Database) -> None:
    """It shows what changes in place, as it changes; Ctrl-C ends it with 0 and gives the cursor back."""
    with Terminal("top", board.url, "--interval", "0.05") as terminal:
        terminal.until("2 of 2 workers seen")
        with holding(board, database, 1):
            terminal.until(r"GET /hold")
            terminal.until(r"\x1b\[1A")  # it goes up to write over what it wrote
        terminal.key("\x03")
        assert terminal.end() == WELL
        assert terminal.output.rstrip().endswith("\x1b[?25h")
        assert "Traceback" not in terminal.output


def test_live_for_programs(board: Board) -> None:
    """Without a terminal, --json is one document a line, until it is interrupted: exit code 0, nothing on stderr."""
    with subprocess.Popen(
        interruptible("top", board.url, "--json", "--interval", "0.05"),
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=START_LIMIT)
    assert (process.returncode, errors) == (WELL, "")
    assert looks[0]["at"] < looks[1]["at"] < looks[2]["at"]


def test_a_reader_that_has_seen_enough(board: Board) -> None:
    """`top --json | head -1` ends by itself, without a complaint."""
    with subprocess.Popen(
        command("top", board.url, "--json", "--interval", "0.05"),
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(START_LIMIT) == WELL
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.slow
def test_a_service_that_goes_and_comes_back(tmp_path: Path, database: Database) -> None:
    """While nobody answers the view says so and goes on; the workers of the next release are shown when they come."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving(tmp_path, database))
        with Terminal("top", first.url, "--interval", "0.05") as terminal:
            old = terminal.until(r" +(\d+) +db +serving")[1]
            stack.close()
            terminal.until("cannot be reached")
            with serving(tmp_path, database, first.port):
                assert terminal.until(rf" +(?!{old})(\d+) +db +serving")
                terminal.key("\x03")
                assert terminal.end() == WELL


def test_from_the_database(board: Board, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Sessions in groups of one application_name, and the longest one by one: without any value in their statements."""
    other = psycopg2.connect(database.dsn, application_name="psql")
    try:
        other.cursor().execute("SELECT 'hunter2'")
        with holding(board, database, 2):
            said = seen(capsys, database.dsn)
            assert main(["top", database.dsn, "--once"]) == WELL
    finally:
        other.close()
    groups = {group["application_name"]: group for group in said["groups"]}
    ours = [group for name, group in groups.items() if name.startswith("db@")]
    assert (said["source"], len(ours)) == ("server", 2)
    assert sum(group["active"] for group in ours) == 2
    assert (groups["psql"]["idle_in_transaction"], groups["psql"]["backends"]) == (1, 1)
    assert groups["psql"]["longest"] > 0
    statements = {each["application_name"]: each["statement"] for each in said["longest"]}
    assert statements["psql"] == "SELECT ?"
    assert "top@" not in "".join(groups)
    text = capsys.readouterr().out
    assert re.search(r"^ +psql +\w+ +1 +0 +0 +1 +0 ", text, re.MULTILINE)
    assert "hunter2" not in text + json.dumps(said)


def test_a_database_that_goes_and_comes_back(database: Database) -> None:
    """The first look must succeed; later ones may fail, are told, and made again."""
    with Terminal("top", database.dsn, "--interval", "0.05") as terminal:
        terminal.until("backends")
        stop = threading.Event()

        def harass() -> None:
            while not stop.wait(0.001):
                database.kill(waiting=False)

        harassing = threading.Thread(target=harass)
        harassing.start()
        try:
            terminal.until("error")
        finally:
            stop.set()
            harassing.join()
        terminal.until("application_name")
        terminal.key("\x03")
        assert terminal.end() == WELL


async def test_a_worker_that_is_not_met_any_more_is_left_out(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are told apart by process id and start; one that has been away for a while is not shown any more."""
    monkeypatch.setattr(top_page, "FORGET_AFTER", 0.5)
    alive = [(1, 10.0), (1, 20.0)]

    async def state(request: web.Request) -> web.Response:
        pid, started = alive[next(turn) % len(alive)]
        return web.json_response({"worker": {"pid": pid, "started": started}, "scopes": []})

    turn, app = itertools.count(), web.Application()
    app.router.add_get("/_pool/state.json", state)
    async with serve(app) as served:
        page = top_page.Page(served.url, {}, 0.01, 1)
        assert [each["worker"]["started"] for each in (await page.look()).workers] == [10.0, 20.0]
        alive.pop(0)
        left = [each["worker"]["started"] for each in (await page.look()).workers]
        assert left == [10.0, 20.0]
        async with asyncio.timeout(DEADLINE):
            while len(left) > 1:
                await asyncio.sleep(0.02)
                left = [each["worker"]["started"] for each in (await page.look()).workers]
        assert left == [20.0]


def test_who_waits_and_what_is_wrong_is_said() -> None:
    """What a worker's verdict says stands below the table, with its advice; of many holders the longest are shown."""
    lease = {"method": None, "route": None, "request_id": None, "task": "nightly", "held": 1.0, "where": None}
    scope = {
        "key": "db", "state": "serving", "verdict": {"level": "bad", "text": "The queue stands.", "advice": "Do less."},
        "now": {"in_use": 4, "idle": 0, "waiting": 9, "maxsize": 4},
        "rates": {"borrows": None, "errors": {"shed": 2.0, "timed_out": 0.5}},
        "wait": {"p50": None, "p99": 1.5}, "lease": {"p50": 0.1, "p99": 0.2},
        "leases": [lease | {"held": float(held)} for held in range(12)],
    }  # fmt: skip
    lines = list(PageView("http://x/_pool", [{"worker": {"pid": 7, "workers": 4}, "scopes": [scope]}]).lines())
    assert "1 of 4 workers seen" in lines[0]
    assert "bad: db of 7: The queue stands. Do less." in lines
    assert re.search(r"4/4 +0 +9 +0\.0 +2\.5 +1\.5 s +200 ms$", lines[3])
    assert lines[-1] == "  and 2 more"
    assert "11 s" in lines[-11]
    assert "task nightly" in lines[-2]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("{board}/nowhere", "answers 404: give the prefix of setup_dashboard"),
        ("{board}/secret", "answers 401"),
        ("{board}/other", "is not the page of setup_dashboard"),
        ("http://127.0.0.1:1/_pool", "cannot be reached"),
        ("http://", "has no host"),
        ("http://[", "cannot be read"),
        ("http://..../_pool", "cannot be reached"),
        ("http://me:hunter2@127.0.0.1/_pool", "--header 'Authorization"),
        ("localhost:8080", "a page begins with http://"),
        ("postgresql://me:hunter2@127.0.0.1:1/x", "127.0.0.1:1"),
        ("{dsn}", "--header is for a page"),
    ],
)
def test_bad_input(
    board: Board, database: Database, capsys: pytest.CaptureFixture[str], target: str, said: str
) -> None:
    """Exit code 2, what is wrong and what to write instead on stderr, nothing on stdout; never a password."""
    more = ("--header", "X: y") if target == "{dsn}" else ()
    status = main(["top", target.format(board=board.url, dsn=database.dsn), "--once", *more])
    out, err = capsys.readouterr()
    assert (status, out) == (CANNOT_TELL, "")
    assert err.startswith("top: ")
    assert said in err
    assert "hunter2" not in err


def test_a_header_may_let_one_in(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    """What allow= asks for can be sent along; without it the page is as if it was not there."""
    assert len(seen(capsys, board.url, "--header", "Authorization: let me in")["workers"]) == 2
    assert main(["top", board.url, "--once", "--header", "Authorization: please"]) == CANNOT_TELL
    assert "404" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [("--interval", "0"), ("--interval", "nan"), ("--header", "nonsense"), ("--header", "X: é")]
)
def test_bad_options(options: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is asked."""
    assert main(["top", "http://127.0.0.1:1/", *options]) == CANNOT_TELL
    assert options[0] in capsys.readouterr().err


def test_a_password_in_a_dsn_is_not_shown(database: Database) -> None:
    """Not by the program as a whole, either."""
    done = run("top", str(URL(database.dsn).update_query(password="hunter2")), "--once")
    assert (done.returncode, done.stderr) == (WELL, "")
    assert "hunter2" not in done.stdout
