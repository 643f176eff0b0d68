"""The doctor's look at several hosts: which of them answers, what it is, and what happens when it goes."""

from __future__ import annotations

import dataclasses
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.capacity.limits import Limits
from aiohttp_poolscope.cli import main
from aiohttp_poolscope.cli.doctor import CANNOT_TELL, NOT_WELL, WELL
from aiohttp_poolscope.cli.doctor.hosts import Answer, Looked
from aiohttp_poolscope.cli.doctor.judge_hosts import judge_hosts
from aiohttp_poolscope.config import PoolConfig
from tests.faults.replication import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp_poolscope.cli.doctor.finding import Finding


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A primary and its streaming standby."""
    with Pair() as pair:
        yield pair


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and the one server of what it says to programs."""
    status = main(["doctor", *arguments, "--json"])
    said = capsys.readouterr()
    assert said.err == ""
    (server,) = json.loads(said.out)["servers"]
    return status, server


def graver(server: dict[str, Any]) -> list[tuple[str, str]]:
    """The findings above info, by severity and name."""
    found = [(each["severity"], each["name"]) for each in server["findings"]]
    return [each for each in found if each[0] in ("warning", "error")]


def dsn_of(pair: Pair, *ports: int, target: str = "primary") -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://postgres:{pair.primary.password}@{hosts}/postgres?target={target}"


