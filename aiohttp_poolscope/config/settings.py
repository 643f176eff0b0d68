"""PoolConfig: every setting of a pool, its default, its range, and where it may be written."""
# ruff: noqa: RUF009 - setting() is dataclasses.field(), with the kind of value beside the default

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn, Self, TypeVar

from yarl import URL

from aiohttp_poolscope.errors import ConfigError
from aiohttp_poolscope.sql.session import needs_session

from .dsn import Host, did_you_mean, parse, resolve
from .environment import NOT_GIVEN, Variables
from .libpq import LIBPQ, Parameters, libpq_text, with_target
from .values import Kind, choice, either, flag, function, seconds, share, text, whole

T = TypeVar("T")

Password = str | Callable[[], str | Awaitable[str]] | None
Source = Callable[[], "str | URL | Awaitable[str | URL]"] | None
Hook = Callable[[Any], Awaitable[object]] | None

# PostgreSQL cuts names at 63 bytes. A key of 48 leaves room for "@", ":", any pid, and some host.
_NAME_BYTES, _KEY_BYTES = 63, 48


def setting(default: T, kind: Kind, *, show: bool = True) -> T:
    """Declare a field of PoolConfig: its default, and the values it takes."""
    return field(default=default, metadata={"kind": kind}, repr=show)


