"""What the doctor makes of several hosts: is there one for the pool, and another when that one goes? Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope.capacity.limits import overdrawn
from aiohttp_poolscope.capacity.sizing import seconds

from .finding import Finding
from .hosts import ROLES, fitting, primaries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiohttp_poolscope.capacity.limits import Limits
    from aiohttp_poolscope.config import PoolConfig

    from .hosts import Answer, Looked

__all__ = ("judge_hosts",)

MEGABYTE = 1_000_000


def judge_hosts(hosts: Sequence[Looked], config: PoolConfig, processes: int, known: Limits) -> list[Finding]:
    """Every finding about the hosts of a pool with these settings in so many processes; none where it has only one.

    ``known`` are the limits of the one that is used, which are judged with it.
    """
    if not hosts:
        return []
    return [
        *(_host(each, config) for each in hosts),
        *_reserve(hosts, config),
        *_target(hosts, config),
        *_together(hosts),
        *_room(hosts, config, processes, known),
    ]


def _host(looked: Looked, config: PoolConfig) -> Finding:
    answer = looked.answer
    if answer is None:
        return Finding(
            "warning", "host", f"{looked.name} does not answer: {looked.problem}",
            f"a connect that comes to it takes up to {config.connect_timeout:g} s longer, until the next one is asked",
            "start it, open the way to it, or take it out of the DSN",
        )  # fmt: skip
    what = f"{looked.name}: {answer.role}, {seconds(answer.round_trip)} for a round trip"
    what += f", connect {seconds(answer.connect)}"
    if answer.level_after is not None:
        return Finding("ok", "host", f"{what}, level with its primary")
    if answer.behind:
        return _behind(what, answer)
    return Finding("ok", "host", what)


def _behind(what: str, answer: Answer) -> Finding:
    why = "what was committed is not read there for as long, and lost if it is promoted now"
    if answer.receiving:
        why = "what was committed is not read there for as long; a promotion takes as much longer"
    change = "pg_stat_replication on the primary, pg_stat_wal_receiver and pg_is_wal_replay_paused() on the standby"
    lag = f"{(answer.behind or 0) / MEGABYTE:.3g} MB behind"
    follows = "receiving" if answer.receiving else "not receiving"
    return Finding("warning", "host", f"{what}, {lag} after 1 s ({follows})", why, change)


def _reserve(hosts: Sequence[Looked], config: PoolConfig) -> Iterator[Finding]:
    """Whether there is another one when the one in use goes."""
    there = {each.answer.identity for each in hosts if each.answer is not None}
    names = len({each.name for each in hosts})
    if len(there) == 1:
        answering = sum(each.answer is not None for each in hosts)
        what = "all names are of one server" if answering == names else f"one of {names} answers"
        yield Finding("warning", "hosts", what, "when it goes there is no other", "a second server that answers")
    elif sum(each.answer is not None for each in hosts) > len(there):
        yield Finding(
            "info", "hosts", "one server has several names", "it is asked more than once when others do not answer",
            "one name for each in the DSN",
        )  # fmt: skip
    elif config.target == "standby" and len(fitting(hosts, "standby")) == 1:
        yield Finding("info", "hosts", "one standby", "target='standby': when it goes there is no other")


def _target(hosts: Sequence[Looked], config: PoolConfig) -> Iterator[Finding]:
    """Whether there is a host of the wanted role, and whether the role that is needed is wanted."""
    if not fitting(hosts, config.target):
        yield Finding(
            "error", "target", f"no host is a {config.target}, and target={config.target!r} takes nothing else",
            "the service would not start, and one that runs answers 503", _for_none(config.target),
        )  # fmt: skip
        return
    standbys = fitting(hosts, "standby")
    if config.target == "prefer-standby" and not standbys:
        yield Finding(
            "warning", "target", "no host is a standby", "target='prefer-standby': every read goes to the primary",
            "a standby that answers, among the hosts",
        )  # fmt: skip
    if config.target != "any" or config.readonly:
        return
    if not primaries(hosts):
        yield Finding("error", "target", "no host is a primary", "every write will fail", _for_none("primary"))
    elif standbys:
        yield Finding(
            "warning", "target", f"{', '.join(each.name for each in standbys)} may be taken as well",
            "target='any' takes the first that answers: at a standby every write fails", "target='primary'",
        )  # fmt: skip


def _for_none(target: str) -> str:
    if ROLES.get(target):
        return "a standby among the hosts, or target='prefer-standby'"
    return "the primary among the hosts, or a promotion (SELECT pg_promote() on a standby)"


def _together(hosts: Sequence[Looked]) -> Iterator[Finding]:
    """Whether they belong together: one primary, and its standbys."""
    answers = [each.answer for each in hosts if each.answer is not None]
    leaders = primaries(hosts)
    if len({answer.cluster for answer in answers}) > 1:
        yield Finding(
            "error", "one database", "the hosts are not copies of one another (their system identifiers differ)",
            "after a failover the service would read and write other data", "the hosts of one primary and its standbys",
        )  # fmt: skip
    elif len(leaders) > 1:
        yield Finding(
            "error", "one database", f"{len(leaders)} of the hosts are primaries, copied from one another",
            "each takes writes that the other never sees", "stop the one that was replaced; pg_rewind lets it follow",
        )  # fmt: skip
    if len(majors := sorted({answer.major for answer in answers})) > 1:
        yield Finding(
            "warning", "versions", f"PostgreSQL {' and '.join(map(str, majors))}", "these do not stream to one another",
            "one major version",
        )  # fmt: skip


def _room(hosts: Sequence[Looked], config: PoolConfig, processes: int, known: Limits) -> Iterator[Finding]:
    """Whether every host that may be taken one day has room for the pools, not only today's."""
    for each in hosts:
        if each.answer is None or config.pgbouncer or each.answer.limits.available >= known.available:
            continue
        limits = each.answer.limits
        if said := overdrawn(limits, processes=processes, maxsize=config.maxsize, budget=config.budget):
            most = int(limits.available * config.budget) // processes
            change = f"maxsize={most}, or a larger max_connections there" if most else "a larger max_connections there"
            yield Finding("warning", "room", f"{each.name} has {limits.available}", said.partition(". ")[0], change)
