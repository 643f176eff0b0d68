"""Statement: its text, and what is added to it."""

from __future__ import annotations

from typing import Any

import psycopg2.sql

__all__ = ("text_of", "with_comment")


def text_of(sql: Any, raw: Any) -> str:
    """The text of a statement that is no str: bytes, many in one, or composed."""
    if (text := getattr(sql, "statement", None)) is not None:
        sql = text
    if isinstance(sql, psycopg2.sql.Composable):
        sql = sql.as_string(raw)
    return sql.decode("latin-1") if isinstance(sql, bytes) else str(sql)


def with_comment(sql: Any, comment: str, params: Any) -> Any:
    """A statement with a comment at its end."""
    if params is not None:
        comment = comment.replace("%", "%%")  # else psycopg2 would take it for a parameter
    if isinstance(sql, bytes):
        return sql + comment.encode()
    return sql + (comment if isinstance(sql, str) else psycopg2.sql.SQL(comment))
