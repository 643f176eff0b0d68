"""PoolConfig.from_env: which variables count, which contradict each other, which are misspelt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.config.dsn import Host
from aiohttp_poolscope.config.libpq import VARIABLES
from aiohttp_poolscope.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (*VARIABLES, "WEB_CONCURRENCY", "DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def from_env(environ: dict[str, str], **settings: Any) -> PoolConfig:
    return PoolConfig.from_env(environ=environ, **settings)


@pytest.mark.parametrize(("given", "processes"), [("4", 4), ("0", 1), ("many", 1), ("", 1)])
def test_processes_follow_web_concurrency(monkeypatch: pytest.MonkeyPatch, given: str, processes: int) -> None:
    """The number of processes is what gunicorn goes by, if that is a number, and else 1."""
    monkeypatch.setenv("WEB_CONCURRENCY", given)
    assert PoolConfig.build().processes == processes
    assert PoolConfig.build(processes=2).processes == 2
    assert from_env({"WEB_CONCURRENCY": given}).processes == processes
    assert from_env({"WEB_CONCURRENCY": given, "DB_PROCESSES": "3"}).processes == 3


def test_from_variables() -> None:
    """A pool can be set up from variables alone."""
    config = from_env(
        {
            "DB_HOST": "a,b",
            "DB_PORT": "6432",
            "DB_NAME": "app",
            "DB_USER": "u",
            "DB_PASSWORD": " none ",
            "DB_SSL": "true",
            "DB_POOL_MIN": "2",
            "DB_POOL_MAX": "5",
            "DB_ACQUIRE_TIMEOUT": "1.5",
            "DB_PGBOUNCER": "yes",
            "DB_KEEPALIVES_IDLE": "30",
            "DB_TARGET_SESSION_ATTRS": "read-write",
            "DB_SSLROOTCERT": "",
            "PGUSER": "somebody",
            "PGCONNECT_TIMEOUT": "2",
            "OTHER_MAXSIZE": "x",
        }
    )
    assert config.hosts == (Host("a", None, 6432), Host("b", None, 6432))
    assert config.params == {"dbname": "app", "user": "u", "sslmode": "require", "keepalives_idle": "30"}
    assert (config.minsize, config.maxsize, config.acquire_timeout) == (2, 5, 1.5)
    assert (config.password, config.pgbouncer, config.target) == (" none ", True, "primary")
    assert config.connect_timeout == 2.0


def test_from_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mapping, it is the environment of the process that counts."""
    monkeypatch.setenv("SCOPETEST_HOST", "a")
    monkeypatch.setenv("SCOPETEST_MAXSIZE", "3")
    config = PoolConfig.from_env("SCOPETEST_")
    assert (config.hosts[0].host, config.maxsize) == ("a", 3)


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("true", "require"),
        ("ON", "require"),
        ("1", "require"),
        ("false", "disable"),
        ("off", "disable"),
        ("0", "disable"),
        ("verify-full", "verify-full"),
        ("prefer", "prefer"),
    ],
)
def test_ssl_as_a_switch(given: str, mode: str) -> None:
    """DB_SSL is an sslmode, or says whether there is TLS at all."""
    assert from_env({"DB_SSL": given}).params == {"sslmode": mode}
    assert from_env({"DB_SSL": given, "DB_SSLMODE": mode}).params == {"sslmode": mode}


@pytest.mark.parametrize(
    ("prefix", "environ", "host"),
    [
        ("DB_", {"DATABASE_URL": "postgresql://a"}, "a"),
        ("DB_", {"DB_URL": "postgresql://b", "DATABASE_URL": "postgresql://a"}, "b"),
        ("DB_", {"DB_DATABASE_URL": "postgresql://c", "DATABASE_URL": "postgresql://a"}, "c"),
        ("DB_", {"DB_DATABASE_URL": "postgresql://c", "DB_URL": "postgresql://c"}, "c"),
        ("DB_", {"DB_URL": "", "DATABASE_URL": "host=a"}, "a"),
        ("DB_", {"DATABASE_URL": "postgresql:///app", "DB_HOST": "d"}, "d"),
        ("RO_", {"DATABASE_URL": "postgresql://a"}, "a"),
        ("RO_", {"DATABASE_URL": "postgresql://a", "RO_HOST": "d"}, "d"),
        ("RO_", {"DATABASE_URL": "postgresql://a", "RO_URL": "postgresql://b"}, "b"),
        ("DATABASE_", {"DATABASE_URL": "postgresql://a"}, "a"),
        ("DB_", {}, None),
    ],
)
def test_where_the_dsn_comes_from(prefix: str, environ: dict[str, str], host: str | None) -> None:
    """The DSN is the prefix's own, and else the one that everybody uses."""
    assert PoolConfig.from_env(prefix, environ).hosts[0].host == host


URL = "postgresql://u:p@h:1/db?maxsize=4"


