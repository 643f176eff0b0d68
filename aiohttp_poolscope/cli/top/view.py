"""What `top` shows: one look at a page or a server, as lines and as JSON."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp_poolscope.capacity.sizing import seconds
from aiohttp_poolscope.cli.terminal import columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ("PageView", "ServerView", "Source", "View")

LONGEST = 10
"""Holders that are shown: those who hold for the longest."""

STATEMENT = 60
"""Characters of a statement that are shown."""


class View(Protocol):
    """One look."""

    def lines(self) -> Iterator[str]:
        """To be read."""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""


class Source(Protocol):
    """Where to look."""

    async def look(self) -> View:
        """Look once. Raises an error that says what to do, where nothing has ever been seen."""


@dataclass(frozen=True, slots=True)
class PageView:
    """The workers behind a page, as far as they have answered lately."""

    url: str
    workers: Sequence[dict[str, Any]]
    problem: str | None = None
    at: float = field(default_factory=time.time)

    def lines(self) -> Iterator[str]:
        """A row for each pool of each worker, what is wrong with them, and who holds what."""
        expected = max((state["worker"].get("workers", 1) for state in self.workers), default=0)
        many = f"{len(self.workers)} of {max(expected, len(self.workers))} workers seen"
        yield f"{self.url}  {many}  {_clock(self.at)}"
        if self.problem is not None:
            yield f"error: {self.problem}"
        scopes = [(state["worker"]["pid"], scope) for state in self.workers for scope in state["scopes"]]
        if scopes:
            yield ""
            yield from columns([_HEAD, *(_row(pid, scope) for pid, scope in scopes)], "><<" + ">" * (len(_HEAD) - 3))
            yield ""
        for pid, scope in scopes:
            verdict = scope["verdict"]
            if verdict["level"] != "ok":
                said = f"{verdict['level']}: {scope['key']} of {pid}: {verdict['text'].rstrip('.')}."
                yield f"{said} {verdict['advice']}" if verdict.get("advice") else said
                yield ""
        yield from _holders(scopes)

    def as_dict(self) -> dict[str, Any]:
        """What the workers said, unchanged."""
        return {"source": "page", **dataclasses.asdict(self)}


@dataclass(frozen=True, slots=True)
class ServerView:
    """The sessions of a database: as groups of one application_name, and the longest of them one by one."""

    address: str
    groups: Sequence[dict[str, Any]]
    longest: Sequence[dict[str, Any]]
    problem: str | None = None
    at: float = field(default_factory=time.time)

    def lines(self) -> Iterator[str]:
        """A row for each application, and the sessions that have been at something for the longest."""
        yield f"{self.address}  {sum(group['backends'] for group in self.groups)} backends  {_clock(self.at)}"
        if self.problem is not None:
            yield f"error: {self.problem}"
        head = (
            "application_name",
            "user",
            "backends",
            "active",
            "idle",
            "idle in transaction",
            "waits for lock",
            "longest",
        )
        rows = [
            (group["application_name"], group["user"], *(str(group[name]) for name in _COUNTS), _took(group["longest"]))
            for group in self.groups
        ]
        yield ""
        yield from columns([head, *rows], "<<>>>>>>")
        if self.longest:
            yield ""
            found = [
                (
                    _took(each["seconds"]),
                    str(each["pid"]),
                    each["application_name"],
                    each["state"],
                    _cut(each["statement"]),
                )
                for each in self.longest
            ]
            yield from columns([("since", "backend", "application_name", "state", "statement"), *found], ">><<<")

    def as_dict(self) -> dict[str, Any]:
        """The same."""
        return {"source": "server", **dataclasses.asdict(self)}


_COUNTS = ("backends", "active", "idle", "idle_in_transaction", "waiting_for_lock")
_HEAD = ("worker", "pool", "state", "in use", "idle", "waiting", "/s", "errors/s", "wait p99", "lease p99")


def _row(pid: int, scope: dict[str, Any]) -> tuple[str, ...]:
    now, rates = scope["now"], scope["rates"]
    in_use = f"{now['in_use']}/{now['maxsize']}"
    errors = sum(value or 0 for value in rates["errors"].values())
    took = (_took(scope[what]["p99"]) for what in ("wait", "lease"))
    many = (in_use, f"{now['idle']}", f"{now['waiting']}", f"{rates['borrows'] or 0:.1f}", f"{errors:.1f}")
    return (f"{pid}", scope["key"], scope["state"], *many, *took)


def _holders(scopes: Sequence[tuple[int, dict[str, Any]]]) -> Iterator[str]:
    leases = [(lease["held"], pid, scope["key"], lease) for pid, scope in scopes for lease in scope["leases"]]
    leases.sort(key=lambda each: -each[0])
    if not leases:
        return
    rows = [("held", "worker", "pool", "request", "request id", "where")]
    for held, pid, key, lease in leases[:LONGEST]:
        request = f"{lease['method']} {lease['route']}" if lease["method"] else f"task {lease['task'] or '?'}"
        rows.append((_took(held), f"{pid}", key, request, lease["request_id"] or "-", lease["where"] or "-"))
    yield from columns(rows, ">><<<<")
    if len(leases) > LONGEST:
        yield f"  and {len(leases) - LONGEST} more"


def _took(value: float | None) -> str:
    return "-" if value is None else seconds(value)


def _cut(statement: str) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= STATEMENT else line[: STATEMENT - 3] + "..."


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
