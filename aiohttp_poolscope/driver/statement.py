"""Statement: what is added to its text."""

from __future__ import annotations

from typing import Any

import psycopg2.sql

__all__ = ("with_comment",)


def with_comment(sql: Any, comment: str, params: Any) -> Any:
    """A statement with a comment at its end."""
    if params is not None:
        comment = comment.replace("%", "%%")  # else psycopg2 would take it for a parameter
    if isinstance(sql, bytes):
        return sql + comment.encode()
    return sql + (comment if isinstance(sql, str) else psycopg2.sql.SQL(comment))
