"""What is shown of a statement: its words, and none of its values."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2 import sql

from aiohttp_poolscope.connection.statements import Batch
from aiohttp_poolscope.sql.masking import LONGEST, shown


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT t1.a2, %s, %(x)s FROM t1 LIMIT 10", "SELECT t1.a2, %s, %(x)s FROM t1 LIMIT ?"),
        ("SELECT 'it''s', $$body$$, $q$a$q$, $A$ b $a$ c $A$", "SELECT ?, ?, ?, ?"),
        ("SELECT E'\\'x', y", "SELECT E?"),
        ("SELECT E'a' \n 'b\\'secret', y", "SELECT E?"),
        ("SELECT 'standard_conforming_strings=off \\'secret'", "SELECT ?"),
        ("SELECT 4_111, 0xDEAD, 1e10, .731, 1e+20, x%97531", "SELECT ?, ?, ?, ?, ?, x%?"),
        ("/* a /* b /* c */ d */ secret */ SELECT 1", ""),
        ("SELECT a/*x*/b, c/d*e", "SELECT a b, c/d*e"),
        ('SELECT "Column 1" FROM t', 'SELECT "Column 1" FROM t'),
        ("SELECT a -- the password is x\n  FROM /* 4711 */ t", "SELECT a FROM t"),
        ("SELECT 'not closed", "SELECT ?"),
        ("SELECT 1.5, -3, 1e9", "SELECT ?, -?, ?"),
        (b"SELECT 'x'", "<bytes>"),
        (sql.SQL("SELECT {}").format(sql.Literal("x")), "<Composed>"),
        (Batch([b"INSERT INTO t VALUES ('x')"], "INSERT INTO t VALUES (%s)"), "INSERT INTO t VALUES (%s)"),
    ],
)
def test_what_is_shown(statement: Any, text: str) -> None:
    """Literals and comments are left out; names stay."""
    assert shown(statement) == text


def test_long_statements_end() -> None:
    """A literal that the cut goes through is left out, too."""
    text = shown("SELECT " + "a, " * 600 + "'" + "secret" * 1000)
    assert len(text) <= LONGEST + 3
    assert text.endswith("...")
    assert "secret" not in text
