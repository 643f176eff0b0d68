"""DSN forms, service files and PG* variables: what they mean to libpq, they mean here."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extensions import parse_dsn
from yarl import URL

from aiohttp_poolscope.config.dsn import Address, Host, did_you_mean, parse, resolve
from aiohttp_poolscope.config.libpq import Parameters, libpq_text
from aiohttp_poolscope.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SETTINGS = frozenset({"password", "target", "connect_timeout", "application_name", "maxsize", "statement_timeout"})
PASSWORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


def quoted(value: str) -> str:
    return "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'"


def address(dsn: Any = None, environ: Mapping[str, str] | None = None, **keywords: str) -> Address:
    return resolve(dsn, keywords, {"HOME": "/nonexistent", **(environ or {})}, SETTINGS)


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    """Everything a traceback would print of the error and of what is chained to it."""
    said, link = "", error.value
    while link is not None:
        said += f"{link!r} {link}"
        link = link.__cause__ or link.__context__
    return said


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://",
        "postgres://localhost/app",
        "postgresql://u@/db",
        "postgresql://:1/db",
        "postgresql://u:p@localhost:6432/app",
        "postgresql://u:p%40%3a%2f@h/d%20b",
        "postgresql://u:p?w#@h/db",
        "postgresql://u::@h",
        "postgresql://a:1,b:2/db",
        "postgresql://a,b:2/db",
        "postgresql://a,b/db",
        "postgresql://,/db",
        "postgresql://[::1]:5,[fe80::1%25eth0],c/db",
        "postgresql://%2Fvar%2Frun/db",
        "postgresql://%40abstract/db",
        "postgresql:///db?host=/tmp&port=5433",
        "postgresql://a/db?host=b",
        "postgresql://h/db?application_name=a+b%20c&sslmode=require&",
        "postgresql://h/db?application_name=x@y",
        "postgresql://h/db?options=-c%20search_path%3Dx",
        "postgresql://h/db?ssl=true",
        "postgresql://h/db?",
        "postgres://h/a/b",
        "",
        "host=a port=1 user='b' password='it\\'s'",
        r"host = a password=it's\ x\\ user='a'dbname=b",
        "host=a\nport=2\tuser=x  ",
        r"password=a\ ",
        "host=''",
        "dbname='' user=u",
        "host= port=5",
        "password='a = b'",
    ],
)
def test_a_dsn_is_read_as_libpq_reads_it(dsn: str) -> None:
    """Whatever DSN libpq takes, its parts are the same here."""
    assert parse(dsn, SETTINGS) == parse_dsn(dsn)


@given(PASSWORDS)
def test_any_password_survives_a_url(password: str) -> None:
    """A percent-encoded password comes out of a URL as it went in, and out of no repr."""
    dsn = f"postgresql://u:{quote(password, safe='')}@h/db"
    assert parse(dsn, SETTINGS)["password"] == password == parse_dsn(dsn)["password"]
    assert (
        parse(URL.build(scheme="postgresql", user="u", password=password, host="h"), SETTINGS)["password"] == password
    )


@given(PASSWORDS)
def test_any_password_survives_the_keyword_form(password: str) -> None:
    """A quoted password comes out of the keyword form as it went in."""
    dsn = f"user=u password={quoted(password)} host=h"
    assert parse(dsn, SETTINGS) == {"user": "u", "password": password, "host": "h"} == parse_dsn(dsn)


@given(st.text(st.sampled_from("ab=' \\\t\n"), max_size=12))
def test_every_keyword_form_libpq_takes_is_taken(text: str) -> None:
    """Quotes, backslashes and spaces in any order mean what they mean to libpq."""
    dsn = f"password={text}"
    try:
        expected = parse_dsn(dsn)
    except Exception:  # noqa: BLE001 - whatever psycopg2 calls it: libpq does not take this one
        return
    assert parse(dsn, SETTINGS) == expected


@given(st.text(st.sampled_from("ab:@/?#,[]%&=1"), max_size=14))
def test_a_url_is_read_as_by_libpq_or_refused(text: str) -> None:
    """No URL means one server to psql and another one here."""
    dsn = f"postgresql://{text}"
    try:
        found = parse(dsn, SETTINGS)
    except ConfigError:
        return
    try:
        expected = parse_dsn(dsn)
    except Exception:  # noqa: BLE001 - as above
        return
    assert found == expected


def test_quotes_may_be_doubled_as_in_sql() -> None:
    """A quote written twice within quotes is one quote, and not an error as in libpq."""
    assert parse("password='it''s \\' x' host=a", SETTINGS) == {"password": "it's ' x", "host": "a"}


def test_a_yarl_url_is_a_dsn() -> None:
    """A yarl.URL needs no quoting by hand, its query included."""
    query = {"application_name": "a b+c", "maxsize": "3"}
    url = URL.build(scheme="postgresql", user="u", password="p@:/?#+ %", host="::1", port=7, path="/d b", query=query)
    assert parse(url, SETTINGS) == {
        "user": "u",
        "password": "p@:/?#+ %",
        "host": "::1",
        "port": "7",
        "dbname": "d b",
        **query,
    }


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        (None, [Host(None, None, 5432)]),
        ("postgresql://", [Host(None, None, 5432)]),
        ("postgresql://a:1,b:2/db", [Host("a", None, 1), Host("b", None, 2)]),
        ("postgresql://a,b:2/db", [Host("a", None, 5432), Host("b", None, 2)]),
        ("postgresql://[::1]:5/db", [Host("::1", None, 5)]),
        ("postgresql://%2Ftmp%2Fpg:5433/db", [Host("/tmp/pg", None, 5433)]),
        ("postgresql:///db?host=/tmp/pg", [Host("/tmp/pg", None, 5432)]),
        ("host=@abstract", [Host("@abstract", None, 5432)]),
        ("host=a,b port=6", [Host("a", None, 6), Host("b", None, 6)]),
        ("host=a,,c port=1,,3", [Host("a", None, 1), Host(None, None, 5432), Host("c", None, 3)]),
        ("hostaddr=10.0.0.1,::1", [Host(None, "10.0.0.1", 5432), Host(None, "::1", 5432)]),
        ("host=a,b hostaddr=10.0.0.1,", [Host("a", "10.0.0.1", 5432), Host("b", None, 5432)]),
    ],
)
def test_hosts(dsn: str | None, hosts: list[Host]) -> None:
    """Each host gets its own port, or the one given for all, or the usual one."""
    assert list(address(dsn).hosts) == hosts


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("mysql://h/db", "mysql://.*write postgresql://"),
        ("postgresql+asyncpg://h/db", "postgresql.asyncpg://.*write postgresql://"),
        ("jdbc:postgresql://h/db", "write postgresql://"),
        ("//h/db", "neither a postgresql:// URL nor"),
        ("app", "neither a postgresql:// URL nor"),
        ("host", "neither"),
        ("password='open", "neither"),
        ("host=a b", "neither"),
        ("postgresql://h:0/db", "1 to 65535"),
        ("postgresql://h:65536/db", "1 to 65535"),
        ("postgresql://h:" + "9" * 5000, "1 to 65535"),
        ("postgresql://h:x/db", "1 to 65535"),
        ("postgresql://::1/db", "brackets"),
        ("postgresql://[::1/db", "brackets"),
        ("postgresql://h/db?maxsize", "no '='"),
        ("postgresql://h/db?maxsice=4", "unknown parameter, number 1 .* did you mean maxsize"),
        ("host=a maxsice=4", "unknown parameter, number 2 .* did you mean maxsize"),
        ("postgresql://h/%zz", "%25"),
        ("postgresql://h/%00", "%25"),
        ("postgresql://h/%ff", "%25"),
        ("host='a\0b'", "NUL"),
        ("host=a,b port=1,2,3", "list 2, 2 and 3 servers"),
        ("host=a,b hostaddr=10.0.0.1", "list 2, 1 and 2 servers"),
        ("port=abc", "port must be a whole number from 1 to 65535, not 'abc'"),
        ("port=70000", "port must be"),
        ("hostaddr=localhost", "hostaddr must be IP addresses"),
        ("sslmode=on", "sslmode must be 'disable', .* or 'verify-full', not 'on'"),
        ("keepalives_idle=-1", "keepalives_idle must be a whole number"),
        ("keepalives=2", "keepalives must be '0' or '1'"),
        ("tcp_user_timeout=1.5", "tcp_user_timeout must be"),
        ("load_balance_hosts=random", "load_balance_hosts must be 'disable'"),
        ("target_session_attrs=master", "target_session_attrs must be"),
        ("target=primary target_session_attrs=standby", "contradict"),
        ("sslrootcert=system sslmode=require", "verify-full"),
        ("sslnegotiation=direct", "needs sslmode='require' or stronger"),
    ],
)
def test_what_cannot_be_right_is_refused(dsn: str, said: str) -> None:
    """A DSN that cannot work is a ConfigError that says why."""
    with pytest.raises(ConfigError, match=said):
        address(dsn)


@pytest.mark.parametrize("dsn", [b"host=a", 5, {"host": "a"}])
def test_a_dsn_of_another_type_is_refused(dsn: object) -> None:
    """A DSN is text or a URL."""
    with pytest.raises(ConfigError, match=r"must be a string, a yarl\.URL or None"):
        address(dsn)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:sec/hunter2@h/db",
        "postgresql://u:5432/hunter2@h/db",
        "postgresql://u:hunter2/x@h/db",
        "postgresql://u:se@hunter2@h/db",
        "postgresql://u:se@hunter2?x@h/db",
        "postgresql://u:1/x?hunter2=y@h/db",
        "postgresql://u:hunter2%zz@h/db",
        "postgresql://u:hunter2%ff@h/db",
        "postgresql://u:hunter2%00@h/db",
        "postgresql://u:hunter2@h:port/db",
        "postgresql://u:hunter2@h/db?hunter2",
        "postgresql://h/db?password=hunter2&passwort=hunter2",
        "mysql://u:hunter2@h/db",
        "u:hunter2@h/db",
        "hunter2",
        "password=se hunter2",
        "password=se hunter2=5",
        "password='se hunter2",
        "password='se' hunter2' host=a",
        "password='hunter2\0'",
        "password=hunter2 sslmode=on",
        "sslpassword='hunter2\0'",
    ],
)
def test_no_piece_of_a_password_is_in_an_error(dsn: str) -> None:
    """A malformed DSN is refused without repeating any of it, in chained errors neither."""
    with pytest.raises(ConfigError) as error:
        address(dsn)
    assert "hunter2" not in message(error)


def test_secrets_are_in_no_repr_and_no_pickle() -> None:
    """Parameters can be logged, and are not written to disk or sent to a child by accident."""
    found = address("user=u password=hunter2 sslpassword=hunter2 oauth_client_secret=hunter2")
    assert found.settings["password"] == found.params["sslpassword"] == "hunter2"
    assert "hunter2" not in repr(found) + str(found) + f"{found.params}"
    assert "'user': 'u'" in repr(found)
    for hidden in (found, found.params):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(hidden)


def test_parameters_are_a_read_only_mapping() -> None:
    """Parameters are handed on as any mapping, and cannot be changed."""
    params = Parameters({"user": "u"})
    assert {**params} == params == {"user": "u"}
    assert len(params) == 1
    with pytest.raises(TypeError):
        params["user"] = "x"  # type: ignore[index]


def test_settings_are_told_from_parameters() -> None:
    """The pool's settings and libpq's parameters come out of one DSN, each in its place."""
    found = address(
        "postgresql://u:p@h/db?maxsize=4&sslmode=require&connect_timeout=3&target_session_attrs=read-write"
        "&statement_timeout=&keepalives_idle=30&load_balance_hosts=disable"
    )
    assert found.params == {"user": "u", "dbname": "db", "sslmode": "require", "keepalives_idle": "30"}
    assert found.settings == {
        "password": "p",
        "maxsize": "4",
        "connect_timeout": "3",
        "target": "primary",
        "statement_timeout": "",
    }


def test_nothing_is_invented() -> None:
    """Without a DSN and variables, user, database and password are libpq's business."""
    assert address() == address("") == Address((Host(None, None, 5432),), Parameters(), Parameters())