def test_variables_add_to_the_dsn() -> None:
    """A variable may repeat what the DSN says, add to it, and set what is no part of the address."""
    environ = {"DATABASE_URL": URL, "DB_HOST": "h", "DB_PORT": "1", "DB_PASSWORD": "p", "DB_MAXSIZE": "5"}
    config = from_env({**environ, "DB_SSL": "on"})
    assert config == PoolConfig.build(URL, maxsize=5, sslmode="require")


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("DB_HOST", "host"),
        ("DB_PORT", "port"),
        ("DB_NAME", "dbname"),
        ("DB_DBNAME", "dbname"),
        ("DB_USER", "user"),
        ("DB_PASSWORD", "password"),
    ],
)
def test_a_variable_that_contradicts_the_dsn(variable: str, name: str) -> None:
    """Two addresses are one too many; an argument settles it."""
    environ = {"DB_URL": URL, variable: "2"}
    with pytest.raises(ConfigError, match=f"DB_URL and {variable} set {name} to different values"):
        from_env(environ)
    assert from_env(environ, **{name: "3"}) == PoolConfig.build(URL, **{name: "3"})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"DB_POOL_MAX": "5", "DB_MAXSIZE": "6"},
            "DB_MAXSIZE and DB_POOL_MAX set maxsize to different values",
        ),
        ({"DB_POOL_MIN": "0", "DB_MINSIZE": "1"}, "set minsize to different values"),
        ({"DB_NAME": "a", "DB_DBNAME": "b"}, "set dbname to different values"),
        ({"DB_SSL": "on", "DB_SSLMODE": "disable"}, "set sslmode to different values"),
        ({"DB_TARGET": "any", "DB_TARGET_SESSION_ATTRS": "primary"}, "contradict each other"),
        (
            {"DB_URL": "postgresql://a", "DB_DATABASE_URL": "postgresql://b"},
            "DB_DATABASE_URL and DB_URL are different",
        ),
        (
            {"DB_POOL_MAX": "many"},
            r"DB_POOL_MAX \(maxsize\) must be a whole number from 1 to \d+, not 'many'",
        ),
        ({"DB_POOL_MAX": ""}, r"DB_POOL_MAX \(maxsize\) must be"),
        ({"DB_POOL_MAX": "0"}, r"DB_POOL_MAX \(maxsize\) must be"),
        ({"DB_SSL": "maybe"}, r"DB_SSL \(sslmode\) must be"),
        ({"DB_PORT": "tcp://10.0.0.1:5432"}, "port must be"),
        ({"DATABASE_URL": "mysql://a"}, "DATABASE_URL starts with mysql://"),
        ({"DB_URL": "postgresql://a?maxsice=1"}, "DB_URL has an unknown parameter"),
        ({"DB_POOL_SIZE": "5"}, "DB_POOL_SIZE is not a setting; .* DB_POOL_MIN and DB_POOL_MAX"),
        ({"DB_POOL_MAXSIZE": "5"}, "DB_POOL_MAXSIZE .* DB_MAXSIZE"),
        ({"DB_POOL_ACQUIRE_TIMEOUT": "5"}, "DB_POOL_ACQUIRE_TIMEOUT .* DB_ACQUIRE_TIMEOUT"),
        ({"DB_POOL_MAXX": "5"}, "DB_POOL_MAXX is not a setting"),
        ({"DB_POOL_COLOUR": "red", "DB_URL": "host=a"}, "DB_POOL_COLOUR is not a setting"),
        ({"DB_ACQUIRE_TIMEOT": "5"}, "did you mean DB_ACQUIRE_TIMEOUT"),
        ({"DB_SSL_MODE": "require"}, "did you mean DB_SSLMODE"),
        ({"DB_HOSTS": "a"}, "did you mean DB_HOST"),
        ({"DB_USERNAME": "u"}, "did you mean DB_USER"),
        ({"DB_PASS": "hunter2"}, "did you mean DB_PASSWORD"),
        ({"DB_DATABASE": "app"}, "did you mean DB_NAME"),
        ({"DB_HOSTNAME": "a"}, "did you mean DB_HOST"),
        ({"DB_DSN": "postgresql://"}, "did you mean DB_URL"),
    ],
)
def test_variables_that_cannot_be_right(environ: dict[str, str], said: str) -> None:
    """A wrong, contradicting or misspelt variable is named, and no password shown."""
    with pytest.raises(ConfigError, match=said) as error:
        from_env(environ)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "environ",
    [
        # What Kubernetes sets for a service called "db".
        {"DB_SERVICE_HOST": "10.0.0.1", "DB_SERVICE_PORT": "5432", "DB_PORT_5432_TCP_ADDR": "10.0.0.1"},
        {
            "DB_ENGINE": "django.db.backends.postgresql",
            "DB_MIGRATIONS": "yes",
            "DB_BACKUP_DIR": "/x",
            "DB_": "",
        },
        {"db_host": "lower", "XDB_HOST": "other"},
    ],
)
def test_variables_of_others_are_ignored(environ: dict[str, str]) -> None:
    """What is nothing like one of ours is somebody else's."""
    assert from_env(environ) == PoolConfig()


def test_other_spellings_beside_the_right_one() -> None:
    """Another framework's name for a variable does no harm where ours, or a DSN, is there too."""
    assert from_env({"DB_USERNAME": "x", "DB_USER": "u"}).params == {"user": "u"}
    assert from_env({"DB_USERNAME": "x", "DB_URL": "postgresql://u@h"}).params == {"user": "u"}
    assert from_env({"DB_USERNAME": "x"}, user="u").params == {"user": "u"}


def test_arguments_win_over_variables() -> None:
    """An argument makes a variable of the same name void, even a broken one."""
    environ = {"DB_MAXSIZE": "many", "DB_TARGET_SESSION_ATTRS": "standby", "DB_USER": "u", "DB_SSL": "on"}
    config = from_env(environ, maxsize=3, target="any", user="me", sslmode=None)
    assert (config.maxsize, config.target, config.params) == (3, "any", {"user": "me", "sslmode": "require"})


def test_an_empty_prefix() -> None:
    """Without a prefix, USER and HOST would be taken for settings."""
    with pytest.raises(ConfigError, match="prefix must not be empty"):
        PoolConfig.from_env("")
