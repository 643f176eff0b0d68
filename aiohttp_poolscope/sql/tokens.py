"""Tokens: a statement's text as PostgreSQL's scanner divides it, as far as words, brackets and ends go.

Literals, quoted names, dollar quotes and comments mislead nobody. A plain literal is read as with
``standard_conforming_strings``, the default since PostgreSQL 9.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("LITERAL", "QUOTED", "statements", "tokens")

LITERAL: Final = "'"
"""Stands for any literal."""

QUOTED: Final = '"'
"""Stands for any quoted name."""

SCAN: Final = re.compile(
    r"""
      \s++ | --[^\n\r]*+
    | (?P<comment>  /\*)
    | (?P<literal>  [eE]'(?>(?:[^'\\]++|\\.|'')*)(?:'|\Z)  |  (?:[bBxXnN]|[uU]&)?'(?>(?:[^']++|'')*)(?:'|\Z))
    | (?P<quoted>   (?:[uU]&)?"(?>(?:[^"]++|"")*)(?:"|\Z))
    | (?P<dollar>   \$(?:[^\W\d]\w*+)?\$)
    | (?P<word>     [^\W\d][\w$]*+)
    | (?P<number>   \d[\w.]*+)
    | (?P<mark>     .)
    """,
    re.VERBOSE | re.DOTALL,
)

COMMENT_MARK: Final = re.compile(r"/\*|\*/")


def tokens(text: str) -> Iterator[str]:
    """Words in capitals, LITERAL, QUOTED, and other characters one by one; no comments, no white space, no numbers."""
    at = 0
    while found := SCAN.match(text, at):
        at = found.end()
        match found.lastgroup:
            case "word":
                yield found[0].upper()
            case "mark":
                yield found[0]
            case "literal":
                yield LITERAL
            case "quoted":
                yield QUOTED
            case "dollar":
                closing = text.find(found[0], at)
                at = len(text) if closing < 0 else closing + len(found[0])
                yield LITERAL
            case "comment":
                at = _end_of_comment(text, at)


def statements(text: str) -> list[list[str]]:
    """The tokens of each statement in a text; empty ones are left out."""
    found: list[list[str]] = [[]]
    for token in tokens(text):
        if token == ";":
            found.append([])
        else:
            found[-1].append(token)
    return [each for each in found if each]


def _end_of_comment(text: str, at: int) -> int:
    """Where a comment ends whose ``/*`` ends at ``at``. PostgreSQL's comments nest."""
    depth = 1
    while depth and (mark := COMMENT_MARK.search(text, at)):
        depth += 1 if mark[0] == "/*" else -1
        at = mark.end()
    return len(text) if depth else at
