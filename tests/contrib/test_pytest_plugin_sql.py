"""Which statements poolscope_rollback takes for the beginning and the end of a transaction."""

from __future__ import annotations

import pytest

from aiohttp_poolscope.contrib.testing.sql import Kind, controls, divided


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("BEGIN", [Kind.BEGIN]),
        ("begin isolation level serializable read only", [Kind.BEGIN]),
        ("/* now */ START -- it\n TRANSACTION;", [Kind.BEGIN]),
        ("COMMIT", [Kind.COMMIT]),
        ("COMMIT AND NO CHAIN", [Kind.COMMIT]),
        ("END WORK;", [Kind.COMMIT]),
        ("COMMIT /* AND CHAIN */", [Kind.COMMIT]),
        ("ROLLBACK AND CHAIN", [Kind.CHAIN]),
        ("abort", [Kind.ROLLBACK]),
        ("ROLLBACK TO s", [Kind.NOTHING]),
        ("ROLLBACK WORK TO SAVEPOINT s", [Kind.NOTHING]),
        ("COMMIT PREPARED 'x'", [Kind.NOTHING]),
        ("PREPARE TRANSACTION 'x'", [Kind.PREPARE]),
        ("PREPARE begin AS SELECT 1", [Kind.NOTHING]),
        ("DISCARD ALL", [Kind.DISCARD]),
        ("DISCARD TEMP", [Kind.NOTHING]),
        ("SET TRANSACTION READ ONLY", [Kind.LEVEL]),
        ("BEGIN; SELECT ';COMMIT;'; COMMIT", [Kind.BEGIN, Kind.NOTHING, Kind.COMMIT]),
        ("SELECT 1; SELECT 2", [Kind.NOTHING]),
        ("SELECT 'BEGIN; COMMIT'", [Kind.NOTHING]),
        ("DO $$ BEGIN PERFORM 1; END $$", [Kind.NOTHING]),
        ("DO $a$ BEGIN PERFORM 1; END $a$; END", [Kind.NOTHING, Kind.COMMIT]),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", [Kind.NOTHING]),
        ("SELECT CASE WHEN true THEN 1 END; -- COMMIT; ", [Kind.NOTHING]),
        ('UPDATE t SET "end; commit" = 1; ', [Kind.NOTHING]),
        ("", [Kind.NOTHING]),
    ],
)
def test_what_a_statement_does(text: str, kinds: list[Kind]) -> None:
    """Keywords count where PostgreSQL would see them, not in literals, names, comments and bodies."""
    assert [kind for kind, _ in divided(text)] == kinds


def test_what_is_no_control_is_sent_as_it_is() -> None:
    """The other parts keep every character, comments too."""
    parts = [text for kind, text in divided("BEGIN; SELECT 'a;b' /* c */; COMMIT") if kind is Kind.NOTHING]
    assert parts == [" SELECT 'a;b' /* c */"]


def test_savepoints_are_controls_as_well() -> None:
    """Faults leave transactions and their savepoints alone."""
    assert [controls(text) for text in ("SAVEPOINT a", " release a", "ROLLBACK TO a", "COMMIT")] == [True] * 4
    assert [controls(text) for text in ("SELECT 1", "SET TIME ZONE 'UTC'")] == [False] * 2