def _sql(*words: str) -> Kind:
    """One of a few words, or SQL; a word that is nearly one of them is neither."""

    def take(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ValueError
        word = value.strip().rstrip(";").lower()
        if word in words:
            return word
        if difflib.get_close_matches(word, words, cutoff=0.75):
            raise ValueError
        return value

    allowed = f"{', '.join(map(repr, words))} or SQL of your own"
    return Kind(allowed=allowed, take=take, parse=str)


_HOOK = function("an async function of one argument, the connection")
_PASSWORD = either(
    "a string, or a function (also async) that returns one",
    text(optional=True, secret=True),
    callable,
)
_ROWS = either(
    "'tuple', 'dict', 'namedtuple' or a psycopg2 cursor class",
    choice("tuple", "dict", "namedtuple"),
    lambda value: inspect.isclass(value) and hasattr(value, "fetchone"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """The settings of one pool, checked. Durations are seconds.

    Make one with ``build`` or ``from_env``; ``dataclasses.replace`` gives a changed copy, checked again.
    A wrong value, or two that contradict each other, is a ConfigError that names the setting, the
    value and what is allowed. It cannot be pickled, since it holds the password.
    """

    hosts: tuple[Host, ...] = (Host(),)
    """The servers, in the order in which they are tried."""
    params: Mapping[str, str] = field(default_factory=Parameters, hash=False)
    """libpq's parameters to hand on (user, dbname, sslmode, ...), without the password."""
    given: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """The keyword arguments, where there is a ``source``: they win over what it says."""
    source: Source = field(default=None, repr=False)
    """A function asked for the DSN at every connect: ``hosts``, ``params`` and ``password`` are then what it says."""
    password: Password = setting(None, _PASSWORD, show=False)
    """The password, or a function asked for it at every connect. None: ``~/.pgpass``, as in libpq."""
    target: Literal["primary", "standby", "prefer-standby", "any"] = setting(
        "any", choice("primary", "standby", "prefer-standby", "any")
    )
    """With several hosts: which role to look for."""
    connect_timeout: float = setting(5.0, seconds())
    """One attempt to connect, name resolution included."""
    readonly: bool = setting(default=False, kind=flag())
    """Sessions that begin every transaction READ ONLY: for replicas, and for whoever should only read."""
    application_name: str | None = setting(None, text(optional=True, max_bytes=_NAME_BYTES))
    """The name in pg_stat_activity. None: ``default_application_name``."""

    key: str = setting("db", text(blank=False, max_bytes=_KEY_BYTES))
    """The name in the request and in every metric."""
    minsize: int = setting(1, whole(0))
    """Connections kept open."""
    maxsize: int = setting(10, whole(1))
    """Connections this process opens at most."""
    acquire: Literal["auto", "eager", "lazy"] = setting("auto", choice("auto", "eager", "lazy"))
    """When a request borrows: before its handler, at first use, or as fits the request."""
    acquire_timeout: float = setting(5.0, seconds())
    """How long a request waits for a connection."""
    max_waiting: int = setting(1000, whole(0))
    """Requests that may wait; the next one is refused at once."""
    queue_target: float | None = setting(0.1, seconds(optional=True))
    """A wait that is normal. When waits stay above it, load is shed. None: plain FIFO."""
    connect_at_start: bool = setting(default=True, kind=flag())
    """Open ``minsize`` connections before the first request, or fail to start."""

    statement_timeout: float | None = setting(30.0, seconds(optional=True))
    """How long a statement may run, kept by the server. None: no limit."""
    idle_in_transaction_timeout: float | None = setting(60.0, seconds(optional=True))
    """How long a transaction may idle before the server ends it. None: no limit."""
    abandon_interval: float | None = setting(1.0, seconds(optional=True))
    """How often a running query looks whether its connection is gone. None: never."""
    cancel_abandoned: bool = setting(default=False, kind=flag())
    """Cancel the handler of a GET or HEAD whose client has left."""

    idle_timeout: float | None = setting(300.0, seconds(optional=True))
    """Idle connections beyond ``minsize`` are closed after this. None: never."""
    max_lifetime: float | None = setting(1800.0, seconds(optional=True))
    """A connection is replaced at this age, with 10 % jitter. None: never."""
    check_after_idle: float = setting(1.0, seconds(0))
    """A connection idle for longer is pinged before it is lent. 0: always."""
    keepalive: float | None = setting(120.0, seconds(optional=True))
    """How often idle connections are pinged. None: never."""
    reset: str = setting("auto", _sql("auto", "rollback", "full"))
    """What a returned connection gets: "rollback", "full" (DISCARD ALL as well), "auto" (that only where a statement
    may have changed the session), or this SQL."""
    leak_threshold: float | None = setting(30.0, seconds(optional=True))
    """A connection held for longer is reported with its holder. None: never."""
    max_lease: float | None = setting(None, seconds(optional=True))
    """A connection held for longer is taken away. None: never."""

    breaker_failures: int = setting(5, whole(1))
    """Failed connects in a row that open the breaker."""
    breaker_reset: float = setting(0.5, seconds())
    """The longest pause between probes while the breaker is open."""
    drain_grace: float = setting(5.0, seconds(0))
    """How long a drain waits for leases before it cancels their tasks."""
    drain_timeout: float = setting(10.0, seconds(0))
    """When a drain ends by force, counted from its start."""

    processes: int = setting(1, whole(1))
    """Processes that open a pool like this one. Not given: WEB_CONCURRENCY, or 1."""
    budget: float = setting(0.8, share())
    """The part of the server's connections that all processes together may take."""
    budget_strict: bool = setting(default=False, kind=flag())
    """Fail to start when the budget is exceeded, instead of warning."""
    pgbouncer: bool = setting(default=False, kind=flag())
    """Send no startup options and keep nothing in the session."""

    skip: Callable[[Any], bool] | None = setting(
        None, function("a plain function of one argument, the request", synchronous=True)
    )
    """Requests for which it returns true get no connection."""
    on_connect: Hook = setting(None, _HOOK)
    """Awaited with every new connection."""
    on_acquire: Hook = setting(None, _HOOK)
    """Awaited with a connection before it is lent."""
    on_release: Hook = setting(None, _HOOK)
    """Awaited with a connection that comes back."""
    rows: Literal["tuple", "dict", "namedtuple"] | type[Any] = setting("tuple", _ROWS)
    """What a row is."""
    hstore: bool = setting(default=False, kind=flag())
    """Read hstore as dict, for one query more per connect."""
    stacks: bool = setting(default=False, kind=flag())
    """Keep the stack of each borrow, for the report of a leak."""
    request_tag: Literal["off", "application_name", "comment"] = setting(
        "off", choice("off", "application_name", "comment")
    )
    """Where pg_stat_activity shows which request a backend works for."""
    slow_threshold: float | None = setting(None, seconds(0, optional=True))
    """Statements that take longer are reported. None: none are."""

    def __post_init__(self) -> None:
        for name, kind in SETTINGS.items():
            object.__setattr__(self, name, kind.check(name, getattr(self, name)))
        object.__setattr__(self, "params", Parameters(self.params))
        for message, wrong in _CONTRADICTIONS.items():
            if wrong(self):
                raise ConfigError(message.format(self))

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: the password would be in there."""
        raise TypeError("a PoolConfig is not pickled: it holds the password")

    @classmethod
    def build(cls, dsn: str | URL | Source = None, /, **settings: Any) -> Self:
        """Combine keyword arguments, DSN, service file and PG* variables; the first to name a thing wins.

        Args:
            dsn: A ``postgresql://`` URL, also as yarl.URL; libpq's ``name=value`` form; or None. Every
                setting that can be written as text may stand in it: ``...?maxsize=20``. Or a function, also async,
                that returns one and is asked at every connect; such a one says where to connect and as whom, only.
            settings: The pool's, and libpq's own: ``sslmode="require"``.

        Raises:
            ConfigError: A setting is unknown, wrong, or contradicts another.
        """
        given = _given(settings)
        if callable(dsn):
            return cls._build(None, given, os.environ, source=dsn)
        return cls._build(dsn, given, os.environ)

    def at(self, dsn: str | URL) -> PoolConfig:
        """A copy that connects to where ``dsn`` says, which ``source`` has returned. Raises ConfigError."""
        if not isinstance(dsn, (str, URL)):
            raise ConfigError(f"the DSN function must return a string or a yarl.URL, not {type(dsn).__name__}")
        if elsewhere := sorted(parse(dsn, SETTINGS).keys() & SETTINGS.keys() - {"password", "target"}):
            raise ConfigError(f"the DSN function returned {', '.join(elsewhere)}: give these as keyword arguments")
        return self._build(dsn, self.given, os.environ, source=self.source)

    @classmethod
    def from_env(cls, prefix: str = "DB_", environ: Mapping[str, str] | None = None, **settings: Any) -> Self:
        """Build from environment variables; ``settings`` win over them.

        With the default prefix: ``DB_HOST``, ``DB_PORT``, ``DB_NAME``, ``DB_USER``, ``DB_PASSWORD``;
        ``DB_SSL``, an sslmode, or true and false for require and disable; ``DB_POOL_MIN``, ``DB_POOL_MAX``;
        and ``DB_`` with any other setting or keyword of libpq in capitals. They add to the DSN in
        ``DB_DATABASE_URL``, ``DB_URL`` or ``DATABASE_URL``. With another prefix, ``DATABASE_URL`` counts
        only where that prefix has no ``HOST``.

        Raises:
            ConfigError: As for ``build``; also when a variable is misspelt, or names another host, port,
                user, password or database than the DSN does.
        """
        environ = os.environ if environ is None else environ
        given = _given(settings)
        dsn, found = _VARIABLES.read(prefix, environ, given.keys())
        return cls._build(dsn, {**with_target(found), **given}, environ)

    @classmethod
    def _build(
        cls, dsn: str | URL | None, given: Mapping[str, Any], environ: Mapping[str, str], source: Source = None
    ) -> Self:
        keywords = {name: libpq_text(name, given[name]) for name in given if name in LIBPQ}
        address = resolve(dsn, keywords, environ, SETTINGS.keys())
        values: dict[str, Any] = {"processes": _default_processes(environ)}
        for name, written in address.settings.items():
            if name not in given:
                values[name] = SETTINGS[name].read(name, written)
        values |= {name: value for name, value in given.items() if name in SETTINGS}
        return cls(hosts=address.hosts, params=address.params, source=source, given=given if source else {}, **values)

    def default_application_name(self, hostname: str, pid: int) -> str:
        """Return ``<key>@<host>:<pid>``, the host cut so that the whole is at most 63 bytes."""
        room = _NAME_BYTES - len(f"{self.key}@:{pid}".encode())
        host = hostname.encode(errors="replace")[:room].decode(errors="ignore")
        return f"{self.key}@{host}:{pid}"


SETTINGS: Mapping[str, Kind] = {
    each.name: each.metadata["kind"] for each in fields(PoolConfig) if "kind" in each.metadata
}
"""What each setting takes, by its name."""

_CONTRADICTIONS: Mapping[str, Callable[[PoolConfig], bool]] = {
    "minsize={0.minsize} is more than maxsize={0.maxsize}": lambda its: its.minsize > its.maxsize,
    "drain_grace={0.drain_grace:g} is longer than drain_timeout={0.drain_timeout:g}, and both count "
    "from the start of the drain: set both": lambda its: its.drain_grace > its.drain_timeout,
    "reset='full' cannot be had with pgbouncer=True: DISCARD ALL would go to a connection that may "
    "be another client's": lambda its: its.pgbouncer and its.reset == "full",
    "reset={0.reset!r} cannot be had with pgbouncer=True: it is about a session, and there is none": lambda its: (
        its.pgbouncer and its.reset not in ("auto", "rollback", "full") and needs_session(its.reset) is not None
    ),
    "options cannot be had with pgbouncer=True: PgBouncer refuses startup options; set them for the "
    "role or the database": lambda its: its.pgbouncer and "options" in its.params,
    "readonly cannot be had with pgbouncer=True: it would have to live in the session; use "
    "'ALTER ROLE ... SET default_transaction_read_only = on'": lambda its: its.pgbouncer and its.readonly,
    "hosts must name at least one host": lambda its: not its.hosts,
}

_VARIABLES = Variables(SETTINGS)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    for name in settings:
        if name not in SETTINGS and name not in LIBPQ:
            hint = did_you_mean(name, (*SETTINGS, *LIBPQ))
            raise ConfigError(f"{name} is not a setting of the pool or of libpq{hint}")
    given = with_target(settings)
    return {name: given[name] for name in given if given[name] is not None or name not in NOT_GIVEN}


def _default_processes(environ: Mapping[str, str]) -> int:
    with suppress(ConfigError):
        return int(SETTINGS["processes"].read("WEB_CONCURRENCY", environ.get("WEB_CONCURRENCY", "")))
    return 1
