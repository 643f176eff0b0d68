"""The command `doctor`: what a careful engineer would check of a server, an application and a load, on one screen."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.capacity.sizing import Demand, Plan, plan, seconds
from aiohttp_poolscope.cli.terminal import console, show
from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.driver import DatabaseError
from aiohttp_poolscope.errors import PoolScopeError

from .app import AppError, Found, judge_app, load
from .finding import Finding, as_lines, grave
from .hosts import Looked, fitting, survey
from .judge import judge, most_for, suggested
from .judge_hosts import judge_hosts
from .plan import add_load, as_dict, demanded, given, plan_lines
from .server import Facts, examine, idle_lost, through_pooler

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from aiohttp_poolscope.capacity.limits import Limits

__all__ = ("add_arguments", "run")

WELL, NOT_WELL, CANNOT_TELL = 0, 1, 2


@dataclass
class Report:
    """All that is known at the end."""

    app: list[Finding] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    limits: Limits | None = None
    plan: Plan | None = None

    @property
    def status(self) -> int:
        """The exit code."""
        findings = [*self.app, *(finding for server in self.servers for finding in server.findings)]
        return NOT_WELL if grave(findings) or (self.plan is not None and not self.plan.fits) else WELL


@dataclass
class Server:
    """One server, seen by one scope."""

    scope: str | None
    config: PoolConfig
    processes: int
    facts: Facts
    hosts: list[Looked]
    findings: list[Finding]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    server = parser.add_mutually_exclusive_group()
    server.add_argument(
        "dsn", nargs="?", metavar="DSN", help="the server to look at; not given: --app's, or DATABASE_URL"
    )
    server.add_argument(
        "--max-connections", type=int, metavar="N", help="what a server has that is not to be asked; needs a load"
    )
    parser.add_argument(
        "--app", metavar="MODULE:NAME", help="an Application or AppRunner, or a function that makes one"
    )
    for name, kind, metavar, default, text in (
        ("--hosts", int, "N", 1, "hosts (%(default)s)"),
        ("--processes", int, "N", None, "processes on each host (the scope's own setting, or 1)"),
        ("--budget", float, "SHARE", None, "the part of the server's connections to use (the scope's own, or 0.8)"),
        ("--idle", float, "SECONDS", None, "hold a connection idle for so long, and see if it survives"),
        ("--graceful-timeout", float, "SECONDS", 30.0, "gunicorn's, for --app (%(default)s)"),
        ("--shutdown-timeout", float, "SECONDS", None, "aiohttp's, for --app (the runner's own, or 60)"),
    ):
        parser.add_argument(name, type=kind, metavar=metavar, default=default, help=text)
    add_load(parser)
    parser.add_argument("--pgbouncer", action="store_true", help="there is a PgBouncer before each server")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.epilog = (
        "Exit codes: 0 nothing above info (and the load fits); 1 there are warnings or errors (or it does not fit); "
        "2 could not tell: wrong options, no connection, an application that cannot be loaded."
    )


def run(args: argparse.Namespace) -> int:
    """Print what was found: 0 if nothing is above info, 1 if something is, 2 if that cannot be said."""
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
    try:
        report = _examined(args)
    except KeyboardInterrupt:
        print("\ndoctor: interrupted", file=sys.stderr)
        return CANNOT_TELL
    except (ValueError, OverflowError, AppError, PoolScopeError, DatabaseError, OSError) as error:
        print(f"doctor: {str(error).strip() or repr(error)}", file=sys.stderr)
        return CANNOT_TELL
    if args.json:
        print(json.dumps(_as_dict(report), indent=1))
    else:
        show(_as_lines(report), console())
    return report.status


def _examined(args: argparse.Namespace) -> Report:
    demand = demanded(args)
    _check_numbers(args)
    report = Report()
    if args.max_connections is not None:
        if demand is None:
            raise ValueError("--max-connections is for a load: give --rate, --lease as well, or a DSN to look at")
        report.limits = given(args.max_connections)
    found = load(args.app) if args.app else None
    if found is not None:
        report.app = judge_app(found, graceful_timeout=args.graceful_timeout, shutdown_timeout=args.shutdown_timeout)
    for key, config in _configs(args, found):
        report.servers.append(asyncio.run(_look(key, config, args)))
    if report.servers:
        report.limits = report.servers[0].facts.limits
    if demand is not None and report.limits is not None:
        report.plan = plan(_as_seen(demand, report, args), report.limits)
    return report


def _check_numbers(args: argparse.Namespace) -> None:
    for name, least in (("hosts", 1), ("processes", 1), ("idle", 0), ("graceful_timeout", 0), ("shutdown_timeout", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be a number of at least {least}, not {value!r}")
    if args.budget is not None and not 0 < args.budget <= 1:
        raise ValueError(f"--budget must be a share above 0, 1 at most, not {args.budget!r}")


def _configs(args: argparse.Namespace, found: Found | None) -> Iterator[tuple[str | None, PoolConfig]]:
    """Each server to look at: by which scope, with which settings."""
    if args.max_connections is not None:
        return
    dsn = args.dsn
    if dsn is None and found is not None:
        for scope in found.scopes:
            yield scope.config.key, scope.config
        return
    dsn = dsn or os.environ.get("DATABASE_URL")
    if not dsn:
        raise ValueError("what to look at? Give a DSN, --app, or --max-connections with a load; or set DATABASE_URL")
    yield None, PoolConfig.build(dsn, **({"pgbouncer": True} if args.pgbouncer else {}))


async def _look(key: str | None, config: PoolConfig, args: argparse.Namespace) -> Server:
    if args.budget is not None:
        config = dataclasses.replace(config, budget=args.budget)
    config = dataclasses.replace(config, processes=(args.processes or config.processes) * args.hosts)
    hosts = await survey(config) if len(config.hosts) > 1 else []
    # Where no host has the wanted role, another one is better than none: what else is wrong is told as well.
    looking = config if not hosts or fitting(hosts, config.target) else dataclasses.replace(config, target="any")
    facts = await examine(looking)
    findings = [
        *judge_hosts(hosts, config, config.processes, facts.limits),
        *judge(facts, config, config.processes),
    ]
    if args.idle is not None:
        findings.append(await _idled(looking, facts, args.idle))
    return Server(key, config, config.processes, facts, hosts, findings)


async def _idled(config: PoolConfig, facts: Facts, pause: float) -> Finding:
    if facts.pooler:
        config = through_pooler(config)
    if sys.stderr.isatty():
        print(f"Holding a connection idle for {seconds(pause)}...", file=sys.stderr)
    lost = await idle_lost(config, pause)
    if lost is None:
        return Finding("ok", "idle connection", f"alive after {seconds(pause)}")
    if config.keepalive is not None and config.keepalive < pause:
        why = f"the pool pings after {config.keepalive:g} s: that is enough only if it was lost later than that"
    else:
        why = "something on the way (a firewall, a proxy, idle_session_timeout) forgets idle connections"
    return Finding(
        "warning", "idle connection", f"lost within {seconds(pause)}: {lost}", why, f"keepalive={pause / 2:g}"
    )


def _as_seen(demand: Demand, report: Report, args: argparse.Namespace) -> Demand:
    """The load, with what the scope and the server say themselves where no option does."""
    if report.servers and args.processes is None:
        demand = dataclasses.replace(demand, processes=report.servers[0].processes // args.hosts)
    pooled = any(server.config.pgbouncer or server.facts.pooler for server in report.servers)
    return dataclasses.replace(demand, pgbouncer=demand.pgbouncer or pooled)


def _as_lines(report: Report) -> Iterator[str]:
    if report.app:
        yield "Application"
        yield ""
        yield from as_lines(report.app)
        yield ""
    for server in report.servers:
        facts = server.facts
        scope = f"{server.scope!r}: " if server.scope is not None else ""
        yield f"{scope}{facts.user} at {facts.host or 'the local socket'}:{facts.port}/{facts.database}"
        yield ""
        yield from as_lines(server.findings)
        if report.plan is None:  # which says more of it
            yield ""
            yield _size(server)
    if report.plan is not None and report.limits is not None:
        if report.servers:
            yield ""
        yield from plan_lines(report.limits, report.plan)
    elif report.app or report.servers:
        yield ""
        yield "All is well." if report.status == WELL else "There is something to do: see the warnings and errors."


def _size(server: Server) -> str:
    fits = suggested(server.facts, server.config, server.processes)
    most = most_for(server.facts, server.config, server.processes)
    many = "1 process" if server.processes == 1 else f"each of {server.processes} processes"
    share = f"{server.config.budget:.0%} of {server.facts.limits.available} connections"
    return f"maxsize={fits} in {many}; {most} at most, which is {share}."


def _as_dict(report: Report) -> dict[str, Any]:
    said: dict[str, Any] = {
        "status": report.status,
        "app": [dataclasses.asdict(finding) for finding in report.app],
        "servers": [
            {
                "scope": server.scope,
                "processes": server.processes,
                "maxsize": {
                    "suggested": suggested(server.facts, server.config, server.processes),
                    "at_most": most_for(server.facts, server.config, server.processes),
                },
                "facts": {**dataclasses.asdict(server.facts), "round_trip": server.facts.round_trip},
                "hosts": [dataclasses.asdict(looked) for looked in server.hosts],
                "findings": [dataclasses.asdict(finding) for finding in server.findings],
            }
            for server in report.servers
        ],
    }
    if report.limits is not None:
        said["limits"] = dataclasses.asdict(report.limits)
    if report.plan is not None:
        said |= as_dict(report.plan)
    return said
