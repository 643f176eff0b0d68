"""Which statements begin and end transactions: those that ``poolscope_rollback`` must not send as they are."""

from __future__ import annotations

import enum
import re
from typing import Final

from aiohttp_poolscope.sql.session import QUOTED

__all__ = ("Kind", "controls", "divided")


class Kind(enum.Enum):
    """What a statement does to transactions."""

    NOTHING = "nothing"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    CHAIN = "commit or rollback, and begin"
    PREPARE = "prepare transaction"
    LEVEL = "set transaction"
    DISCARD = "discard all"


STARTS: Final = re.compile(
    r"""
    (?P<BEGIN>    BEGIN\b(?!\s+ATOMIC) | START\s+TRANSACTION\b )
    | (?P<PREPARE>  PREPARE\s+TRANSACTION\b )
    | (?P<CHAIN>    (?:COMMIT|END|ROLLBACK|ABORT)\b .* \bAND\s+CHAIN\b )
    | (?P<COMMIT>   (?:COMMIT|END)\b (?!\s+PREPARED\b) )
    | (?P<ROLLBACK> (?:ROLLBACK|ABORT)\b (?!(?:\s+(?:WORK|TRANSACTION))?\s+TO\b) (?!\s+PREPARED\b) )
    | (?P<LEVEL>    SET\s+TRANSACTION\b (?!\s+SNAPSHOT\b) )
    | (?P<DISCARD>  DISCARD\s+ALL\b )
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)

MAYBE: Final = re.compile(r"\b(?:BEGIN|START|PREPARE|COMMIT|END|ROLLBACK|ABORT|TRANSACTION|DISCARD)\b", re.IGNORECASE)
"""Without one of these words nothing needs a closer look."""

BODY: Final = re.compile(r"\bBEGIN\s+ATOMIC\b", re.IGNORECASE)
"""The body of a function, whose statements end in semicolons without being quoted."""


def divided(text: str) -> list[tuple[Kind, str]]:
    """The statements of ``text`` and what each does; the whole as one if none of them is about transactions.

    Of those that are, without their comments.
    """
    if not MAYBE.search(text):
        return [(Kind.NOTHING, text)]
    plain = QUOTED.sub(_blank, text)
    if BODY.search(plain):
        return [(Kind.NOTHING, text)]
    found, start = [], 0
    for end in [*(each.start() for each in re.finditer(";", plain)), len(text)]:
        if part := plain[start:end].strip():
            kind = _kind(part)
            found.append((kind, text[start:end] if kind is Kind.NOTHING else part))
        start = end + 1
    if all(kind is Kind.NOTHING for kind, _ in found):
        return [(Kind.NOTHING, text)]
    return found


def controls(text: str) -> bool:
    """Whether a statement is about transactions, or about savepoints."""
    return divided(text)[0][0] is not Kind.NOTHING or bool(
        re.match(r"\s*(?:SAVEPOINT|RELEASE|ROLLBACK)\b", text, re.IGNORECASE)
    )


def _kind(plain: str) -> Kind:
    match = STARTS.match(plain)
    return Kind.NOTHING if match is None else Kind[str(match.lastgroup)]


def _blank(quoted: re.Match[str]) -> str:
    # As long as before, so that places in it are places in the text.
    mark = " " if quoted[0].startswith(("--", "/*")) else "'"
    return mark * len(quoted[0])
