"""Statement: its text, and what is added to it."""

from __future__ import annotations

from typing import Any

import psycopg2.sql

__all__ = ("text_of", "with_comment")


def text_of(sql: Any) -> str:
    """The text of a statement that is no str: bytes, many in one, or composed, with ``%s`` for each of its values.

    psycopg2 itself can put a composed one together on a living connection only.
    """
    if (text := getattr(sql, "statement", None)) is not None:
        sql = text
    if isinstance(sql, psycopg2.sql.Composed):
        return "".join(map(text_of, sql.seq))
    if isinstance(sql, psycopg2.sql.SQL):
        return str(sql.string)
    if isinstance(sql, psycopg2.sql.Identifier):
        return ".".join('"' + name.replace('"', '""') + '"' for name in sql.strings)
    if isinstance(sql, psycopg2.sql.Composable):
        return "%s"
    return sql.decode("latin-1") if isinstance(sql, bytes) else str(sql)


def with_comment(sql: Any, comment: str, params: Any) -> Any:
    """A statement with a comment at its end."""
    if params is not None:
        comment = comment.replace("%", "%%")  # else psycopg2 would take it for a parameter
    if isinstance(sql, bytes):
        return sql + comment.encode()
    return sql + (comment if isinstance(sql, str) else psycopg2.sql.SQL(comment))
