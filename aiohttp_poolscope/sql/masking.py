"""Masking: a statement's text for people, without the values in it."""

from __future__ import annotations

import re
from typing import Final

__all__ = ("LONGEST", "shown")

LONGEST: Final = 2000
"""Characters of a statement that are shown."""

HIDDEN: Final = re.compile(
    r"""
      '(?>(?:[^'\\]|'')*)'(?!\s*')            # a literal without any backslash
    | '.*                                     # one that may end anywhere: all that follows it
    | "(?>(?:[^"]|"")*)"
    | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*+)?)\$.*?(?:\$(?P=tag)\$|\Z)
    | --[^\n]*+
    | /\*(?>(?:[^*/]|\*(?!/)|/(?!\*))*)\*/  # a comment without another one in it
    | /\*.*
    | (?<![\w$])(?:\d|\.\d)(?>(?:[\w.]|(?<=[eE])[+-](?=\d))*)
    """,
    re.VERBOSE | re.DOTALL,
)
"""Literals, quoted names, comments and numbers. Where PostgreSQL may see the end elsewhere, the rest is hidden."""


def shown(sql: object) -> str:
    """A statement's text for people: literals are ``?``, comments are left out, and after a while it ends.

    Only a str is shown; psycopg2's composed statements may hold values anywhere.
    """
    text = getattr(sql, "statement", sql)
    if not isinstance(text, str):
        return f"<{type(sql).__name__}>"
    return " ".join(HIDDEN.sub(_masked, text[:LONGEST]).split()) + ("..." if len(text) > LONGEST else "")


def _masked(found: re.Match[str]) -> str:
    quoted = found[0]
    if quoted.startswith('"'):
        return quoted
    return " " if quoted.startswith(("--", "/*")) else "?"
