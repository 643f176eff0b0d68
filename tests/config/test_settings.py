"""PoolConfig: settings from arguments, a DSN and the environment, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extras import DictCursor

from aiohttp_poolscope.config import SETTINGS, PoolConfig
from aiohttp_poolscope.config.dsn import Host
from aiohttp_poolscope.config.libpq import LIBPQ, VARIABLES
from aiohttp_poolscope.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

DEFAULTS = {
    "password": None,
    "target": "any",
    "connect_timeout": 5.0,
    "application_name": None,
    "key": "db",
    "minsize": 1,
    "maxsize": 10,
    "acquire": "auto",
    "acquire_timeout": 5.0,
    "max_waiting": 1000,
    "queue_target": 0.1,
    "connect_at_start": True,
    "statement_timeout": 30.0,
    "idle_in_transaction_timeout": 60.0,
    "abandon_interval": 1.0,
    "cancel_abandoned": False,
    "idle_timeout": 300.0,
    "max_lifetime": 1800.0,
    "check_after_idle": 1.0,
    "keepalive": 120.0,
    "reset": "auto",
    "leak_threshold": 30.0,
    "max_lease": None,
    "breaker_failures": 5,
    "breaker_reset": 0.5,
    "readonly": False,
    "drain_grace": 5.0,
    "drain_timeout": 10.0,
    "processes": 1,
    "budget": 0.8,
    "budget_strict": False,
    "pgbouncer": False,
    "skip": None,
    "on_connect": None,
    "on_acquire": None,
    "on_release": None,
    "rows": "tuple",
    "hstore": False,
    "stacks": False,
    "request_tag": "off",
    "slow_threshold": None,
}
OPTIONAL = {
    "queue_target",
    "statement_timeout",
    "abandon_interval",
    "leak_threshold",
    "max_lease",
    "keepalive",
    "idle_timeout",
    "max_lifetime",
    "idle_in_transaction_timeout",
    "slow_threshold",
}
FUNCTIONS = {"skip", "on_connect", "on_acquire", "on_release"}
FLAGS = {name for name, value in DEFAULTS.items() if isinstance(value, bool)}
NUMBERS = {name for name, value in DEFAULTS.items() if type(value) in (int, float)} | OPTIONAL
PASSWORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map("hunter2".__add__)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (*VARIABLES, "WEB_CONCURRENCY", "DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


async def hook(_: object) -> None: ...


def test_the_defaults() -> None:
    """Every setting has the default that the documentation names."""
    config = PoolConfig.build()
    assert {name: getattr(config, name) for name in SETTINGS} == DEFAULTS
    assert config == PoolConfig()
    assert config.hosts == (Host(None, None, 5432),)
    assert config.params == {}


def test_every_field_is_checked() -> None:
    """No setting is without a kind, and none shadows a keyword of libpq."""
    assert {field.name for field in fields(PoolConfig)} == {"hosts", "params", "source", "given", *SETTINGS}
    assert not SETTINGS.keys() & LIBPQ.keys()


def test_a_config_cannot_be_changed() -> None:
    """A config is frozen and hashable; a changed copy is checked as the first was."""
    config = PoolConfig.build(maxsize=20)
    with pytest.raises(FrozenInstanceError):
        config.maxsize = 5  # type: ignore[misc]
    assert hash(config) == hash(PoolConfig.build(maxsize=20))
    assert replace(config, minsize=20).minsize == 20
    with pytest.raises(ConfigError, match="minsize=21 is more than maxsize=20"):
        replace(config, minsize=21)


@pytest.mark.parametrize(
    "settings",
    [
        {"acquire_timeout": 2, "rows": DictCursor, "reset": "RESET ALL", "on_connect": hook},
        {"password": lambda: "x", "skip": bool, "minsize": 0, "max_waiting": 0},
        {"drain_grace": 0, "drain_timeout": 0, "check_after_idle": 0, "key": "reports"},
        {"idle_timeout": 3600, "max_lifetime": 60, "keepalive": 4000, "max_lease": 1, "leak_threshold": 5},
        {"pgbouncer": True, "reset": "SELECT app.tidy()", "hstore": True},
        {"minsize": 10, "drain_grace": 10, "connect_timeout": 60, "acquire_timeout": 1},
    ],
)
def test_settings_as_arguments(settings: dict[str, Any]) -> None:
    """Settings that make sense together are taken."""
    config = PoolConfig.build(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_what_can_be_switched_off(name: str) -> None:
    """None switches a setting off, also as text."""
    assert getattr(PoolConfig.build(**{name: None}), name) is None
    for word in ("none", "off", ""):
        assert getattr(PoolConfig.build(f"postgresql://h/db?{name}={word}"), name) is None
        assert getattr(PoolConfig.from_env(environ={f"DB_{name.upper()}": word}), name) is None


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - OPTIONAL - FUNCTIONS - {"password", "application_name"}))
def test_what_cannot_be_switched_off(name: str) -> None:
    """None is refused where it would mean nothing."""
    with pytest.raises(ConfigError, match=f"^{name} must be .*, not None$"):
        PoolConfig.build(**{name: None})


@pytest.mark.parametrize("name", sorted(NUMBERS))
@pytest.mark.parametrize("value", [True, "5", float("nan"), float("inf"), -1, 10**400, [], object()])
def test_numbers_are_numbers(name: str, value: object) -> None:
    """A number out of its range, or something else, is refused with name and range."""
    with pytest.raises(ConfigError, match=f"^{name} must be a .*number .*, not "):
        PoolConfig.build(**{name: value})


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_flags(name: str) -> None:
    """A flag is True or False, in a DSN also another word for it."""
    default = DEFAULTS[name]
    assert getattr(PoolConfig.build(**{name: not default}), name) is not default
    assert getattr(PoolConfig.build(f"{name}={'no' if default else 'yes'}"), name) is not default
    with pytest.raises(ConfigError, match=f"^{name} must be True or False, not 1$"):
        PoolConfig.build(**{name: 1})


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_are_for_code(name: str) -> None:
    """A function cannot come from a DSN or a variable, and nothing else is a function."""
    with pytest.raises(ConfigError, match=f"{name} cannot be written as text"):
        PoolConfig.build(f"{name}=print")
    with pytest.raises(ConfigError, match=rf"DB_{name.upper()} \({name}\) cannot be written as text"):
        PoolConfig.from_env(environ={f"DB_{name.upper()}": "print"})
    with pytest.raises(ConfigError, match=f"{name} must be .* function of one argument"):
        PoolConfig.build(**{name: "print"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minsize": 11}, "minsize=11 is more than maxsize=10"),
        ({"maxsize": 0}, "maxsize must be a whole number from 1 to 2147483647, not 0"),
        ({"maxsize": 2.0}, "maxsize must be a whole number"),
        (
            {"statement_timeout": 0},
            "statement_timeout must be a number of seconds from 0.001 to .*, or None, not 0",
        ),
        ({"statement_timeout": 0.0001}, "statement_timeout must be"),
        ({"connect_timeout": 0}, "connect_timeout must be"),
        ({"drain_timeout": 3}, "drain_grace=5 is longer than drain_timeout=3"),
        ({"pgbouncer": True, "reset": "full"}, "reset='full' cannot be had with pgbouncer=True"),
        ({"pgbouncer": True, "options": "-c geqo=off"}, "options cannot be had with pgbouncer=True"),
        ({"pgbouncer": True, "reset": "RESET ALL"}, "reset='RESET ALL' cannot be had with pgbouncer=True"),
        ({"pgbouncer": True, "readonly": True}, "readonly cannot be had with pgbouncer=True"),
        ({"budget": 0}, "budget must be a number above 0 and at most 1, not 0"),
        ({"budget": 1.5}, "budget must be"),
        ({"acquire": "sometimes"}, "acquire must be 'auto', 'eager' or 'lazy', not 'sometimes'"),
        ({"target": "read-write"}, "target must be 'primary', 'standby', 'prefer-standby' or 'any'"),
        ({"target": "primary", "target_session_attrs": "standby"}, "contradict each other"),
        ({"rows": "dicts"}, "rows must be 'tuple', 'dict', 'namedtuple' or a psycopg2 cursor class"),
        ({"rows": dict}, "rows must be"),
        ({"reset": ""}, "reset must be 'auto', 'rollback', 'full' or SQL of your own"),
        ({"reset": "rolback"}, "reset must be"),
        ({"reset": None}, "reset must be"),
        ({"key": ""}, "key must be a string that is not blank of at most 48 bytes"),
        ({"key": "x" * 49}, "key must be"),
        ({"application_name": "x" * 64}, "application_name must be a string of at most 63 bytes"),
        ({"skip": hook}, "skip must be a plain function"),
        ({"password": 5}, "password must be a string, or a function"),
        ({"sslmode": "on"}, "sslmode must be 'disable'"),
        ({"sslmode": True}, "sslmode must be 'disable'"),
        ({"keepalives_idle": "x"}, "keepalives_idle must be a whole number"),
        ({"load_balance_hosts": "random"}, "load_balance_hosts must be 'disable'"),
        ({"port": 0}, "port must be a whole number from 1 to 65535"),
        ({"max_size": 5}, "max_size is not a setting of the pool or of libpq; did you mean maxsize"),
        ({"sslmod": "require"}, "did you mean sslmode"),
        ({"colour": "red"}, "colour is not a setting of the pool or of libpq$"),
        ({"hosts": ()}, "hosts is not a setting"),
    ],
)
def test_what_cannot_be_right_is_refused(settings: dict[str, Any], said: str) -> None:
    """A wrong value, an unknown name and a contradiction are each said with the setting's name."""
    with pytest.raises(ConfigError, match=said):
        PoolConfig.build(**settings)


