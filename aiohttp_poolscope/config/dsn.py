"""From a DSN, a service file and PG* variables to hosts and plain connection parameters.

Everything libpq would look up to decide *where* to connect is read here, because hosts, name
resolution and TLS fallback are ours: libpq blocks the event loop on the one and hangs on the
others. A URL is taken apart by libpq's rules and not by RFC 3986, so that a string means here what
it means to psql: several hosts, a socket directory as host, ``+`` as itself.

No error repeats a piece of the DSN: in a malformed one, any piece may be of the password.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from yarl import URL

from aiohttp_poolscope.errors import ConfigError

from .libpq import LIBPQ, STRONG, VARIABLES, Parameters, with_target
from .values import whole

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

_PORT = whole(1, 65535)
_USED_UP = ("host", "hostaddr", "port", "service", "servicefile", "load_balance_hosts")

_URL = re.compile(
    r"(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<hosts>[^/?]*)(?:/(?P<dbname>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_SCHEME = re.compile(r"([a-z][a-z0-9+.:-]*)://", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(?:\[([^]@]+)\]|([^][:@]*))(?::([0-9]*))?")
_BAD_PERCENT = re.compile(r"%(?![0-9a-f]{2})|%00", re.IGNORECASE)
_PAIR = re.compile(
    r"""\s* (?P<name>[^\s=]+) \s*=\s*
    (?: '(?P<quoted>(?:[^'\\]|\\.|'')*)' | (?!')(?P<bare>(?:[^\s\\]|\\.|\\\Z)*) ) \s*""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ENCODE = "in a URL, '/', '?', '#', '@', ':' and '%' in a user name or password are percent-encoded"


@dataclass(frozen=True, slots=True)
class Host:
    """One server to try. A ``host`` of None is libpq's default socket, "/..." or "@..." a socket."""

    host: str | None = None
    hostaddr: str | None = None
    port: int = 5432


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect and how: hosts, libpq's parameters, and the pool's settings found there."""

    hosts: tuple[Host, ...]
    params: Mapping[str, str]
    settings: Mapping[str, str]


def resolve(
    dsn: str | URL | None,
    keywords: Mapping[str, str],
    environ: Mapping[str, str],
    settings: Collection[str],
) -> Address:
    """Combine keywords, DSN, service file and PG* variables; the first to name a thing wins.

    ``settings`` are the names that may stand in a DSN beside libpq's, and belong to the pool.
    Raises ConfigError for what cannot be right.
    """
    near = {**parse(dsn, settings), **keywords}
    variables = {name: environ[var] for var, name in VARIABLES.items() if environ.get(var)}
    far = with_target(variables)
    given = {**far, **near}
    if service := given.get("service"):
        given = {**far, **_read_service(service, given.get("servicefile"), environ), **near}
    # To libpq an empty value is none, and yet it hides what stands further off.
    merged = {name: value for name, value in given.items() if value or name in settings}
    ours = {name: value for name, value in merged.items() if name in settings}
    theirs = {name: value for name, value in merged.items() if name not in settings}
    for name, value in theirs.items():
        LIBPQ[name].read(name, value)
    params = {name: value for name, value in theirs.items() if name not in _USED_UP}
    return Address(_hosts(theirs), Parameters(_with_strong_tls(params)), Parameters(ours))


def parse(dsn: str | URL | None, settings: Collection[str], where: str = "the DSN") -> dict[str, str]:
    """Return what a DSN of any form says, by libpq's names and those of ``settings``."""
    named: dict[str, str] = {}
    pairs: Iterable[tuple[str, str]] = ()
    if isinstance(dsn, URL):
        named, _ = _split_url(str(dsn.with_query(None)), where)
        # yarl has decoded the query already, and a ``+`` in it was a space; to libpq it is a ``+``.
        pairs = dsn.query.items()
    elif isinstance(dsn, str) and _SCHEME.match(dsn.strip()):
        named, query = _split_url(dsn.strip(), where)
        pairs = _from_query(query, where)
    elif isinstance(dsn, str):
        pairs = _from_keywords(dsn.lstrip(), where)
    elif dsn is not None:
        raise ConfigError(f"{where} must be a string, a yarl.URL or None, not {type(dsn).__name__}")
    for place, (name, value) in enumerate(pairs, 1):
        if name not in LIBPQ and name not in settings:
            raise ConfigError(
                f"{where} has an unknown parameter, number {place} of those written name=value"
                + did_you_mean(name, (*LIBPQ, *settings))
            )
        named[name] = value
    if any("\0" in value for value in named.values()):
        raise ConfigError(f"{where} contains a NUL character")
    return with_target(named)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?", or nothing if nothing is near."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def _split_url(url: str, where: str) -> tuple[dict[str, str], str]:
    scheme = url.partition("://")[0]
    if scheme.lower() not in ("postgresql", "postgres"):
        raise ConfigError(f"{where} starts with {scheme:.40}://: write postgresql:// instead")
    parts = _URL.fullmatch(url, len(scheme) + 3)
    # A '/' or '@' too many pushes the rest of the password into the host or the database's name.
    if parts is None or "@" in (parts["dbname"] or ""):
        raise ConfigError(f"{where} cannot be read ({_ENCODE})")
    servers = [_HOST_AND_PORT.fullmatch(server) for server in parts["hosts"].split(",")]
    read = [server for server in servers if server and _is_port(server[3])]
    if len(read) < len(servers):
        raise ConfigError(
            f"{where} has a host or port that cannot be read: write host:port, a port from 1 to "
            f"65535, an IPv6 address in brackets ({_ENCODE})"
        )
    found = {
        "user": parts["user"],
        "password": parts["password"],
        "host": ",".join(server[1] or server[2] for server in read),
        "port": ",".join(server[3] or "" for server in read),
        "dbname": parts["dbname"],
    }
    named = {name: _decode(piece, where) for name, piece in found.items() if piece}
    return named, parts["query"] or ""


