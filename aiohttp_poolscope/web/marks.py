"""Marks on handlers: functions, ``web.View`` classes and their methods. A method's mark goes before its class's."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from aiohttp_poolscope.connection import ISOLATIONS, Isolation

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Mark", "eager", "lazy", "mark_of", "no_connection", "replica", "transactional")

H = TypeVar("H")

ATTRIBUTE = "__poolscope__"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a handler wants; None: what the scope's settings say."""

    acquire: Literal["none", "lazy", "eager"] | None = None
    transaction: dict[str, Any] | None = None
    replica: bool = False


def no_connection(handler: H) -> H:
    """This handler gets no connection: ``request["db"]`` does not exist in it."""
    return _marked(handler, acquire="none")


def lazy(handler: H) -> H:
    """Borrow at the first use, not before the handler."""
    return _marked(handler, acquire="lazy")


def replica(handler: H) -> H:
    """This handler only reads, and may be served by the replica that ``scope.read_from()`` names."""
    return _marked(handler, replica=True)


def eager(handler: H) -> H:
    """Borrow before the handler, even while the request's body is still to come."""
    return _marked(handler, acquire="eager")


@overload
def transactional(handler: H, /) -> H: ...
@overload
def transactional(
    *, isolation: Isolation | None = None, readonly: bool = False, deferrable: bool = False
) -> Callable[[H], H]: ...
def transactional(
    handler: Any = None, /, *, isolation: Isolation | None = None, readonly: bool = False, deferrable: bool = False
) -> Any:
    """The whole request is one transaction.

    BEGIN before the handler; COMMIT when it returns, or raises, a response below 400 (a redirect is one); ROLLBACK
    for any other response and any exception. A response that the handler has sent itself is on its way already.
    """
    if isolation is not None and isolation not in ISOLATIONS:
        raise ValueError(f"transactional(isolation={isolation!r}): must be one of {', '.join(map(repr, ISOLATIONS))}")
    options = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}

    def mark(marked: H) -> H:
        return _marked(marked, transaction=options)

    return mark if handler is None else mark(handler)


def mark_of(handler: Any, method: str) -> Mark:
    """The mark of a route's handler for one HTTP method."""
    while not hasattr(handler, ATTRIBUTE) and isinstance(handler, functools.partial):
        handler = handler.func
    mark: Mark = getattr(handler, ATTRIBUTE, Mark())
    if isinstance(handler, type):
        of_method = getattr(getattr(handler, method.lower(), None), ATTRIBUTE, None)
        if of_method is not None:
            return Mark(
                of_method.acquire or mark.acquire,
                of_method.transaction or mark.transaction,
                of_method.replica or mark.replica,
            )
    return mark


def _marked(handler: H, **wants: Any) -> H:
    mark = replace(getattr(handler, ATTRIBUTE, Mark()), **wants)
    # A bound method takes no attributes, and its function is not this object's alone.
    marked: Any = functools.partial(handler) if inspect.ismethod(handler) else handler
    setattr(marked, ATTRIBUTE, mark)
    return cast("H", marked)
