"""Which statements may leave something in their session."""

from __future__ import annotations

import pytest

from aiohttp_poolscope.sql.changes import LONGEST, changes_session

CHANGES = [
    "SET search_path = app",
    "set session role admin",
    "SET ROLE app",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "RESET ALL",
    "LISTEN orders",
    "UNLISTEN *",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE ALL",
    "DISCARD TEMP",
    "LOAD 'auto_explain'",
    "DO $$ BEGIN PERFORM set_config('a.b', 'c', false); END $$",
    "CALL p()",
    "CREATE TEMP TABLE t (a int)",
    "CREATE TABLE pg_temp.t (a int)",
    "CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1",
    "SELECT 1 INTO TEMP t",
    "SELECT * FROM a, pg_temp.b, LATERAL (SELECT pg_try_advisory_lock(1)) AS c",
    "/* hidden */ SELECT pg_catalog.pg_advisory_lock (7)",
    "SELECT set_config('a.b', 'c', true)",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "BEGIN; DECLARE c NO SCROLL CURSOR FOR SELECT pg_try_advisory_lock(id) FROM jobs",
    'SELECT * FROM "pg_advisory_lock"(7)',
    'SELECT * FROM "pg_catalog"."set_config" (%s, %s, %s)',
    "CREATE TABLE pg_temp.t (a int)",
    "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    'CREATE TABLE "pg_temp".t (a int)',
    "SELECT 1 -- a line of its own\r; SET a.b = 'c'",
    "SELECT 1; SET a.b = 'c'",
    "SELECT 1" + " " * LONGEST,
]

LEAVES_NOTHING = [
    "SELECT 1",
    "INSERT INTO t VALUES ('SET ROLE admin')",
    "SELECT 'LISTEN' -- ; SET ROLE admin\n",
    "SET LOCAL search_path = app",
    "SET TRANSACTION READ ONLY",
    "SET CONSTRAINTS ALL DEFERRED",
    "PREPARE TRANSACTION 'x'",
    "BEGIN",
    "COMMIT",
    "UPDATE t SET role = %s",
    "SELECT pg_advisory_xact_lock(1)",
    'SELECT "temp" FROM "set_config"',
    "DECLARE c CURSOR FOR SELECT 1",
    "CREATE TABLE t (a int)",
    "NOTIFY orders",
    "",
]


@pytest.mark.parametrize("text", CHANGES)
def test_what_changes_the_session(text: str) -> None:
    """What lives in the session, and may live on in it, is seen in any disguise that words have."""
    assert changes_session(text)


@pytest.mark.parametrize("text", LEAVES_NOTHING)
def test_what_leaves_nothing(text: str) -> None:
    """What ends with its transaction, and words in literals, names and comments, are no change."""
    assert not changes_session(text)