def test_each_host_is_looked_at(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """A primary and a standby that is level with it: both are told with role and times, in the DSN's order; exit 0."""
    pair.primary.sql("CREATE TABLE IF NOT EXISTS something (x int); INSERT INTO something VALUES (1)")
    status, server = examined(capsys, pair.dsn(first=pair.standby, target="primary"))
    assert (status, graver(server)) == (WELL, [])
    standby, primary = (host["answer"] for host in server["hosts"])
    assert (standby["standby"], standby["receiving"], primary["standby"], primary["receiving"]) == (
        True, True, False, False,
    )  # fmt: skip
    assert standby["cluster"] == primary["cluster"]
    assert standby["level_after"] >= 0
    assert min(primary["round_trip"], primary["connect"], standby["round_trip"], standby["connect"]) > 0
    assert server["facts"]["port"] == pair.primary.port
    assert main(["doctor", pair.dsn(target="primary")]) == WELL
    text = capsys.readouterr().out
    assert f"127.0.0.1:{pair.standby.port}: standby, " in text
    assert ", level with its primary" in text


def test_libpqs_own_form_of_several_hosts(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """The other form of a DSN, and libpq's own word for the role, mean the same."""
    ports = f"{pair.standby.port},{pair.primary.port}"
    dsn = f"host=127.0.0.1,127.0.0.1 port={ports} user=postgres password={pair.primary.password} dbname=postgres"
    status, server = examined(capsys, f"{dsn} target_session_attrs=read-write")
    assert (status, [host["answer"]["standby"] for host in server["hosts"]]) == (WELL, [True, False])


def test_a_host_that_is_down(pair: Pair, nobody: int, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a warning with what was said there; that only one is left is another, and the password is in neither."""
    status, server = examined(capsys, dsn_of(pair, nobody, pair.primary.port))
    assert (status, graver(server)) == (NOT_WELL, [("warning", "host"), ("warning", "hosts")])
    down, up = server["hosts"]
    assert (down["answer"], up["answer"]["standby"]) == (None, False)
    assert "refused" in down["problem"]
    assert pair.primary.password not in json.dumps(server)
    status, server = examined(capsys, dsn_of(pair, nobody, pair.primary.port, pair.standby.port))
    assert (status, graver(server)) == (NOT_WELL, [("warning", "host")])


def test_none_of_them_answers(nobody: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing can be told: exit code 2, with what each said, and no password."""
    hosts = f"127.0.0.1:{nobody},localhost:{nobody}"
    assert main(["doctor", f"postgresql://me:hunter2@{hosts}/x"]) == CANNOT_TELL
    said = capsys.readouterr()
    assert said.out == ""
    assert f"127.0.0.1:{nobody}" in said.err
    assert f"localhost:{nobody}" in said.err
    assert "hunter2" not in said.err


def test_no_host_of_the_wanted_role(pair: Pair, nobody: int, capsys: pytest.CaptureFixture[str]) -> None:
    """target='primary' with standbys alone, or the other way round, is an error; what else there is is told as well."""
    for port, target in ((pair.standby.port, "primary"), (pair.primary.port, "standby")):
        status, server = examined(capsys, dsn_of(pair, port, nobody, target=target))
        assert status == NOT_WELL
        assert ("error", "target") in graver(server)
        assert server["facts"]["port"] == port
        (role,) = [each for each in server["findings"] if each["name"] == "role"]
        assert (role["severity"], role["why"].startswith("looked at all the same")) == ("info", True)


@pytest.mark.parametrize(("target", "severity"), [("any", "warning"), ("prefer-standby", None), ("standby", None)])
def test_any_host_may_be_the_wrong_one(
    pair: Pair, capsys: pytest.CaptureFixture[str], target: str, severity: str | None
) -> None:
    """Without a target the standby may be taken, where every write fails; who asks for a standby means it."""
    _, server = examined(capsys, dsn_of(pair, pair.primary.port, pair.standby.port, target=target))
    assert graver(server) == ([] if severity is None else [(severity, "target")])


def test_a_standby_that_is_behind(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """One that does not replay is told with how much it lacks; once it goes on, all is well again."""
    pair.catch_up()
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    try:
        pair.primary.sql("CREATE TABLE behind AS SELECT generate_series(1, 100000)")
        status, server = examined(capsys, pair.dsn(target="primary"))
    finally:
        pair.standby.sql("SELECT pg_wal_replay_resume()")
    assert (status, graver(server)) == (NOT_WELL, [("warning", "host")])
    (answer,) = [host["answer"] for host in server["hosts"] if host["answer"]["standby"]]
    assert (answer["level_after"], answer["receiving"]) == (None, True)
    assert answer["behind"] > 1_000_000
    assert any("MB behind" in each["what"] for each in server["findings"])
    pair.catch_up()
    assert examined(capsys, pair.dsn(target="primary"))[0] == WELL


def test_hosts_that_are_strangers(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """Two primaries of which neither is a copy of the other: an error, since a failover would change the data."""
    with Pair() as other:
        other.primary.sql(f"ALTER ROLE postgres PASSWORD '{pair.primary.password}'")
        status, server = examined(capsys, dsn_of(pair, pair.primary.port, other.primary.port))
    assert (status, graver(server)) == (NOT_WELL, [("error", "one database")])


def test_one_server_by_two_names(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """Two names for the same server are no reserve, and no second primary: a warning that there is no other."""
    dsn = dsn_of(pair, pair.primary.port).replace("@", f"@localhost:{pair.primary.port},")
    status, server = examined(capsys, dsn)
    assert (status, graver(server)) == (NOT_WELL, [("warning", "hosts")])


PRIMARY = Answer(
    standby=False, major=18, cluster=1, started="noon", position=9, receiving=False, limits=Limits(100, 3, 0, -1, -1),
    connect=0.001, round_trip=0.0001,
)  # fmt: skip
STANDBY = dataclasses.replace(PRIMARY, standby=True, started="one", receiving=True, level_after=0.0, behind=0)
CASES: list[tuple[list[Answer | None], dict[str, Any], str, str]] = [
    ([STANDBY, None], {"target": "any"}, "target", "error"),
    ([PRIMARY, None], {"target": "prefer-standby"}, "target", "warning"),
    ([STANDBY, None], {"target": "prefer-standby"}, "target", ""),
    ([PRIMARY, STANDBY], {"target": "any", "readonly": True}, "target", ""),
    ([PRIMARY, STANDBY], {"target": "standby"}, "hosts", "info"),
    ([PRIMARY, dataclasses.replace(PRIMARY, started="one")], {"target": "primary"}, "one database", "error"),
    ([PRIMARY, dataclasses.replace(STANDBY, major=17)], {"target": "primary"}, "versions", "warning"),
    (
        [PRIMARY, dataclasses.replace(STANDBY, limits=Limits(10, 3, 0, -1, -1))], {"target": "primary"}, "room",
        "warning",
    ),
    ([PRIMARY, PRIMARY, STANDBY], {"target": "primary"}, "hosts", "info"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]['target']}-{case[2]}-{case[3] or 'well'}")
def test_each_trouble_has_its_line(case: tuple[list[Answer | None], dict[str, Any], str, str]) -> None:
    """One thing that is not as it should be among the hosts is one finding, as grave as it is; else there is none."""
    answers, settings, name, severity = case
    hosts = [Looked(f"h{number}:5432", answer, "refused") for number, answer in enumerate(answers)]
    config = PoolConfig.build("postgresql://h0,h1/x", **settings)
    found: list[Finding] = judge_hosts(hosts, config, 1, PRIMARY.limits)
    assert [each.severity for each in found if each.name == name] == ([severity] if severity else [])


def test_one_host_needs_no_second_look() -> None:
    """With one host there is nothing to say of several."""
    assert judge_hosts([], PoolConfig.build("postgresql://h0/x"), 1, PRIMARY.limits) == []
