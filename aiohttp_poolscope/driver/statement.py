"""What there may be about one statement: something before it, a comment in it, an observer of how it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import psycopg2.sql

if TYPE_CHECKING:
    from .errors import DatabaseError
    from .link import Link

__all__ = ("BeforeStatement", "StatementObserver", "with_comment")

BeforeStatement = Callable[["Link", object, float | None], Awaitable[float | None]]
"""Awaited with a link, a statement and its time limit before it is sent. Returns the limit that is left."""


class StatementObserver(Protocol):
    """Told of statements that went wrong, or took long."""

    def failed(self, link: Link, sql: object, duration: float, error: DatabaseError) -> None:
        """A statement raised ``error``."""

    def slow(self, link: Link, sql: object, duration: float) -> None:
        """A statement took longer than ``slow_after`` seconds."""


def with_comment(sql: Any, comment: str, params: Any) -> Any:
    """A statement with a comment at its end."""
    if params is not None:
        comment = comment.replace("%", "%%")  # else psycopg2 would take it for a parameter
    if isinstance(sql, bytes):
        return sql + comment.encode()
    return sql + (comment if isinstance(sql, str) else psycopg2.sql.SQL(comment))
