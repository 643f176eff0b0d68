"""The doctor's calculator: what to set for a load, and whether it fits."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.capacity.limits import Limits
from aiohttp_poolscope.capacity.sizing import Demand
from aiohttp_poolscope.cli.terminal import columns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from aiohttp_poolscope.capacity.sizing import Plan

__all__ = ("add_load", "as_dict", "demanded", "given", "plan_lines")

SUPERUSER_RESERVED = 3
"""PostgreSQL's default for superuser_reserved_connections, where no server is asked."""


def add_load(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a load."""
    load = parser.add_argument_group("a load to plan for (both --rate and --lease)")
    for name, kind, metavar, default, text in (
        ("--rate", float, "R", None, "requests per second that use a connection, on all hosts together"),
        ("--lease", float, "SECONDS", None, "how long one holds it, on average: lease.sum / lease.count of stats()"),
        ("--reads", float, "SHARE", 0.0, "the share of the requests that replicas may serve (%(default)s)"),
        ("--replicas", int, "N", 0, "replicas (%(default)s)"),
        ("--cpu", float, "SECONDS", None, "processor time of a request, to check the number of processes"),
        ("--waiting", float, "SHARE", 0.01, "the share of the requests that may wait (%(default)s)"),
    ):
        load.add_argument(name, type=kind, metavar=metavar, default=default, help=text)


def demanded(args: argparse.Namespace) -> Demand | None:
    """The load, if one is given. Raises ValueError for half of one, and for what cannot be."""
    if args.rate is None and args.lease is None:
        return None
    if args.rate is None or args.lease is None:
        raise ValueError("a load is both --rate and --lease: give the other one, too")
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(Demand)}
    return Demand(**{name: value for name, value in values.items() if value is not None})


def given(max_connections: int) -> Limits:
    """The limits of a server that is not asked."""
    if max_connections < 1:
        raise ValueError(f"--max-connections must be at least 1, not {max_connections}")
    return Limits(max_connections, SUPERUSER_RESERVED, reserved=0, role=-1, database=-1)


def plan_lines(limits: Limits, found: Plan) -> Iterator[str]:
    """To be read."""
    reserved = limits.superuser_reserved + limits.reserved
    of = f"max_connections {limits.max_connections}, {reserved} of them reserved, {limits.others} in use by others"
    yield f"The server has {limits.available} connections to give ({of})."
    yield ""
    yield from columns([(each.name, each.value, each.why) for each in found.advice], "<><")
    yield ""
    for problem in found.problems:
        yield f"It does not fit: {problem}."
    if found.fits:
        yield "It fits."


def as_dict(found: Plan) -> dict[str, Any]:
    """For programs."""
    said: dict[str, Any] = _finite({"fits": found.fits, **dataclasses.asdict(found)})
    return said


def _finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value