def _is_port(digits: str | None) -> bool:
    with suppress(ConfigError):
        return not digits or bool(_PORT.read("port", digits))
    return False


def _from_query(query: str, where: str) -> Iterator[tuple[str, str]]:
    for place, pair in enumerate(query.removesuffix("&").split("&") if query else (), 1):
        name, equals, value = (_decode(piece, where) for piece in pair.partition("="))
        if not equals:
            raise ConfigError(f"{where} has no '=' in parameter number {place} after the '?'")
        yield ("sslmode", "require") if (name, value) == ("ssl", "true") else (name, value)


def _decode(piece: str, where: str) -> str:
    if not _BAD_PERCENT.search(piece):
        with suppress(UnicodeDecodeError):
            return unquote(piece, errors="strict")
    raise ConfigError(
        f"{where} has a '%' that is not followed by the two hexadecimal digits of a UTF-8 byte: "
        f"write %25 for a percent sign"
    )


def _from_keywords(text: str, where: str) -> Iterator[tuple[str, str]]:
    end = 0
    while end < len(text):
        if (pair := _PAIR.match(text, end)) is None:
            raise ConfigError(
                f"{where} is neither a postgresql:// URL nor name=value pairs with spaces between "
                f"(a value with spaces stands in '...', with \\' and \\\\ for ' and \\)"
            )
        end = pair.end()
        if pair["quoted"] is not None:
            # Quotes doubled as in SQL are not libpq's: it takes them for an error.
            yield pair["name"], re.sub(r"\\(.)|'(')", r"\1\2", pair["quoted"], flags=re.DOTALL)
        else:
            yield pair["name"], re.sub(r"\\(.?)", r"\1", pair["bare"], flags=re.DOTALL)


def _read_service(name: str, file: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    files = [Path(file) if file else Path(environ.get("HOME") or Path.home(), ".pg_service.conf")]
    if directory := environ.get("PGSYSCONFDIR"):
        files.append(Path(directory, "pg_service.conf"))
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"the service file {path} cannot be read: {error.strerror}") from None
        if (section := _section(lines, name, path)) is not None:
            return with_target(section)
    raise ConfigError(f"service {name!r} is not defined in {' or '.join(map(str, files))}")


def _section(lines: Iterable[str], service: str, path: Path) -> dict[str, str] | None:
    section: dict[str, str] | None = None
    for number, line in enumerate(map(str.strip, lines), 1):
        if line.startswith("["):
            if section is not None:
                break
            section = {} if line == f"[{service}]" else None
        elif section is not None and line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            if not equals or name not in {*LIBPQ, *VARIABLES.values()} - {"service", "servicefile"}:
                raise ConfigError(f"line {number} of {path} is not a parameter libpq knows")
            section.setdefault(name, value)
    return section


def _hosts(parts: Mapping[str, str]) -> tuple[Host, ...]:
    names = parts.get("host", "").split(",")
    addresses = parts.get("hostaddr", "").split(",")
    if "hostaddr" not in parts:
        addresses *= len(names)
    elif "host" not in parts:
        names *= len(addresses)
    ports = parts.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(names)
    if not len(names) == len(addresses) == len(ports):
        raise ConfigError(
            f"host, hostaddr and port list {len(names)}, {len(addresses)} and {len(ports)} "
            f"servers: give as many of each, or one port for all"
        )
    for address in filter(None, addresses):
        try:
            ip_address(address)
        except ValueError as error:
            raise ConfigError(f"hostaddr must be IP addresses: {error}") from None
    return tuple(
        Host(name or None, address or None, _PORT.read("port", port) if port else 5432)
        for name, address, port in zip(names, addresses, ports, strict=True)
    )


def _with_strong_tls(params: dict[str, str]) -> dict[str, str]:
    # As in libpq: trusting every authority the system knows is worth nothing without the name.
    if params.get("sslrootcert") == "system":
        params.setdefault("sslmode", "verify-full")
        if params["sslmode"] != "verify-full":
            raise ConfigError(f"sslrootcert='system' needs sslmode='verify-full', not {params['sslmode']!r}")
    if params.get("sslnegotiation") == "direct" and params.get("sslmode") not in STRONG:
        raise ConfigError("sslnegotiation='direct' needs sslmode='require' or stronger")
    return params
