"""What the doctor makes of what a server has said. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope.capacity.limits import overdrawn
from aiohttp_poolscope.capacity.sizing import seconds

from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp_poolscope.config import PoolConfig

    from .server import Facts, Setting

__all__ = ("judge", "most_for", "suggested")

OLDEST = 140000
"""PostgreSQL 14: client_connection_check_interval."""

SLOW, FAR = 0.005, 0.05
"""Seconds for a round trip: longer than within a data centre; so long that a handler feels every statement."""

NEARLY_FULL = 0.9
SOURCES = {
    "user": "ALTER ROLE",
    "database": "ALTER DATABASE",
    "database user": "ALTER ROLE IN DATABASE",
    "client": "options in the DSN",
}
"""Who has set a setting, in pg_settings' words and in those of who did it."""

MILLISECOND = 0.001
"""The server counts in these."""

TIMEOUTS = {
    "statement_timeout": "statement_timeout",
    "idle_in_transaction_session_timeout": "idle_in_transaction_timeout",
}
"""PostgreSQL's name, and the setting of ours that is sent for it."""


def judge(facts: Facts, config: PoolConfig, processes: int) -> list[Finding]:
    """Every finding about a server and the way to it, for a pool with these settings in so many processes."""
    return [
        _version(facts),
        _role(facts, config),
        _tls(facts),
        _latency(facts),
        *_pooler(facts, config),
        _connections(facts, config, processes),
        *_timeouts(facts, config),
        _abandoned(facts, config),
        *_network(facts, config),
        *_habits(facts),
    ]


def most_for(facts: Facts, config: PoolConfig, processes: int) -> int:
    """The largest maxsize with which so many processes stay within the budget; 0 if there is none."""
    return int(facts.limits.available * config.budget) // processes


def suggested(facts: Facts, config: PoolConfig, processes: int) -> int:
    """The pool's own maxsize where it fits, else what does."""
    return max(1, min(config.maxsize, most_for(facts, config, processes)))


def _version(facts: Facts) -> Finding:
    if facts.version_number >= OLDEST:
        return Finding("ok", "version", f"PostgreSQL {facts.version}")
    return Finding(
        "warning", "version", f"PostgreSQL {facts.version}",
        "before 14 a server does not notice that a client has gone: its statement runs on, with its locks",
        "PostgreSQL 14 or newer",
    )  # fmt: skip


def _role(facts: Facts, config: PoolConfig) -> Finding:
    name = "standby" if facts.standby else "primary"
    if config.target in ("primary", "standby") and name != config.target:
        return Finding("info", "role", name, f"looked at all the same: no host is a {config.target}")
    if facts.standby and config.target == "any" and not config.readonly:
        return Finding(
            "warning", "role", name, "every write will fail: it is read-only",
            "target='primary' with all hosts in the DSN, or readonly=True for a scope that only reads",
        )  # fmt: skip
    if not facts.standby and facts.without["default_transaction_read_only"].value == "on" and not config.readonly:
        return Finding(
            "warning", "role", f"{name}, default_transaction_read_only=on", "every write will fail, outside of this",
            f"ALTER ROLE {facts.user} RESET default_transaction_read_only (or the database's), or readonly=True",
        )  # fmt: skip
    return Finding("ok", "role", name)


def _tls(facts: Facts) -> Finding:
    if facts.local:
        return Finding("ok", "TLS", "not needed: it stays on this machine" if not facts.tls else "on")
    if not facts.tls:
        return Finding(
            "warning", "TLS", "off", "passwords, statements and rows cross the network for everybody to read",
            "ssl = on in postgresql.conf, and sslmode=verify-full here",
        )  # fmt: skip
    if facts.sslmode in ("verify-ca", "verify-full"):
        return Finding("ok", "TLS", f"on, sslmode={facts.sslmode}")
    return Finding(
        "info", "TLS", f"on, sslmode={facts.sslmode}", "whose certificate it is is not checked",
        "sslmode=verify-full with sslrootcert=<the authority's file>, or sslrootcert=system",
    )  # fmt: skip