def test_all_authorities_of_the_system_need_the_full_check() -> None:
    """As in libpq, sslrootcert=system alone means verify-full, and so it does from its variable."""
    assert address("sslrootcert=system").params["sslmode"] == "verify-full"
    assert address("sslrootcert=system sslmode=verify-full").params["sslmode"] == "verify-full"
    assert address(None, {"PGSSLROOTCERT": "system"}).params["sslmode"] == "verify-full"
    assert address("sslnegotiation=direct sslmode=require").params["sslnegotiation"] == "direct"


@pytest.mark.parametrize(
    ("attrs", "target"),
    [
        ("any", "any"),
        ("read-write", "primary"),
        ("primary", "primary"),
        ("read-only", "standby"),
        ("standby", "standby"),
        ("prefer-standby", "prefer-standby"),
    ],
)
def test_target_session_attrs_is_the_target(attrs: str, target: str) -> None:
    """libpq's name for the wanted role is understood, alone and beside the same thing in ours."""
    assert address(f"target_session_attrs={attrs}").settings == {"target": target}
    assert address(f"target={target} target_session_attrs={attrs}").settings == {"target": target}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("port", 5432, "5432"), ("port", "1,2", "1,2"), ("keepalives_idle", 30, "30"), ("sslmode", "", "")],
)
def test_keyword_values_become_text(name: str, value: object, text: str) -> None:
    """Numbers may be given as numbers."""
    assert libpq_text(name, value) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [("keepalives", True), ("keepalives_idle", 1.5), ("user", None), ("user", ["a"]), ("sslmode", "x")],
)
def test_keyword_values_that_are_wrong(name: str, value: object) -> None:
    """Wrong values are refused with their name."""
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        libpq_text(name, value)


def test_a_path_is_a_value(tmp_path: Path) -> None:
    """A certificate may be given as a path."""
    assert libpq_text("sslrootcert", tmp_path) == str(tmp_path)


def test_did_you_mean() -> None:
    """A near miss is told from a word of its own."""
    assert did_you_mean("maxsise", ["maxsize", "minsize"]) == "; did you mean maxsize?"
    assert did_you_mean("colour", ["maxsize"]) == ""
