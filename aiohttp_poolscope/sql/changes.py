"""Changes: whether a statement may leave something in its session. One look at each text, remembered.

What a function of one's own, or a view, does to the session cannot be seen here.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from .tokens import statements

__all__ = ("changes_session",)

REMEMBERED: Final = 1000
"""Texts whose look is remembered: more than a service has; built texts, with values in them, push one another out."""

LONGEST: Final = 10_000
"""Characters of a text beyond which it counts as a change, unseen: a batch of INSERTs can be very long."""

CHANGING: Final = frozenset("RESET LISTEN UNLISTEN PREPARE DEALLOCATE EXECUTE DISCARD LOAD DO CALL".split())
"""Beginnings of statements that may leave something, but for SET, CREATE, SELECT INTO and DECLARE."""

OF_TRANSACTION: Final = frozenset("LOCAL TRANSACTION CONSTRAINTS".split())
"""A SET of these ends with its transaction."""

CALLS: Final = frozenset(
    """
    PG_ADVISORY_LOCK PG_ADVISORY_LOCK_SHARED PG_TRY_ADVISORY_LOCK PG_TRY_ADVISORY_LOCK_SHARED SET_CONFIG SETSEED
    DBLINK_CONNECT
    """.split()
)
"""Functions that leave something in the session."""

TEMPORARY: Final = frozenset("TEMP TEMPORARY PG_TEMP".split())

IN_QUOTES: Final = re.compile(
    rf"""
    "(?:{"|".join(sorted(CALLS)).lower()})"\s*+\(
    | "pg_temp"\s*+\.
    """,
    re.VERBOSE,
)
"""The same as quoted names: callproc() writes each name so. Inside of a literal it counts as well."""


@functools.lru_cache(maxsize=REMEMBERED)
def changes_session(text: str) -> bool:
    """Whether a text may leave something in its session that the next lease would meet."""
    return len(text) > LONGEST or IN_QUOTES.search(text) is not None or any(map(_changes, statements(text)))


def _changes(statement: list[str]) -> bool:
    first, *rest = statement
    if first == "SET":
        # SET SESSION CHARACTERISTICS AS TRANSACTION is for the session.
        return not rest or rest[0] not in OF_TRANSACTION
    if first in CHANGING:
        return statement[:2] != ["PREPARE", "TRANSACTION"]
    if first == "DECLARE" and "HOLD" in rest:
        return True
    return not (CALLS.isdisjoint(rest) and TEMPORARY.isdisjoint(rest))
