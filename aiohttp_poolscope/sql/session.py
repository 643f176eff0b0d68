"""Session: statements that leave something in their session, or count on what is there.

PgBouncer in transaction mode gives the session to another client after each transaction: what they leave reaches
somebody else, and what they count on is not there. A refusal must be right, so in doubt there is none: only the start
of a statement is looked at, and calls of a few functions outside of literals and comments.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ("needs_session",)

HEAD: Final = 10_000
"""Characters of a statement that are looked at: a batch of INSERTs can be very long."""

ORDINARY: Final = re.compile(r"\s*+(?:SELECT|INSERT|UPDATE|DELETE|WITH|BEGIN|COMMIT|ROLLBACK)\b", re.IGNORECASE)
"""How most statements start: this runs for each of them, and START takes three times as long."""

# PostgreSQL's comments nest; one level is enough here.
COMMENT = r"(?:--[^\n]*+|/\*(?>(?:[^*/]++|\*(?!/)|/(?!\*)|/\*(?>(?:[^*]++|\*(?!/))*)\*/)*)\*/)"
GAP = rf"(?>(?>\s++|{COMMENT})+)"

FOLLOWED = r"(?:TIME\s++ZONE|TimeZone|DateStyle|client_encoding|NAMES|standard_conforming_strings|application_name)\b"
"""Settings that PgBouncer keeps for each of its clients."""

OF_TRANSACTION = r"TRANSACTION(?:_(?:isolation|read_only|deferrable))?"

START: Final = re.compile(
    rf"""
    (?>(?>\s++|;|{COMMENT})*)
    (?:
        (?P<listen>   (?:UN)?LISTEN\b)
      | (?P<prepare>  PREPARE\b(?!{GAP}TRANSACTION\b) | EXECUTE\b | DEALLOCATE\b)
      | (?P<set>      SET{GAP}(?>(?:SESSION{GAP})?)(?!(?:LOCAL|{OF_TRANSACTION}|CONSTRAINTS)\b|{FOLLOWED}))
      | (?P<reset>    RESET\b(?!{GAP}{FOLLOWED}) | DISCARD\b)
      | (?P<load>     LOAD\b)
      | (?P<temp>     CREATE{GAP}(?:OR{GAP}REPLACE{GAP})?(?:(?:LOCAL|GLOBAL){GAP})?TEMP(?:ORARY)?
                      {GAP}(?:RECURSIVE{GAP})?(?:TABLE|VIEW|SEQUENCE)\b(?!.*\bON\s++COMMIT\s++DROP\b))
      | (?P<hold>     DECLARE{GAP}(?:"[^"]*+"|\w++)(?:{GAP}\w++){{0,4}}?{GAP}CURSOR{GAP}WITH{GAP}HOLD\b)
    )
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)

QUERY: Final = re.compile(r"[\s(;']*+(?:SELECT|WITH|VALUES|INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
"""What calls functions; comments are '' by then. The body of a CREATE FUNCTION does not, yet."""

QUOTED: Final = re.compile(
    rf"""
      (?P<kept>'{FOLLOWED}')
    | \bE'(?>(?:[^'\\]++|\\.|'')*)(?:'|\Z)
    | '(?>(?:[^']++|'')*)(?:'|\Z)
    | "(?>(?:[^"]++|"")*)(?:"|\Z)
    | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*+)?)\$.*?(?:\$(?P=tag)\$|\Z)
    | {COMMENT}
    | /\*.*
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
"""Literals, quoted names and comments, also without their end. ``kept``: what set_config() may be told."""

CALL: Final = re.compile(
    rf"""
    (?<![\w.$])(?:pg_catalog\.)?
    (?:
        (?P<lock>   pg_(?:try_)?advisory_lock(?:_shared)?\s*+\()
      | (?P<config> set_config\s*+\((?!\s*+'{FOLLOWED}')[^(),]*+,(?>(?:[^(),]++|\([^()]*+\))*),\s*+false\s*+\))
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)

LOCAL = "use SET LOCAL in a transaction(), or for every session ALTER ROLE ... SET"
REASONS: Final = {
    "listen": "LISTEN needs a session of its own: connect to the server past PgBouncer for it",
    "prepare": "a prepared statement would stay in the session, where other clients meet it: send the statement itself",
    "set": f"SET would change the session for other clients: {LOCAL}",
    "reset": "RESET and DISCARD would change the session for other clients: what SET LOCAL has set in a transaction() "
    "ends by itself",
    "load": "LOAD would load a library into the session of other clients: use session_preload_libraries",
    "temp": "what is temporary would stay in the session, where other clients meet it: CREATE TEMPORARY TABLE ... ON "
    "COMMIT DROP in a transaction()",
    "hold": "a cursor WITH HOLD would stay in the session, where nobody can read it any more: use stream()",
    "lock": "the lock would stay with the session, and another client would release it: use pg_advisory_xact_lock() "
    "or pg_try_advisory_xact_lock() in a transaction()",
    "config": "set_config(..., false) would change the session for other clients: use set_config(..., true) in a "
    "transaction()",
}


def needs_session(sql: object) -> str | None:
    """What a statement would leave in its session, and what to use instead; None for one that may be run.

    A statement that is neither str nor bytes is not looked at.
    """
    if isinstance(sql, str):
        text = sql[:HEAD]
    elif isinstance(sql, bytes):
        text = sql[:HEAD].decode("latin-1")
    else:
        return None
    found = None if ORDINARY.match(text) else START.match(text)
    if found is None and (
        "advisory_lock" in text or "set_config" in text or "ADVISORY_LOCK" in text or "SET_CONFIG" in text
    ):
        plain = QUOTED.sub(lambda each: each["kept"] or "''", text)
        found = CALL.search(plain) if QUERY.match(plain) else None
    return None if found is None else REASONS[str(found.lastgroup)]
