"""The command `doctor`: what to set for a load, and whether the server has enough connections for it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
import sys
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aiohttp_poolscope.budget import LIMITS, Limits
from aiohttp_poolscope.driver import DatabaseError
from aiohttp_poolscope.errors import PoolScopeError
from aiohttp_poolscope.scope import PoolScope
from aiohttp_poolscope.sizing import Demand, Plan, plan

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ("add_arguments", "run")

FITS, DOES_NOT_FIT, CANNOT_TELL = 0, 1, 2
SUPERUSER_RESERVED = 3
"""PostgreSQL's default for superuser_reserved_connections, where no server is asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("dsn", nargs="?", metavar="DSN", help="the server to ask for its limits")
    server.add_argument("--max-connections", type=int, metavar="N", help="or what it has, when it is not to be asked")
    for name, kind, metavar, default, text in (
        ("--rate", float, "R", None, "requests per second that use a connection, on all hosts together"),
        ("--lease", float, "SECONDS", None, "how long one holds it, on average: lease.sum / lease.count of stats()"),
        ("--hosts", int, "N", 1, "hosts (%(default)s)"),
        ("--processes", int, "N", 1, "processes on each host (%(default)s)"),
        ("--reads", float, "SHARE", 0.0, "the share of the requests that replicas may serve (%(default)s)"),
        ("--replicas", int, "N", 0, "replicas (%(default)s)"),
        ("--cpu", float, "SECONDS", None, "processor time of a request, to check the number of processes"),
        ("--waiting", float, "SHARE", 0.01, "the share of the requests that may wait (%(default)s)"),
        ("--budget", float, "SHARE", 0.8, "the part of the server's connections to use (%(default)s)"),
    ):
        required = default is None and name != "--cpu"
        parser.add_argument(name, type=kind, metavar=metavar, default=default, required=required, help=text)
    parser.add_argument("--pgbouncer", action="store_true", help="there is a PgBouncer before each server")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print what to set: 0 if it fits, 1 if not, 2 if that cannot be said."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        demand = Demand(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Demand)})
        limits = _given(args.max_connections) if args.dsn is None else asyncio.run(_ask(args.dsn))
        found = plan(demand, limits)
    except (ValueError, OverflowError, PoolScopeError, DatabaseError, OSError) as error:
        print(f"doctor: {error}", file=sys.stderr)
        return CANNOT_TELL
    print(_as_json(limits, found) if args.json else "\n".join(_as_text(limits, found)))
    return FITS if found.fits else DOES_NOT_FIT


def _given(max_connections: int) -> Limits:
    if max_connections < 1:
        raise ValueError(f"--max-connections must be at least 1, not {max_connections}")
    return Limits(max_connections, SUPERUSER_RESERVED, reserved=0, role=-1, database=-1)


async def _ask(dsn: str) -> Limits:
    """What the server says of its limits, to the role and the database of the DSN."""
    scope = PoolScope(dsn, minsize=1, maxsize=1, processes=1, budget_strict=False, rows="tuple")
    async with contextlib.asynccontextmanager(scope.cleanup_ctx)(web.Application()):
        return Limits(*await scope.fetchrow(LIMITS))


def _as_text(limits: Limits, found: Plan) -> Iterator[str]:
    reserved = limits.superuser_reserved + limits.reserved
    of = f"max_connections {limits.max_connections}, {reserved} of them reserved, {limits.others} in use by others"
    yield f"The server has {limits.available} connections to give ({of})."
    yield ""
    names, values = ([getattr(each, of) for each in found.advice] for of in ("name", "value"))
    name_width, value_width = max(map(len, names)), max(map(len, values))
    for advice in found.advice:
        yield f"  {advice.name:{name_width}}  {advice.value:>{value_width}}  {advice.why}"
    yield ""
    for problem in found.problems:
        yield f"It does not fit: {problem}."
    if found.fits:
        yield "It fits."


def _as_json(limits: Limits, found: Plan) -> str:
    said = {"fits": found.fits, "limits": dataclasses.asdict(limits), **dataclasses.asdict(found)}
    return json.dumps(_finite(said), indent=1)


def _finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value
