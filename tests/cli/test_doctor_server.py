"""The doctor's look at a server: what is well is one line, what is not says why and what to change."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from yarl import URL

from aiohttp_poolscope.cli import main
from aiohttp_poolscope.cli.doctor import CANNOT_TELL, NOT_WELL, WELL
from aiohttp_poolscope.cli.doctor.judge import judge
from aiohttp_poolscope.cli.doctor.server import Facts, Setting, examine
from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from tests.conftest import DEADLINE
from tests.faults.bouncer import PgBouncer, needed
from tests.faults.replication import Pair
from tests.test_targets import WITH_TLS
from tests.wire import wired

from .programs import Terminal

if TYPE_CHECKING:
    from aiohttp_poolscope.cli.doctor.finding import Finding
    from tests.conftest import Database

Told = tuple[int, dict[str, Any]]


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> Told:
    """The exit status, and the one server of what it says to programs."""
    status = main(["doctor", *arguments, "--json"])
    said = capsys.readouterr()
    assert said.err == ""
    told = json.loads(said.out)
    assert told["status"] == status
    (server,) = told["servers"]
    return status, server


def named(server: dict[str, Any], name: str) -> dict[str, str]:
    """The one finding of this name."""
    (found,) = [finding for finding in server["findings"] if finding["name"] == name]
    return dict(found)


def test_a_server_that_is_well(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0; it is told as it is: version, role, limits, latency; and nothing is left behind."""
    status, server = examined(capsys, database.dsn)
    assert status == WELL
    facts = server["facts"]
    ((version, most),) = database.sql("SELECT current_setting('server_version'), current_setting('max_connections')")
    assert (facts["version"], facts["standby"], facts["pooler"]) == (version, False, False)
    assert facts["limits"]["max_connections"] == int(most)
    assert facts["round_trip"] > 0
    assert len(facts["round_trips"]) == 15
    assert {finding["severity"] for finding in server["findings"]} == {"ok", "info"}
    end = time.monotonic() + DEADLINE
    while left := database.backends():
        assert time.monotonic() < end, left
        time.sleep(0.01)


