"""What a statement may have written, when nobody knows how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aiohttp_poolscope.sql.effects import HARMLESS, may_have_written
from aiohttp_poolscope.sql.tokens import LITERAL, QUOTED, statements, tokens

if TYPE_CHECKING:
    from tests.conftest import Database

READS = [
    "SELECT 1",
    "select * from t where a = 'INSERT INTO t' -- DELETE FROM t",
    "(SELECT 1) UNION (SELECT 2)",
    "SHOW server_version",
    "VALUES (1, 2), (3, 4)",
    "TABLE accounts",
    "FETCH FORWARD 10 FROM c",
    "WITH a AS (SELECT 1), b AS (SELECT 2) SELECT * FROM a, b",
    "WITH RECURSIVE a (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM a) SELECT * FROM a",
    "SELECT count(*) FILTER (WHERE x IN (1, 2)), max(y)::numeric(10, 2) FROM t GROUP BY (z) HAVING sum(a) > 1",
    "SELECT pg_catalog.now(), coalesce(a, 'b'), row_number() OVER (PARTITION BY x ORDER BY y) FROM t",
    "SELECT * FROM t FOR UPDATE",
    "SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED",
    "SELECT * FROM unnest(ARRAY[1, 2]) AS u (a)",
    'SELECT "update", $q$INSERT$q$, E\'\\\'INSERT\' FROM "into"',
    "SELECT /* /* nested */ INSERT INTO */ 1",
    "EXPLAIN INSERT INTO t VALUES (1)",
    "EXPLAIN (ANALYZE, BUFFERS) SELECT 1",
    "EXPLAIN ANALYZE VERBOSE SELECT 1",
    "DECLARE c NO SCROLL CURSOR FOR SELECT 1",
    "BEGIN",
    "ROLLBACK",
    "SET statement_timeout = 0",
    "SELECT 1; SELECT 2;",
    "",
]

WRITES = [
    "INSERT INTO t VALUES (1)",
    "UPDATE t SET a = 1",
    "WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a",
    "WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a",
    "SELECT 1 INTO u",
    "SELECT nextval('s')",
    "SELECT my_function()",
    "SELECT log('Bob has logged in')",
    "SELECT app.now()",
    'SELECT "now"()',
    "SELECT (SELECT charge (card, 10) FROM cards)",
    "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
    "EXPLAIN ANALYSE DELETE FROM t",
    "EXPLAIN (ANALYZE) WITH a AS (DELETE FROM t RETURNING 1) SELECT * FROM a",
    "CALL p()",
    "DO $$ BEGIN DELETE FROM t; END $$",
    "EXECUTE p(1)",
    "MERGE INTO t USING u ON a = b WHEN MATCHED THEN DELETE",
    "COPY t FROM STDIN",
    "BEGIN; INSERT INTO t VALUES (1); COMMIT",
    "SELECT 1; DELETE FROM t",
    "COMMIT",
    "NOTIFY orders",
    "CREATE TABLE t (a int)",
    "VACUUM t",
    "/* a comment */ -- another\n INSERT INTO t VALUES (1)",
    "ROLLBACK PREPARED 'x'",
]


@pytest.mark.parametrize("text", READS)
def test_what_only_reads(text: str) -> None:
    """A plain read, and what stands in literals, quoted names and comments, have written nothing."""
    assert not may_have_written(text, in_transaction=False)
    assert not may_have_written(text, in_transaction=True)


@pytest.mark.parametrize("text", WRITES)
def test_what_may_write(text: str) -> None:
    """Outside of a transaction whatever is not known to read may have written."""
    assert may_have_written(text, in_transaction=False)


@pytest.mark.parametrize("text", ["INSERT INTO t VALUES (1)", "SELECT f()", "SAVEPOINT a", "ROLLBACK TO a; RELEASE a"])
def test_inside_a_transaction(text: str) -> None:
    """What was in a transaction is rolled back with its connection."""
    assert not may_have_written(text, in_transaction=True)


@pytest.mark.parametrize(
    "text",
    [
        "COMMIT",
        "END",
        "commit and chain",
        "INSERT INTO t VALUES (1); COMMIT",
        "ROLLBACK; DELETE FROM t",
        "PREPARE TRANSACTION 'x'",
        "PREPARE TRANSACTION 'x'; SELECT 1",
    ],
)
def test_the_end_of_a_transaction(text: str) -> None:
    """A COMMIT whose answer is lost may have been carried out, also one behind other statements."""
    assert may_have_written(text, in_transaction=True)


def test_tokens() -> None:
    """Literals of every kind are one token, without their end too."""
    text = """SELECT e'\\'', U&'x''y', "a""b", $t$ ; $$ ' $t$, x$1, 1.5e3 FROM t; /* /* */ ; */ SELECT 'open"""
    assert list(tokens(text)) == [
        *("SELECT", LITERAL, ",", LITERAL, ",", QUOTED, ",", LITERAL, ",", "X$1", ",", "FROM", "T", ";"),
        *("SELECT", LITERAL),
    ]
    assert [each[0] for each in statements(f"; {text} ;;")] == ["SELECT", "SELECT"]


def test_what_is_called_harmless_is_postgresqls_own(database: Database) -> None:
    """Each function on the list is PostgreSQL's, or grammar; the volatile ones are known to write nothing."""
    known = dict(
        database.sql(
            "SELECT upper(proname), bool_or(provolatile = 'v') FROM pg_proc "
            "WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY 1"
        )
    )
    grammar = {"COALESCE", "EXTRACT", "GREATEST", "LEAST", "NULLIF", "TREAT", "TRIM", "NORMALIZE"}
    newer = {"ANY_VALUE"}  # than PostgreSQL 15
    assert HARMLESS - known.keys() - grammar - newer == set()
    assert {name for name in HARMLESS if known.get(name)} <= {
        "CLOCK_TIMESTAMP", "CURRENT_SETTING", "GEN_RANDOM_UUID", "PG_DATABASE_SIZE", "PG_INDEXES_SIZE",
        "PG_IS_IN_RECOVERY", "PG_RELATION_SIZE", "PG_SLEEP", "PG_TABLE_SIZE", "PG_TOTAL_RELATION_SIZE", "RANDOM",
        "TIMEOFDAY",
    }  # fmt: skip
