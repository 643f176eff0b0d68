"""What a DSN leaves open: service files and libpq's variables, and which of them comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aiohttp_poolscope.config.dsn import Address, Host, resolve
from aiohttp_poolscope.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SETTINGS = frozenset({"password", "target", "connect_timeout", "application_name"})


def address(dsn: str | None = None, environ: Mapping[str, str] | None = None, **keywords: str) -> Address:
    return resolve(dsn, keywords, {"HOME": "/nonexistent", **(environ or {})}, SETTINGS)


VARIABLES = {
    "PGHOST": "envhost",
    "PGPORT": "1",
    "PGUSER": "envuser",
    "PGPASSWORD": "envpassword",
    "PGDATABASE": "envdb",
    "PGSSLMODE": "verify-full",
    "PGTARGETSESSIONATTRS": "read-only",
    "PGCONNECT_TIMEOUT": "9",
    "PGAPPNAME": "envapp",
    "PGOPTIONS": "-c geqo=off",
}


def test_variables_stand_in_for_what_is_not_given() -> None:
    """libpq's variables are read where nothing else names a thing."""
    found = address(None, VARIABLES)
    assert found.hosts == (Host("envhost", None, 1),)
    assert found.params == {
        "user": "envuser",
        "dbname": "envdb",
        "sslmode": "verify-full",
        "options": "-c geqo=off",
    }
    assert found.settings == {
        "password": "envpassword",
        "target": "standby",
        "connect_timeout": "9",
        "application_name": "envapp",
    }
    assert address(None, {"PGHOSTADDR": "10.0.0.1"}).hosts == (Host(None, "10.0.0.1", 5432),)
    assert address(None, {"PGHOST": "", "PGSSLMODE": "", "PGCONNECT_TIMEOUT": ""}) == address()


@pytest.fixture
def service_file(tmp_path: Path) -> Path:
    file = tmp_path / ".pg_service.conf"
    file.write_text(
        "# ours\n[other]\nhost=elsewhere\n\n[app]\n  host=servicehost  \nport=2\nuser=serviceuser\n"
        "password=a = b # c\nconnect_timeout=4\ntarget_session_attrs=primary\nhost=second\n[last]\nbroken\n"
        "[unknown]\nmaxsize=3\n"
    )
    return file


def test_the_order_of_sources(service_file: Path) -> None:
    """Keywords come before the DSN, it before the service file, and that before variables."""
    environ = {**VARIABLES, "PGSERVICEFILE": str(service_file), "PGSERVICE": "app"}
    found = address("postgresql://dsnhost/dsndb", environ, dbname="keyword")
    assert found.hosts == (Host("dsnhost", None, 2),)
    assert (found.params["dbname"], found.params["user"]) == ("keyword", "serviceuser")
    assert found.params["sslmode"] == "verify-full"
    assert found.settings["password"] == "a = b # c"
    assert found.settings["connect_timeout"] == "4"
    assert found.settings["target"] == "primary"
    assert "service" not in found.params
    assert "servicefile" not in found.params


def test_an_empty_value_hides_a_farther_one() -> None:
    """As in libpq, an empty host in the DSN is the default one, whatever PGHOST says."""
    assert address("host='' user=''", VARIABLES).hosts == (Host(None, None, 1),)
    assert "user" not in address("user=''", VARIABLES).params


def test_where_service_files_are_looked_for(service_file: Path, tmp_path: Path) -> None:
    """A service is looked for in the file named, else at home, and then in the system's directory."""
    expected = (Host("servicehost", None, 2),)
    assert address("service=app", {"HOME": str(tmp_path)}).hosts == expected
    assert address("service=app", {"PGSERVICEFILE": str(service_file)}).hosts == expected
    assert address(f"service=app servicefile={service_file}").hosts == expected
    assert address(None, {"HOME": str(tmp_path)}, service="app").hosts == expected
    system = tmp_path / "system"
    system.mkdir()
    service_file.rename(system / "pg_service.conf")
    environ = {"HOME": str(tmp_path), "PGSYSCONFDIR": str(system), "PGSERVICE": "app"}
    assert address(None, environ).hosts == expected
    assert address("service=''", environ).hosts == (Host(None, None, 5432),)


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("nowhere", "service 'nowhere' is not defined in .*pg_service.conf"),
        ("last", "line 14 of .* is not a parameter libpq knows"),
        ("unknown", "line 16 of .* is not a parameter libpq knows"),
    ],
)
def test_a_service_that_cannot_be_read(service_file: Path, service: str, said: str) -> None:
    """A missing service and a broken line are named, with the file."""
    with pytest.raises(ConfigError, match=said):
        address(f"service={service}", {"PGSERVICEFILE": str(service_file)})


def test_a_service_file_that_is_none(tmp_path: Path) -> None:
    """A service file that cannot be opened is a ConfigError that names it."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        address("service=x", {"PGSERVICEFILE": str(tmp_path)})
