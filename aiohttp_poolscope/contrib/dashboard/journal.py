"""Journal: what happened lately, in plain values, without secrets and in little memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aiohttp_poolscope import events as ev

__all__ = ("KEPT", "Journal")

KEPT: Final = 100
"""Entries."""

TOGETHER: Final = 10.0
"""Seconds within which the same thing, happening again, is the same entry."""

HEARD: Final = tuple(kind for kind in ev.KINDS if kind not in (ev.Acquired, ev.Released, ev.Waited))
"""All but what comes with every borrow: that would cost each request something, and is in the numbers."""

SAME: Final = ("method", "route", "reason", "fault", "sqlstate", "statement")
"""What makes two events the same, besides their kind."""

LATEST: Final = (
    "request_id", "duration", "waited", "held", "where", "unused", "attempt", "in_use", "served", "cancelled",
)  # fmt: skip
"""What is told of the last of them.

A list of what may be shown, not of what may not: ``path`` may hold ids and tokens, ``cause`` hosts and a driver's
words, ``error`` values. A field that is added one day is not shown until somebody has thought about it.
"""


@dataclass(slots=True, eq=False)
class Entry:
    """What happened ``count`` times: the last time at ``at`` (Unix time)."""

    shown: dict[str, Any]
    at: float
    monotonic: float
    count: int = 1


class Journal:
    """The last events of one scope. A thousand refusals a second are one entry that counts them."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._last: dict[tuple[Any, ...], Entry] = {}

    def write(self, event: ev.Event) -> None:
        """Note an event; called where it happens, between two steps of a request."""
        about = getattr(event, "lease", event)
        same = (event.kind, *(getattr(about, name, None) for name in SAME))
        shown = {name: value for name, value in zip(("kind", *SAME), same, strict=True) if value is not None}
        for name in LATEST:
            value = getattr(about, name, None)
            if value is not None:
                shown[name] = round(value, 4) if isinstance(value, float) else value
        if isinstance(event, ev.DrainFinished):
            shown["forced"] = len(event.forced)  # not who: that is said with the path of each request
        last = self._last.get(same)
        if last is not None and event.monotonic - last.monotonic < TOGETHER:
            last.shown, last.at, last.monotonic, last.count = shown, event.at, event.monotonic, last.count + 1
        else:
            self._add(same, Entry(shown, event.at, event.monotonic))

    def _add(self, same: tuple[Any, ...], entry: Entry) -> None:
        if len(self._entries) >= KEPT:
            oldest = min(self._entries.values(), key=lambda each: each.monotonic)
            del self._entries[id(oldest)]
            self._last = {key: each for key, each in self._last.items() if each is not oldest}
        self._entries[id(entry)] = self._last[same] = entry

    def entries(self) -> list[dict[str, Any]]:
        """The newest first."""
        newest = sorted(self._entries.values(), key=lambda each: -each.monotonic)
        return [{"at": round(each.at, 3), "count": each.count, **each.shown} for each in newest]
