"""needs_session(): what may not be run through PgBouncer is known by its text; what may is never refused."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2 import sql

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.sql.session import HEAD, needs_session

DOCUMENT = Path(__file__).parents[2] / "docs" / "pgbouncer.md"

LEAVES = {
    "LISTEN": ["LISTEN news", "listen news", 'LISTEN "News"', "UNLISTEN *", "UnListen news"],
    "prepared": ["PREPARE one AS SELECT 1", "PREPARE one (int) AS SELECT $1", "EXECUTE one(1)", "DEALLOCATE ALL"],
    "SET LOCAL": [
        *(
            "SET statement_timeout = 5",
            "set search_path to tenant",
            "SET app.tenant = %s",
            "SET SESSION work_mem = '1MB'",
        ),
        *("SET ROLE admin", "SET SESSION AUTHORIZATION admin", "SET SESSION ROLE admin", "SET SESSION\n\tx = 1"),
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        *(
            "SET transaction_timeout = 5",
            "SET localized = 1",
            "SET timezones = 1",
            "SET default_transaction_read_only = on",
        ),
    ],
    "RESET": ["RESET ALL", "RESET search_path", "RESET ROLE", "DISCARD ALL", "DISCARD TEMP"],
    "LOAD": ["LOAD 'auto_explain'"],
    "temporary": [
        *(
            "CREATE TEMP TABLE t (n int)",
            "create temporary table if not exists t (n int)",
            "CREATE LOCAL TEMP TABLE t ()",
        ),
        *(
            "CREATE TEMP TABLE t (n int) ON COMMIT DELETE ROWS",
            "CREATE TEMP TABLE t AS SELECT 1",
            "CREATE TEMP VIEW v AS TABLE t",
        ),
        *("CREATE OR REPLACE TEMP RECURSIVE VIEW v (n) AS SELECT 1", "CREATE TEMPORARY SEQUENCE s"),
    ],
    "WITH HOLD": [
        *(
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "declare c binary insensitive no scroll cursor with hold for table t",
        ),
        'DECLARE "my cursor" CURSOR WITH HOLD FOR SELECT 1',
    ],
    "pg_advisory_xact_lock": [
        *("SELECT pg_advisory_lock(1)", "select pg_try_advisory_lock (1, 2)", "SELECT PG_ADVISORY_LOCK(%s)"),
        *(
            "SELECT pg_advisory_lock_shared(1)",
            "SELECT pg_try_advisory_lock_shared(1)",
            "SELECT pg_catalog.pg_advisory_lock(1)",
        ),
        "WITH one AS (SELECT 'it''s', pg_advisory_lock(id) FROM jobs) SELECT 1",
        *("SELECT E'\\'', pg_advisory_lock(1)", "SELECT $$it's$$, pg_advisory_lock(1)", "(SELECT pg_advisory_lock(1))"),
    ],
    "set_config": [
        *("SELECT set_config('app.tenant', %s, false)", "select SET_CONFIG('app.tenant', %(tenant)s::text, FALSE)"),
        "SELECT set_config(name, setting, false) FROM saved",
    ],
}
"""What the sentence is to contain, and statements that are told so."""

GOOD = [
    # what the package itself sends
    *("SELECT 1", "BEGIN", "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE", "COMMIT", "ROLLBACK"),
    *("SAVEPOINT poolscope_1", "RELEASE poolscope_1", "ROLLBACK TO poolscope_1; RELEASE poolscope_1"),
    "BEGIN; DECLARE poolscope_stream_1 NO SCROLL CURSOR FOR SELECT 1",
    "DECLARE poolscope_stream_1 NO SCROLL CURSOR FOR SELECT 'CURSOR WITH HOLD'",
    *("FETCH FORWARD 10 FROM poolscope_stream_1", "CLOSE poolscope_stream_1", "SELECT pg_is_in_recovery()"),
    # what ends with its transaction
    *(
        "SET LOCAL statement_timeout = 5",
        "set local role admin",
        "SET /* only here */ LOCAL x = 1",
        "SET\n-- so\nLOCAL x = 1",
    ),
    *("SET TRANSACTION READ ONLY", "SET CONSTRAINTS ALL DEFERRED", "SET transaction_read_only = on"),
    *("PREPARE TRANSACTION 'one'", "prepare /**/ transaction 'one'", "COMMIT PREPARED 'one'"),
    *("CREATE TEMP TABLE t (n int) ON COMMIT DROP", "create temp table t\n  on  commit\n  drop as select 1"),
    *("DECLARE c CURSOR FOR SELECT 1", "DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1"),
    *("SELECT pg_advisory_xact_lock(1)", "SELECT pg_try_advisory_xact_lock_shared(1)", "SELECT pg_advisory_unlock(1)"),
    *("SELECT set_config('app.tenant', %s, true)", "SELECT set_config('app.tenant', coalesce(%s, 'false'), true)"),
    # what PgBouncer keeps for each client
    *(
        "SET TIME ZONE 'UTC'",
        "SET timezone TO 'UTC'",
        "SET SESSION DateStyle = ISO",
        "SET NAMES 'UTF8'",
        "RESET TimeZone",
    ),
    *("SET client_encoding = 'UTF8'", "SET application_name = 'x'", "SET standard_conforming_strings = on"),
    "SELECT set_config('TimeZone', 'UTC', false)",
    *("SELECT set_config('TimeZone', 'pg_advisory_lock(1)', false)", "SELECT 'TimeZone', 'pg_advisory_lock(1)'"),
    # what only looks like it
    *(
        "SELECT 'LISTEN'",
        "INSERT INTO t VALUES ('SET x = 1')",
        "SELECT 'pg_advisory_lock(1)'",
        "-- SET x = 1\nSELECT 1",
    ),
    *("/* SET x = 1 */ SELECT 1", "/* a /* b */ SET x = 1 */ SELECT 1", "SELECT 1 -- pg_advisory_lock(1)"),
    *(
        "SELECT /* pg_advisory_lock(1) */ 1",
        "SELECT $$ pg_advisory_lock(1) $$",
        "SELECT $a$ $b$ pg_advisory_lock(1) $a$",
    ),
    *("SELECT E'\\' pg_advisory_lock(1)'", 'SELECT "pg_advisory_lock"(1)', "SELECT mine.pg_advisory_lock(1)"),
    *("SELECT my_pg_advisory_lock(1)", "SELECT pg_advisory_lock_count(1)", "SELECT pg_advisory_lock FROM t"),
    *(
        "SELECT 'set_config(''a'', ''b'', false)'",
        "SELECT set_config('a', 'b', is_local) FROM t",
        "SELECT set_config(%s, %s, %s)",
    ),
    *(
        "COMMENT ON FUNCTION f() IS 'pg_advisory_lock(1)'",
        "SELECT reset FROM t",
        "UPDATE t SET x = 1",
        "SETTLE",
        "LISTENER",
    ),
    "CREATE FUNCTION f() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT pg_advisory_lock(1); END",
    "CREATE TABLE temp_table (n int)",
    *("", " ", ";", "--", "/*", "'", "$$", "SET", "CREATE", "DECLARE"),
]


@pytest.mark.parametrize(("said", "statement"), [(said, each) for said, every in LEAVES.items() for each in every])
@pytest.mark.parametrize("before", ["", " \n\t", "-- why\n", "/* why /* and how */ */ ", ";"])
def test_what_leaves_something(said: str, statement: str, before: str) -> None:
    """It is said what a statement would leave and what to use instead, however it is written, as str or as bytes."""
    for written in (before + statement, (before + statement).encode()):
        told = needs_session(written)
        assert told is not None
        assert said in told
        assert "\n" not in told


@pytest.mark.parametrize("statement", GOOD)
def test_what_does_not(statement: str) -> None:
    """What ends with its transaction, and what only looks like the others, is not refused."""
    for before in ("", " \n\t", "-- why\n", "/* why /* and how */ */ "):
        assert needs_session(before + statement) is None
        assert needs_session((before + statement).encode()) is None


CALLS = ["pg_advisory_lock(1)", "set_config('a', 'b', false)", "SET x = 1", "LISTEN news", "TimeZone"]
MARKS = ["'", '"', "\\", "--", "\n", "/*", "*/", "$$", "$a$", ";", " ", "E", "x", "(", ")", ","]
ODDS = st.lists(st.sampled_from(CALLS + MARKS), max_size=12).map("".join)


@given(ODDS)
def test_text_is_only_text(text: str) -> None:
    """Whatever stands in a literal, a quoted name or a comment, the statement around it is not refused."""
    quoted = "'" + text.replace("'", "''") + "'"
    escaped = "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    name = '"' + text.replace('"', '""') + '"'
    line = text.replace("\n", " ")
    block = text.replace("/*", "").replace("*/", "").rstrip("/").lstrip("/")
    for statement in (
        f"SELECT {quoted}, {escaped} AS {name} FROM t -- {line}",
        f"SELECT {escaped}, {quoted}",
        f"INSERT INTO {name} VALUES ({quoted}, $q${text}$q$, {escaped})",
        f"/*{block} */ UPDATE t SET {name} = {quoted} /*{block} */",
        f"--{line}\nDELETE FROM t",
    ):
        assert needs_session(statement) is None, statement


def test_what_is_no_text() -> None:
    """What psycopg2 composes is not looked at, and not refused."""
    assert needs_session(sql.SQL("SET x = {}").format(sql.Literal(1))) is None


@pytest.mark.parametrize(
    "statement",
    [
        " " * 1_000_000,
        "/*" * 500_000,
        "/* " + "*" * 1_000_000,
        "--\n" * 300_000 + "SET x",
        "CREATE TEMP TABLE " + "ON COMMIT " * 100_000,
        "SELECT set_config(" * 50_000,
        "SELECT pg_advisory_lock " + "'" * 999_999,
        "SELECT set_config('a', " + "(" * 500_000,
        "DECLARE c " + "no " * 300_000 + "WITH HOLD",
        "SELECT set_config " + "$$" * 499_999 + "$",
    ],
    ids=lambda statement: statement[:20],
)
def test_it_is_done_soon(statement: str) -> None:
    """No statement, however long or strange, holds up the event loop."""
    begun = time.process_time()
    needs_session(statement)
    needs_session(statement.encode())
    assert time.process_time() - begun < 0.5


def test_the_start_is_enough() -> None:
    """A long literal or comment that is cut off at the end of what is looked at is still one."""
    assert needs_session("SELECT 1 /* " + "pg_advisory_lock(1) " * HEAD + "*/") is None
    assert needs_session("SELECT '" + "x" * (HEAD - 30) + " pg_advisory_lock(1), " + "x" * 100 + "'") is None
    assert needs_session("SELECT '" + "x" * HEAD + "', pg_advisory_lock(1)") is None


def test_bytes_of_any_encoding() -> None:
    """Bytes are looked at whatever they are encoded in, and where they are cut."""
    for encoded in (("\u00e9" * HEAD).encode(), b"x" + ("\u00e9" * HEAD).encode(), b"\xff\xfe", b"\0"):
        assert needs_session(b"SELECT '" + encoded + b"'") is None
        assert needs_session(b"SET x = '" + encoded + b"'") is not None


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_document_tells_what_is_refused() -> None:
    """Each statement that docs/pgbouncer.md calls refused is, and none that it recommends instead."""
    text = DOCUMENT.read_text()
    _, _, refused = text.partition("## Refused\n")
    rows = [line.strip("|").split("|") for line in refused.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert len(rows) >= len(LEAVES) - 1
    for statements, instead in rows:
        for statement in spans(statements):
            assert needs_session(statement) is not None, statement
        for statement in spans(instead):
            assert needs_session(statement) is None, statement
    told = {needs_session(statement) for statements, _ in rows for statement in spans(statements)}
    assert told == {needs_session(every[0]) for every in LEAVES.values()}


def test_no_pattern_needs_what_some_pythons_do_wrong() -> None:
    """Python 3.11.0 to 3.11.4, Debian's among them, match (...)*+ wrongly if the group can be matched in several ways.

    Then statements are shown with their values. (?>(...)*) is the same, and right everywhere.
    """
    package = Path(poolscope.__file__).parent
    found = [(path.name, line) for path in package.rglob("*.py") for line in path.read_text().splitlines()
             if re.search(r"\)[*+?]\+", line)]  # fmt: skip
    assert found == []