def _latency(facts: Facts) -> Finding:
    took, connect = facts.round_trip, f"connect {seconds(facts.connect)}"
    what = f"{seconds(took)} for a round trip (median of {len(facts.round_trips)}), {connect}"
    if took < SLOW:
        return Finding("ok", "latency", what)
    return Finding(
        "warning" if took >= FAR else "info", "latency", what,
        f"each statement costs at least that, a transaction of one statement three times: {seconds(3 * took)} of lease",
        "the service nearer to its database, or fewer statements for each request",
    )  # fmt: skip


def _pooler(facts: Facts, config: PoolConfig) -> Iterator[Finding]:
    if not facts.pooler:
        if config.pgbouncer:
            yield Finding(
                "warning", "PgBouncer", "pgbouncer=True, but the server answers itself",
                "its time-outs are kept by this side only, and statements are refused that would work",
                "pgbouncer=False",
            )  # fmt: skip
        return
    if config.pgbouncer:
        yield Finding("ok", "PgBouncer", "in between, and pgbouncer=True says so")
        return
    why = (
        "it refuses what the pool asks for when a connection starts: the service would not start"
        if facts.refuses_options
        else "in transaction mode a session is another client's after each transaction; in session mode it is well"
    )
    yield Finding(
        "error" if facts.refuses_options else "warning", "PgBouncer", "in between (or another pooler)", why,
        "pgbouncer=True",
    )  # fmt: skip


def _connections(facts: Facts, config: PoolConfig, processes: int) -> Finding:
    limits, most = facts.limits, most_for(facts, config, processes)
    reserved = limits.superuser_reserved + limits.reserved
    left = max(0, limits.max_connections - reserved - facts.sessions)
    what = f"{limits.max_connections} in all, {reserved} reserved, {facts.sessions} in use, {left} left"
    change = f"maxsize={most}, or fewer processes, or PgBouncer" if most else "fewer processes, or PgBouncer"
    if not facts.pooler and (
        said := overdrawn(limits, processes=processes, maxsize=config.maxsize, budget=config.budget)
    ):
        return Finding("warning", "connections", what, said.partition(". ")[0], change)
    if left < (1 - NEARLY_FULL) * limits.max_connections:
        return Finding(
            "warning", "connections", what, "nearly all are taken: the next process may find none",
            "close what is not needed (SELECT application_name, count(*) FROM pg_stat_activity GROUP BY 1)",
        )  # fmt: skip
    return Finding("ok", "connections", what)


def _timeouts(facts: Facts, config: PoolConfig) -> Iterator[Finding]:
    for name, ours in TIMEOUTS.items():
        own = facts.without[name]
        limit = _number(own.value)
        said = f"{seconds(limit)} by itself ({_who(own)})" if limit else "none by itself"
        if config.pgbouncer or facts.pooler:
            yield _pooled_timeout(name, said, limit, facts)
        else:
            yield _timeout(name, ours, said, limit, facts, config)
    waits = _number(facts.with_ours["lock_timeout"].value)
    said = seconds(waits) if waits else "none: who waits for a lock waits until statement_timeout"
    yield Finding("ok", "lock_timeout", said)
    whole = facts.with_ours.get("transaction_timeout")
    if whole is not None and _number(whole.value):
        yield Finding("ok", "transaction_timeout", f"{seconds(_number(whole.value))} ({_who(whole)})")
    idle = facts.with_ours.get("idle_session_timeout")
    limit = _number(idle.value) if idle is not None else 0.0
    if idle is not None and limit and (config.keepalive is None or limit <= config.keepalive):
        yield Finding(
            "warning", "idle_session_timeout", f"{seconds(limit)} ({_who(idle)})",
            "the server closes idle connections before the pool pings them: each has to be opened again",
            f"keepalive={limit / 2:g}",
        )  # fmt: skip


def _pooled_timeout(name: str, said: str, limit: float, facts: Facts) -> Finding:
    if limit:
        return Finding("ok", name, said)
    if name == "statement_timeout":
        return Finding("ok", name, f"{said}: kept by the pool's side")
    return Finding(
        "info", name, said, "through PgBouncer the pool cannot set it: a transaction may idle for ever",
        f"ALTER ROLE {facts.user} SET {name} = '60s'",
    )  # fmt: skip


