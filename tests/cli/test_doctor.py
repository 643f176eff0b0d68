"""The doctor's calculator: it asks the real server, says what to set, and its exit code tells whether it fits."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import psycopg2
import pytest
from yarl import URL

from aiohttp_poolscope.capacity.limits import Limits
from aiohttp_poolscope.capacity.sizing import Demand, plan
from aiohttp_poolscope.cli.doctor import CANNOT_TELL, NOT_WELL, WELL
from tests.conftest import DEADLINE

from .programs import run

if TYPE_CHECKING:
    import subprocess

    from tests.conftest import Database

LOAD = ("--rate", "200", "--lease", "0.01")


def doctor(*arguments: str, **environ: str | None) -> subprocess.CompletedProcess[str]:
    """Run it as a program, with warnings as errors."""
    return run("doctor", *arguments, **environ)


def test_the_server_is_asked_for_its_limits(database: Database) -> None:
    """What the plan is made from is what the server says, and all of it is in the answer for programs."""
    ((most,),) = database.sql("SELECT current_setting('max_connections')::int")
    done = doctor(database.dsn, *LOAD, "--hosts", "2", "--json")
    assert (done.returncode, done.stderr) == (WELL, "")
    said = json.loads(done.stdout)
    assert said["limits"]["max_connections"] == most
    expected = plan(Demand(rate=200, lease=0.01, hosts=2), Limits(**said["limits"]))
    assert said["fits"] is expected.fits is True
    assert said["primary"]["maxsize"] == expected.primary.maxsize
    assert said["primary"]["allowed"] == expected.primary.allowed
    assert [each["name"] for each in said["advice"]] == [each.name for each in expected.advice]


def test_what_others_use_and_the_role_may_counts(database: Database) -> None:
    """A role with a limit gets a plan for that limit; connections to other databases are not there to be had."""
    database.sql("CREATE ROLE poolscope_few LOGIN SUPERUSER CONNECTION LIMIT 3")
    other = psycopg2.connect(database.dsn, dbname="postgres")
    try:
        done = doctor(str(URL(database.dsn).update_query(user="poolscope_few")), *LOAD, "--json")
    finally:
        other.close()
        database.sql("DROP ROLE poolscope_few")
    said = json.loads(done.stdout)
    assert (said["limits"]["role"], said["primary"]["allowed"]) == (3, 2)
    assert said["limits"]["others"] >= 1
    assert done.returncode == NOT_WELL


def test_it_leaves_nothing_behind(database: Database) -> None:
    """It uses one connection and closes it."""
    assert doctor(database.dsn, *LOAD).returncode == WELL
    end = time.monotonic() + DEADLINE
    while left := database.backends():  # a server needs a moment to see that a connection is closed
        assert time.monotonic() < end, left
        time.sleep(0.01)


def test_one_screen_that_says_what_to_set_and_why(dsn: str) -> None:
    """In words, behind what was found: each setting with its number and its reason, and that it fits."""
    lines = doctor(dsn, *LOAD, "--processes", "4").stdout.splitlines()
    assert len(lines) <= 28
    (begin,) = [number for number, line in enumerate(lines) if line.startswith("The server has ")]
    assert lines[-1] == "It fits."
    for name in ("maxsize", "minsize", "processes", "connections"):
        (line,) = [line for line in lines[begin:] if line.split()[:1] == [name]]
        assert line.split()[1].isdigit()
    assert "\x1b" not in "".join(lines)


def test_without_a_server_only_the_load_is_planned() -> None:
    """With --max-connections nothing is asked: the plan begins and ends the output."""
    lines = doctor("--max-connections", "100", *LOAD).stdout.splitlines()
    assert lines[0].startswith("The server has 97 connections to give")
    assert lines[-1] == "It fits."


def test_too_much_is_said_with_what_to_change() -> None:
    """The numbers, the way out, and an exit code of its own."""
    done = doctor("--max-connections", "50", "--rate", "5000", "--lease", "0.01", "--hosts", "20")
    assert done.returncode == NOT_WELL
    assert "It does not fit: " in done.stdout
    assert "need " in done.stdout
    assert "raise max_connections" in done.stdout


def test_what_never_ends_is_null_for_programs() -> None:
    """A queue that only grows has no longest wait, and JSON no infinity."""
    done = doctor("--max-connections", "10", "--rate", "1000", "--lease", "1", "--json")
    assert done.returncode == NOT_WELL
    assert json.loads(done.stdout, parse_constant=pytest.fail)["primary"]["longest_wait"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give a DSN, --app, or --max-connections"),
        (LOAD, "Give a DSN, --app, or --max-connections"),
        (("postgresql://localhost/x", "--max-connections", "9", *LOAD), "not allowed with"),
        (("--max-connections", "9"), "--rate, --lease"),
        (("--max-connections", "9", "--rate", "5"), "both --rate and --lease"),
        (("postgresql://localhost/x", "--processes", "0"), "--processes must be"),
        (("postgresql://localhost/x", "--hosts", "0"), "--hosts must be"),
        (("postgresql://localhost/x", "--budget", "2"), "--budget must be"),
        (("postgresql://localhost/x", "--idle", "-1"), "--idle must be"),
        (("--max-connections", "9", "--rate", "fast", "--lease", "1"), "--rate"),
        (("--max-connections", "9", "--rate", "-1", "--lease", "1"), "doctor: rate must be"),
        (("--max-connections", "9", *LOAD, "--reads", "0.5"), "doctor: reads=0.5 needs replicas"),
        (("--max-connections", "0", *LOAD), "doctor: --max-connections"),
        (("--max-connections", "100", "--rate", "1e9", "--lease", "1"), "doctor: "),
        (("--max-connections", "100", *LOAD, "--cpu", "1e308"), "doctor: "),
        (("postgresql://localhost/x?maxsiz=5", *LOAD), "maxsiz"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2, and what is wrong on stderr; nothing on stdout."""
    done = doctor(*arguments)
    assert (done.returncode, done.stdout) == (CANNOT_TELL, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server_is_exit_code_two_and_no_password() -> None:
    """It says what it tried, without the password."""
    with socket.socket() as probe:  # bound, and nobody listens
        probe.bind(("127.0.0.1", 0))
        done = doctor(f"postgresql://me:hunter2@127.0.0.1:{probe.getsockname()[1]}/x", *LOAD)
    assert done.returncode == CANNOT_TELL
    assert done.stderr.startswith("doctor: ")
    assert "127.0.0.1" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
