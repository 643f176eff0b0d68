"""Holders: the leases of a pool, and their description. Made only when somebody asks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.request import path_of, request_id, route_of
from aiohttp_poolscope.stats import Lease

if TYPE_CHECKING:
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.gate import Gate, Slot

__all__ = ("describe", "holders", "leases", "whose")


def holders(gate: Gate[OpenConnection]) -> list[tuple[Slot[OpenConnection], ScopedConnection]]:
    """The leases there are: each slot that is lent, with its holder."""
    return [(slot, slot.holder) for slot in tuple(gate.slots) if isinstance(slot.holder, ScopedConnection)]


def leases(gate: Gate[OpenConnection], now: float) -> tuple[Lease, ...]:
    """The leases there are, in words, the longest first."""
    found = [describe(db, now - slot.since) for slot, db in holders(gate)]
    return tuple(sorted(found, key=lambda lease: -lease.held))


def whose(db: ScopedConnection) -> dict[str, str | None]:
    """The request that a connection is, or was to be, lent for; nothing but None outside of requests."""
    request = db.client
    return {
        "method": db.method,
        "path": None if request is None else path_of(request),
        "route": route_of(db.route),
        "request_id": None if request is None else request_id(request),
    }


def describe(db: ScopedConnection, held: float) -> Lease:
    """The lease of ``db``, which it has had for ``held`` seconds."""
    return Lease(
        **whose(db),
        task=None if db.task is None else db.task.get_name(),
        held=held,
        where=_where(db),
        stack=_stack(db) if db._lender.stacks else None,
    )


def _where(db: ScopedConnection) -> str | None:
    """The line that borrowed; the handler itself if the middleware did it."""
    if db.where is not None:
        return _line(*db.where[0])
    handler = getattr(db.route, "handler", None)
    if handler is None:
        return None
    while isinstance(handler, functools.partial):
        handler = handler.func
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__  # not its repr: that is user's code
    code = getattr(handler, "__code__", None)
    return name if code is None else f"{code.co_filename}:{code.co_firstlineno} in {name}"


def _stack(db: ScopedConnection) -> tuple[str, ...]:
    """What led to the borrow, outermost first; where the handler stands now if the middleware borrowed for it."""
    if db.where is not None:
        return tuple(_line(code, line) for code, line in reversed(db.where))
    lines = []
    awaited: Any = None if db.task is None else db.task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        lines.append(_line(frame.f_code, frame.f_lineno))
        awaited = awaited.cr_await
    return tuple(lines)


def _line(code: Any, number: int) -> str:
    return f"{code.co_filename}:{number} in {code.co_qualname}"