def test_no_hosts() -> None:
    """A config made by hand names a host too."""
    with pytest.raises(ConfigError, match="hosts must name at least one host"):
        PoolConfig(hosts=())


@pytest.mark.parametrize(
    ("given", "kept"),
    [("ROLLBACK;", "rollback"), ("Full", "full"), ("SELECT 1", "SELECT 1"), ("ABORT", "ABORT")],
)
def test_reset(given: str, kept: str) -> None:
    """The two words are known in any case, everything else is SQL."""
    assert PoolConfig.build(reset=given).reset == kept


def test_the_order_of_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments come before the DSN, and the DSN before libpq's variables."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    monkeypatch.setenv("PGAPPNAME", "env")
    monkeypatch.setenv("PGUSER", "env")
    monkeypatch.setenv("PGPASSWORD", "env")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    config = PoolConfig.build()
    assert (config.connect_timeout, config.application_name, config.target) == (7.0, "env", "standby")
    assert (config.password, config.params) == ("env", {"user": "env"})
    dsn = "postgresql://dsn:dsn@a:1,b:2/dsn?maxsize=3&application_name=dsn&acquire_timeout=none-such"
    config = PoolConfig.build(dsn, dbname="arg", application_name="arg", acquire_timeout=1, port=6, target="any")
    assert config.hosts == (Host("a", None, 6), Host("b", None, 6))
    assert (config.maxsize, config.application_name, config.acquire_timeout) == (3, "arg", 1.0)
    assert (config.password, config.target) == ("dsn", "any")
    assert config.params == {"user": "dsn", "dbname": "arg"}


