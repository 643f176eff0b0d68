"""libpq: its keywords, its variables, and the parameters that are handed on to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn, TypeVar

from aiohttp_poolscope.errors import ConfigError

from .values import choice, text, whole

V = TypeVar("V")

_BIT = choice("0", "1")
STRONG = ("require", "verify-ca", "verify-full")
_ROLES = {
    "any": "any",
    "read-write": "primary",
    "primary": "primary",
    "read-only": "standby",
    "standby": "standby",
    "prefer-standby": "prefer-standby",
}
SECRETS = ("sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")

LIBPQ = {
    **dict.fromkeys(("host", "hostaddr", "port", "user", "dbname", "service", "servicefile"), text()),
    **dict.fromkeys(("passfile", "options", "client_encoding", "replication"), text()),
    **dict.fromkeys(("fallback_application_name", "requirepeer", "require_auth"), text()),
    **dict.fromkeys(("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir"), text()),
    **dict.fromkeys(("krbsrvname", "gsslib", "sslkeylogfile"), text()),
    **dict.fromkeys(("oauth_issuer", "oauth_client_id", "oauth_scope"), text()),
    **dict.fromkeys(("ssl_min_protocol_version", "ssl_max_protocol_version"), text()),
    **dict.fromkeys(("min_protocol_version", "max_protocol_version"), text()),
    **dict.fromkeys(SECRETS, text(secret=True)),
    **dict.fromkeys(("keepalives", "sslsni", "sslcompression", "gssdelegation"), _BIT),
    **dict.fromkeys(("keepalives_idle", "keepalives_interval", "keepalives_count"), whole(0)),
    "tcp_user_timeout": whole(0),
    "sslmode": choice("disable", "allow", "prefer", *STRONG),
    "sslnegotiation": choice("postgres", "direct"),
    "sslcertmode": choice("disable", "allow", "require"),
    "channel_binding": choice("disable", "prefer", "require"),
    "gssencmode": choice("disable", "prefer", "require"),
    "target_session_attrs": choice(*_ROLES),
    "load_balance_hosts": choice("disable", note=" (hosts are tried in the order given)"),
}
"""libpq's keywords (17 and 18), except for those that are settings of the pool."""

VARIABLES = {
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGDATABASE": "dbname",
    "PGSERVICE": "service",
    "PGSERVICEFILE": "servicefile",
    "PGSSLMODE": "sslmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGAPPNAME": "application_name",
    "PGOPTIONS": "options",
}
"""The variables read here. libpq reads the others itself, when it connects."""


class Parameters(Mapping[str, str]):
    """Connection parameters by libpq's names: read-only, and a repr without the secrets."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        hidden = ("password", *SECRETS)
        shown = {name: "***" if name in hidden else text for name, text in self._values.items()}
        return repr(shown)

    def __reduce__(self) -> NoReturn:
        raise TypeError("connection parameters are not pickled: they may hold a password")


def libpq_text(name: str, value: object) -> str:
    """Return the value of a keyword argument as libpq reads it, checked."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value == "":
        return ""
    if isinstance(value, str):
        LIBPQ[name].read(name, value)
        return value
    return str(LIBPQ[name].check(name, value))


def with_target(level: Mapping[str, V]) -> dict[str, V | str]:
    """Return names and values of one source with ``target_session_attrs`` said as ``target``."""
    named: dict[str, V | str] = dict(level)
    wanted = named.pop("target_session_attrs", None)
    if wanted is None or wanted == "":
        return named
    target = _ROLES[LIBPQ["target_session_attrs"].check("target_session_attrs", wanted)]
    if named.setdefault("target", target) != target:
        raise ConfigError(f"target={named['target']!r} and target_session_attrs={wanted!r} contradict each other")
    return named