def test_one_screen(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    """24 lines at most, plain text off a terminal, a maxsize for the given processes, and the verdict at the end."""
    assert main(["doctor", dsn, "--processes", "3"]) == WELL
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert "\x1b" not in "".join(lines)
    assert any(line.startswith("maxsize=10 in each of 3 processes; ") for line in lines)
    assert lines[-1] == "All is well."


def test_on_a_terminal_severities_have_colours(dsn: str) -> None:
    """The word that says how grave it is stands out; the text is the same."""
    with Terminal("doctor", dsn) as terminal:
        terminal.until(r"\x1b\[32mok\x1b\[0m +version +PostgreSQL")
        terminal.until(r"\x1b\[36minfo\x1b\[0m +user")
        assert terminal.end() == WELL


def test_the_database_may_be_named_by_the_environment(
    dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password in DATABASE_URL is not in the list of processes; an argument would be."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    assert examined(capsys)[0] == WELL


def test_limits_that_the_pool_overrides_are_told(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """A role's shorter statement_timeout is overridden by the pool's: a warning with the setting to change."""
    database.sql("CREATE ROLE poolscope_hasty LOGIN; ALTER ROLE poolscope_hasty SET statement_timeout = '5s'")
    try:
        dsn = str(URL(database.dsn).update_query(user="poolscope_hasty"))
        status, server = examined(capsys, dsn)
        assert status == NOT_WELL
        found = named(server, "statement_timeout")
        assert (found["severity"], found["change"]) == ("warning", "statement_timeout=5")
        assert "5 s by itself (ALTER ROLE)" in found["what"]
        assert server["facts"]["superuser"] is False
        assert examined(capsys, f"{dsn}&statement_timeout=5")[0] == WELL
    finally:
        database.sql("DROP ROLE poolscope_hasty")


def test_a_transaction_that_idles_is_told(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Sessions that are idle in transaction for more than a minute are a warning. (The clock is the server's: none.)"""
    facts = dataclasses.replace(_facts(database.dsn), stuck=2)
    found = _one(judge(facts, PoolConfig.build(database.dsn), 1), "stuck transactions")
    assert (found.severity, found.what) == ("warning", "2 on this server, for more than a minute")


def test_too_many_processes_are_told_with_what_fits(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    """More processes than the server has connections for: a warning, and the maxsize that fits."""
    status, server = examined(capsys, dsn, "--hosts", "3", "--processes", "5")
    assert (status, server["processes"]) == (NOT_WELL, 15)
    found = named(server, "connections")
    most = int(server["facts"]["limits"]["max_connections"] - 3) * 8 // 10 // 15
    assert (found["severity"], server["maxsize"]) == ("warning", {"suggested": most, "at_most": most})
    assert found["change"].startswith(f"maxsize={most},")


def test_a_server_that_is_nearly_full(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """When others have taken nearly all connections, there is nothing left to plan with: a warning."""
    ((most,),) = database.sql("SELECT current_setting('max_connections')::int")
    others = [psycopg2.connect(database.dsn) for _ in range(most - 8)]
    try:
        status, server = examined(capsys, database.dsn, "--processes", "1")
    finally:
        for other in others:
            other.close()
    assert status == NOT_WELL
    assert named(server, "connections")["severity"] == "warning"
    assert server["facts"]["sessions"] >= most - 8


def test_a_far_server_is_told(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """A round trip of some 60 ms is measured as that, and is a warning."""
    with wired(database) as wire:
        wire.delay = 0.03
        status, server = examined(capsys, wire.dsn)
    assert status == NOT_WELL
    assert server["facts"]["round_trip"] > 0.06
    assert named(server, "latency")["severity"] == "warning"


def test_idle_connections_that_die_are_found(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """--idle holds a connection idle: cut meanwhile it is a warning with the keepalive that helps; else it is alive."""
    assert named(examined(capsys, database.dsn, "--idle", "0.1")[1], "idle connection")["severity"] == "ok"
    with wired(database) as wire:

        def cut() -> None:
            idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle' AND pid <> pg_backend_pid() AND "
            idle += "datname = current_database() AND state_change < clock_timestamp() - interval '0.7 s'"
            while not database.sql(idle)[0][0]:
                time.sleep(0.02)
            wire.cut()

        cutting = threading.Thread(target=cut)
        cutting.start()
        status, server = examined(capsys, wire.dsn, "--idle", "3")
        cutting.join()
    found = named(server, "idle connection")
    assert (status, found["severity"], found["change"]) == (NOT_WELL, "warning", "keepalive=1.5")


@needed[0]
@needed[1]
def test_pgbouncer_is_found(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Without pgbouncer=True the service would not start: an error that says so; with it all is well."""
    with PgBouncer(database.dsn) as bouncer:
        status, server = examined(capsys, bouncer.dsn)
        assert (status, named(server, "PgBouncer")["severity"]) == (NOT_WELL, "error")
        assert named(server, "PgBouncer")["change"] == "pgbouncer=True"
        status, server = examined(capsys, bouncer.dsn, "--pgbouncer")
        assert (status, named(server, "PgBouncer")["severity"]) == (WELL, "ok")
    with PgBouncer(database.dsn, ignore_startup_parameters="options") as bouncer:
        status, server = examined(capsys, bouncer.dsn)
        assert (status, named(server, "PgBouncer")["severity"]) == (NOT_WELL, "warning")


@pytest.mark.system
@pytest.mark.skipif(
    not (WITH_TLS / "postgres").exists() or shutil.which("openssl") is None,
    reason=f"needs a PostgreSQL with TLS in {WITH_TLS} and openssl",
)
def test_tls_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """A connection with TLS is told apart from one without."""
    with EmbeddedPostgres(tls=True, bindir=WITH_TLS) as server:
        plain, secret = (_facts(str(URL(server.dsn).update_query(sslmode=mode))) for mode in ("disable", "require"))
        assert examined(capsys, server.dsn)[0] == WELL
    assert (plain.tls, secret.tls) == (False, True)
    assert (plain.sslmode, secret.sslmode) == ("disable", "require")


def test_a_standby_is_seen() -> None:
    """A real standby is told apart from its primary; that every write will fail there is a warning."""
    with Pair() as pair:
        assert [_facts(server.dsn).standby for server in (pair.primary, pair.standby)] == [False, True]
        found = _one(judge(_facts(pair.standby.dsn), PoolConfig.build(pair.standby.dsn), 1), "role")
    assert (found.severity, found.what) == ("warning", "standby")


def _facts(dsn: str) -> Facts:
    import asyncio

    return asyncio.run(examine(PoolConfig.build(dsn)))


def _one(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


FAR = {"host": "db.example.org"}
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("version", {"version_number": 130011, "version": "13.11"}, {}, "warning", "PostgreSQL 14"),
    ("role", {"standby": True}, {}, "warning", "target='primary'"),
    ("role", {"standby": True}, {"readonly": True}, "ok", ""),
    ("TLS", FAR, {}, "warning", "ssl = on"),
    ("TLS", {**FAR, "tls": True, "sslmode": "require"}, {}, "info", "sslmode=verify-full"),
    ("TLS", {**FAR, "tls": True, "sslmode": "verify-full"}, {}, "ok", ""),
    ("latency", {"round_trips": (0.01,)}, {}, "info", "nearer"),
    ("PgBouncer", {}, {"pgbouncer": True}, "warning", "pgbouncer=False"),
    ("encoding", {"encoding": "SQL_ASCII"}, {}, "warning", "UTF8"),
    ("time zone", {"with_ours": {"TimeZone": "Asia/Tokyo"}}, {}, "info", "timezone = 'UTC'"),
    ("statement_timeout", {"with_ours": {"statement_timeout": 0.0}}, {}, "warning", "connect without"),
    ("statement_timeout", {}, {"statement_timeout": None}, "warning", "statement_timeout=30"),
    ("idle_session_timeout", {"with_ours": {"idle_session_timeout": 60.0}}, {}, "warning", "keepalive=30"),
    ("abandoned statements", {"with_ours": {"client_connection_check_interval": 0.0}}, {}, "warning", "PostgreSQL 14"),
    ("keepalive", FAR, {"keepalive": None}, "warning", "keepalive=120"),
    ("silent network", FAR, {}, "info", "tcp_user_timeout"),
    ("user", {"superuser": True}, {}, "info", "a role of its own"),
]


@pytest.fixture(scope="module")
def sound(_database: Database) -> Facts:
    """The facts of a server that is well."""
    return _facts(_database.dsn)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}")
def test_each_trouble_has_its_line(sound: Facts, case: tuple[str, dict[str, Any], dict[str, Any], str, str]) -> None:
    """One thing that is not as it should be is one finding, as grave as it is, with what to change."""
    name, changed, settings, severity, change = case
    if "with_ours" in changed:
        altered = {key: Setting(value, "database") for key, value in changed["with_ours"].items()}
        changed = {**changed, "with_ours": {**sound.with_ours, **altered}}
    found = _one(judge(dataclasses.replace(sound, **changed), PoolConfig.build(None, **settings), 1), name)
    assert found.severity == severity
    assert change in found.change
    assert bool(found.why) is (severity != "ok")


def test_no_password_is_said(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither when all is well nor when nothing answers, for people nor for programs."""
    dsn = str(URL(database.dsn).update_query(password="hunter2"))  # not needed there, and sent to nobody
    for arguments, status in (
        ((dsn,), WELL),
        ((dsn, "--json"), WELL),
        (("postgresql://me:hunter2@127.0.0.1:1/x",), CANNOT_TELL),
    ):
        assert main(["doctor", *arguments]) == status
        said = capsys.readouterr()
        assert said.out + said.err
        assert "hunter2" not in said.out + said.err