def test_libpq_parameters_as_arguments(tmp_path: Path) -> None:
    """libpq's own parameters are arguments too, checked and handed on as text."""
    config = PoolConfig.build(
        "postgresql://h/db",
        sslmode="require",
        keepalives_idle=30,
        sslrootcert=tmp_path,
        gssencmode="disable",
        target_session_attrs="read-write",
        user=None,
        password=None,
    )
    assert config.params == {
        "dbname": "db",
        "sslmode": "require",
        "keepalives_idle": "30",
        "sslrootcert": str(tmp_path),
        "gssencmode": "disable",
    }
    assert config.target == "primary"


def test_none_is_no_password() -> None:
    """A password or name of None is one not given, not one taken away."""
    config = PoolConfig.build("postgresql://u:p@h/db?application_name=a", password=None, application_name=None)
    assert (config.password, config.application_name) == ("p", "a")


@given(PASSWORDS)
def test_a_password_is_kept_and_never_shown(password: str) -> None:
    """Any password comes through every form of DSN, and into no repr and no error."""
    quoted = password.replace("\\", r"\\").replace("'", r"\'")
    for dsn in (
        f"postgresql://u:{quote(password, safe='')}@h/db",
        f"user=u password='{quoted}' host=h dbname=db",
    ):
        config = PoolConfig.build(dsn)
        assert config.password == password
        assert "password" not in config.params
        assert "hunter2" not in repr(config) + str(config)
        with pytest.raises(ConfigError) as error:
            PoolConfig.build(dsn, maxsize="many")
        assert "hunter2" not in str(error.value)
        separator = "?" if dsn.startswith("postgresql://") else " "
        with pytest.raises(ConfigError) as error:
            PoolConfig.build(f"{dsn}{separator}statement_timeout=soon")
        assert "hunter2" not in f"{error.value} {error.value.__context__}"


@pytest.mark.parametrize("settings", [{"password": b"hunter2"}, {"passwrod": "hunter2"}, {"sslpassword": ["hunter2"]}])
def test_a_wrong_password_is_not_shown(settings: dict[str, Any]) -> None:
    """A password of the wrong type or under the wrong name is refused unseen."""
    with pytest.raises(ConfigError) as error:
        PoolConfig.build(**settings)
    assert "hunter2" not in str(error.value)


def test_secrets_are_in_no_repr_and_no_pickle() -> None:
    """A config can be logged, and is not written to disk or sent to a child by accident."""
    config = PoolConfig.build(password="hunter2", sslpassword="hunter2", user="u")
    assert config.params["sslpassword"] == "hunter2"
    assert "hunter2" not in repr(config) + str(config) + f"{config.params}"
    assert "password=" not in repr(config)
    with pytest.raises(TypeError, match="it holds the password"):
        pickle.dumps(config)


@pytest.mark.parametrize(
    ("key", "host", "pid", "name"),
    [
        ("db", "web-1", 42, "db@web-1:42"),
        ("db", "h" * 80, 1234567, "db@" + "h" * 52 + ":1234567"),
        ("k" * 48, "host", 4294967295, "k" * 48 + "@hos:4294967295"),
        ("é" * 24, "ü" * 80, 1, "é" * 24 + "@" + "ü" * 6 + ":1"),
        ("db", "", 1, "db@:1"),
    ],
)
def test_the_default_application_name(key: str, host: str, pid: int, name: str) -> None:
    """The name fits PostgreSQL's 63 bytes whole, and only the host is cut for it."""
    found = PoolConfig.build(key=key).default_application_name(host, pid)
    assert found == name
    assert len(found.encode()) <= 63