def _timeout(  # noqa: PLR0917 - one thing, six sides
    name: str, ours: str, said: str, limit: float, facts: Facts, config: PoolConfig
) -> Finding:
    wanted: float | None = getattr(config, ours)
    got = _number(facts.with_ours[name].value)
    if wanted is None:
        if limit:
            return Finding("ok", name, said)
        return Finding("warning", name, "none at all", f"{ours}=None, and the server has none either", f"{ours}=30")
    if abs(got - wanted) >= MILLISECOND:
        return Finding(
            "warning", name, f"{seconds(got) if got else 'none'}, not the {seconds(wanted)} that the pool asks for",
            "something in between, or options=, drops or overrides it", "connect without what is in between",
        )  # fmt: skip
    if limit and limit < wanted:
        return Finding(
            "warning", name, f"{seconds(wanted)} by the pool, {said}",
            "whoever set the shorter one for the server is overridden", f"{ours}={limit:g}",
        )  # fmt: skip
    return Finding("ok", name, f"{seconds(wanted)} by the pool, {said}")


def _abandoned(facts: Facts, config: PoolConfig) -> Finding:
    name = "client_connection_check_interval"
    got = facts.with_ours.get(name)
    interval = _number(got.value) if got else 0.0
    if interval:
        return Finding("ok", "abandoned statements", f"end within {seconds(interval)} and a moment ({name})")
    why = "the statement of a process that was killed runs to its end, with its locks"
    if config.pgbouncer or facts.pooler:
        change = f"ALTER ROLE {facts.user} SET {name} = '1s'"
    elif config.abandon_interval is None:
        change = "abandon_interval=1"
    else:
        change = "PostgreSQL 14 or newer, on Linux, macOS or a BSD"
    return Finding("warning" if not facts.pooler else "info", "abandoned statements", "run on", why, change)


def _network(facts: Facts, config: PoolConfig) -> Iterator[Finding]:
    if facts.local:
        return
    server = facts.with_ours["tcp_keepalives_idle"].value
    what = f"server probes after {_number(server):g} s, the pool pings idle connections after " + (
        f"{config.keepalive:g} s" if config.keepalive is not None else "no time at all"
    )
    if config.keepalive is None and "keepalives_idle" not in config.params:
        yield Finding(
            "warning", "keepalive", what, "a firewall may forget idle connections, and nobody would notice",
            "keepalive=120",
        )  # fmt: skip
    else:
        yield Finding("ok", "keepalive", what)
    if "tcp_user_timeout" not in config.params:
        waits = "statement_timeout and a second" if config.statement_timeout is not None else "ever"
        yield Finding(
            "info", "silent network", "tcp_user_timeout is not set",
            f"a statement sent into a network that has gone silent is waited for for {waits}",
            "tcp_user_timeout=10000",
        )  # fmt: skip


def _habits(facts: Facts) -> Iterator[Finding]:
    if facts.superuser:
        yield Finding(
            "info", "user", f"{facts.user} is a superuser", "a service that is broken into owns the whole server",
            "a role of its own: CREATE ROLE app LOGIN; GRANT what it needs",
        )  # fmt: skip
    if facts.encoding != "UTF8":
        yield Finding(
            "warning", "encoding", f"the database's is {facts.encoding}", "characters it does not have are an error",
            "a database with ENCODING 'UTF8'",
        )  # fmt: skip
    client = str(facts.with_ours["client_encoding"].value)
    if client not in ("UTF8", facts.encoding):
        yield Finding("warning", "encoding", f"the client's is {client}", "text is changed on its way", "UTF8")
    zone = str(facts.with_ours["TimeZone"].value)
    if zone not in ("UTC", "Etc/UTC", "GMT", "Etc/GMT"):
        yield Finding(
            "info", "time zone", zone, "casts between date, timestamp and timestamptz depend on it",
            f"ALTER ROLE {facts.user} SET timezone = 'UTC', if nobody counts on it",
        )  # fmt: skip
    if facts.stuck:
        yield Finding(
            "warning", "stuck transactions", f"{facts.stuck} on this server, for more than a minute",
            "they hold their locks, and keep VACUUM from its work",
            "SELECT pid, application_name, query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'",
        )  # fmt: skip


def _who(setting: Setting) -> str:
    return SOURCES.get(setting.source, setting.source)


def _number(value: str | float) -> float:
    return float(value)
