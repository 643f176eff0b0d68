"""Effects: whether a statement may have written, when nobody knows how it ended.

Only asked when a connection was lost, for the words of the error. In doubt it may have. A view or an operator that
calls a function which writes cannot be seen here, nor a function of one's own with the name of a harmless one.
"""

from __future__ import annotations

from typing import Final

from .tokens import QUOTED, statements

__all__ = ("may_have_written",)

READS: Final = frozenset("SELECT SHOW VALUES TABLE FETCH MOVE WITH EXPLAIN DECLARE (".split())
"""Beginnings of statements that only read, if they call nothing that writes."""

WRITE_NOTHING: Final = frozenset(
    "BEGIN START ROLLBACK ABORT SAVEPOINT RELEASE SET RESET LISTEN UNLISTEN DISCARD DEALLOCATE CLOSE LOCK".split()
)
"""Beginnings of statements that write nothing that outlives their session."""

WRITING: Final = frozenset("INSERT UPDATE DELETE MERGE INTO".split())

ANALYZE: Final = frozenset({"ANALYZE", "ANALYSE"})

ENDS: Final = frozenset("COMMIT END ROLLBACK ABORT".split())

BEFORE_BRACKETS: Final = frozenset(
    """
    ALL AND ANY ARRAY AS ASC BETWEEN BIT BY CASE CAST CHAR CHARACTER COLLATE CROSS CUBE CURRENT_TIME CURRENT_TIMESTAMP
    DEC DECIMAL DESC DISTINCT ELSE END ESCAPE EXCEPT EXISTS EXPLAIN FILTER FLOAT FOR FROM FULL GROUP GROUPING GROUPS
    HAVING ILIKE IN INNER INTERSECT INTERVAL IS ISNULL JOIN LATERAL LEFT LIKE LIMIT LOCALTIME LOCALTIMESTAMP
    MATERIALIZED NATURAL NOT NOTNULL NULL NUMERIC OFFSET ON OR ORDER OUTER OVER OVERLAPS PARTITION PRECISION RANGE
    RECURSIVE REPEATABLE RIGHT ROLLUP ROW ROWS SELECT SETS SIMILAR SOME SYMMETRIC TABLE TABLESAMPLE THEN TIME
    TIMESTAMP UNION USING VALUES VARBIT VARCHAR VARYING WHEN WHERE WINDOW WITH WITHIN ZONE
    """.split()
)
"""Words that may stand before a bracket and call nothing."""

NAMING: Final = frozenset("AS WITH RECURSIVE TABLESAMPLE :".split())
"""After these a word and a bracket are no call."""

HARMLESS: Final = frozenset(
    """
    ABS ACOS AGE ANY_VALUE ARRAY_AGG ARRAY_APPEND ARRAY_CAT ARRAY_DIMS ARRAY_FILL ARRAY_LENGTH ARRAY_LOWER ARRAY_NDIMS
    ARRAY_POSITION ARRAY_POSITIONS ARRAY_PREPEND ARRAY_REMOVE ARRAY_REPLACE ARRAY_TO_JSON ARRAY_TO_STRING ARRAY_UPPER
    ASCII ASIN ATAN ATAN2 AVG BIT_AND BIT_LENGTH BIT_OR BOOL_AND BOOL_OR BTRIM CARDINALITY CBRT CEIL CEILING
    CHAR_LENGTH CHARACTER_LENGTH CHR CLOCK_TIMESTAMP COALESCE COL_DESCRIPTION CONCAT CONCAT_WS CONVERT CONVERT_FROM
    CONVERT_TO CORR COS COT COUNT COVAR_POP COVAR_SAMP CUME_DIST CURRENT_DATABASE CURRENT_SCHEMA CURRENT_SCHEMAS
    CURRENT_SETTING DATE DATE_BIN DATE_PART DATE_TRUNC DECODE DEGREES DENSE_RANK DIV ENCODE ENUM_FIRST ENUM_LAST
    ENUM_RANGE EVERY EXP EXTRACT FACTORIAL FIRST_VALUE FLOOR FORMAT FORMAT_TYPE GCD GEN_RANDOM_UUID GENERATE_SERIES
    GENERATE_SUBSCRIPTS GET_BIT GET_BYTE GREATEST HOST INITCAP ISFINITE ISEMPTY JSON_AGG JSON_ARRAY_ELEMENTS
    JSON_ARRAY_ELEMENTS_TEXT JSON_ARRAY_LENGTH JSON_BUILD_ARRAY JSON_BUILD_OBJECT JSON_EACH JSON_EACH_TEXT
    JSON_EXTRACT_PATH JSON_EXTRACT_PATH_TEXT JSON_OBJECT JSON_OBJECT_AGG JSON_OBJECT_KEYS JSON_POPULATE_RECORD
    JSON_POPULATE_RECORDSET JSON_STRIP_NULLS JSON_TO_RECORD JSON_TO_RECORDSET JSON_TYPEOF JSONB_AGG
    JSONB_ARRAY_ELEMENTS JSONB_ARRAY_ELEMENTS_TEXT JSONB_ARRAY_LENGTH JSONB_BUILD_ARRAY JSONB_BUILD_OBJECT JSONB_EACH
    JSONB_EACH_TEXT JSONB_EXTRACT_PATH JSONB_EXTRACT_PATH_TEXT JSONB_INSERT JSONB_OBJECT JSONB_OBJECT_AGG
    JSONB_OBJECT_KEYS JSONB_PATH_EXISTS JSONB_PATH_MATCH JSONB_PATH_QUERY JSONB_PATH_QUERY_ARRAY JSONB_PATH_QUERY_FIRST
    JSONB_POPULATE_RECORD JSONB_POPULATE_RECORDSET JSONB_PRETTY JSONB_SET JSONB_STRIP_NULLS JSONB_TO_RECORD
    JSONB_TO_RECORDSET JSONB_TYPEOF JUSTIFY_DAYS JUSTIFY_HOURS JUSTIFY_INTERVAL LAG LAST_VALUE LCM LEAD LEAST LENGTH LN
    LOG10 LOWER LOWER_INC LOWER_INF LPAD LTRIM MAKE_DATE MAKE_INTERVAL MAKE_TIME MAKE_TIMESTAMP MAKE_TIMESTAMPTZ
    MASKLEN MAX MD5 MIN MOD MODE NETMASK NETWORK NORMALIZE NOW NTH_VALUE NTILE NULLIF NUM_NONNULLS NUM_NULLS
    NUMNODE OBJ_DESCRIPTION OCTET_LENGTH OVERLAY PARSE_IDENT PERCENT_RANK PERCENTILE_CONT PERCENTILE_DISC
    PG_BACKEND_PID PG_COLUMN_SIZE PG_DATABASE_SIZE PG_GET_CONSTRAINTDEF PG_GET_EXPR PG_GET_FUNCTIONDEF PG_GET_INDEXDEF
    PG_GET_SERIAL_SEQUENCE PG_GET_VIEWDEF PG_INDEXES_SIZE PG_IS_IN_RECOVERY PG_POSTMASTER_START_TIME PG_RELATION_SIZE
    PG_SIZE_PRETTY PG_SLEEP PG_TABLE_IS_VISIBLE PG_TABLE_SIZE PG_TOTAL_RELATION_SIZE PG_TYPEOF PHRASETO_TSQUERY PI
    PLAINTO_TSQUERY POSITION POW POWER QUERYTREE QUOTE_IDENT QUOTE_LITERAL QUOTE_NULLABLE RADIANS RANDOM RANK
    REGEXP_COUNT REGEXP_INSTR REGEXP_LIKE REGEXP_MATCH REGEXP_MATCHES REGEXP_REPLACE REGEXP_SPLIT_TO_ARRAY
    REGEXP_SPLIT_TO_TABLE REGEXP_SUBSTR REGR_COUNT REGR_INTERCEPT REGR_R2 REGR_SLOPE REPEAT REPLACE REVERSE ROUND
    ROW_NUMBER ROW_TO_JSON RPAD RTRIM SETWEIGHT SHA224 SHA256 SHA384 SHA512 SIN SPLIT_PART SQRT STARTS_WITH
    STATEMENT_TIMESTAMP STDDEV STDDEV_POP STDDEV_SAMP STRING_AGG STRING_TO_ARRAY STRING_TO_TABLE STRIP STRPOS SUBSTR
    SUBSTRING SUM TAN TIMEOFDAY TO_CHAR TO_DATE TO_HEX TO_JSON TO_JSONB TO_NUMBER TO_REGCLASS TO_TIMESTAMP TO_TSQUERY
    TO_TSVECTOR TRANSACTION_TIMESTAMP TRANSLATE TREAT TRIM TRIM_ARRAY TRUNC TS_HEADLINE TS_RANK TS_RANK_CD TXID_CURRENT
    UNNEST UPPER UPPER_INC UPPER_INF VAR_POP VAR_SAMP VARIANCE VERSION WEBSEARCH_TO_TSQUERY WIDTH_BUCKET
    """.split()
)
"""PostgreSQL's own functions that people call most and that write nothing.

Not LOG and SIGN: people have functions of these names, for other arguments, that write.
"""


def may_have_written(text: str, *, in_transaction: bool) -> bool:
    """Whether a text that was sent, and of whose end nothing is known, may have left something in the database.

    ``in_transaction``: it was sent inside of a transaction, which has been rolled back unless the text ended it.
    """
    found = statements(text)
    if not in_transaction:
        return not all(map(_only_reads, found))
    if not any(map(_ends_transaction, found)):
        return False
    return len(found) > 1 or found[0][0] not in {"ROLLBACK", "ABORT"}


def _ends_transaction(statement: list[str]) -> bool:
    first = statement[0]
    return (first in ENDS and "TO" not in statement) or statement[:2] == ["PREPARE", "TRANSACTION"]


def _only_reads(statement: list[str]) -> bool:
    first = statement[0]
    if first in WRITE_NOTHING:
        return "PREPARED" not in statement
    if first == "EXPLAIN":
        return ANALYZE.isdisjoint(statement) or _only_reads(_explained(statement))
    if first not in READS:
        return False
    before, earlier = "", ""
    for token in statement:
        # FOR UPDATE and FOR NO KEY UPDATE lock rows.
        if token in WRITING and not (token == "UPDATE" and before in {"FOR", "KEY"}):
            return False
        if token == "(" and _may_write(before, earlier):
            return False
        if not (token == "." and before == "PG_CATALOG"):
            earlier, before = before, token
    return True


def _may_write(called: str, before: str) -> bool:
    """Whether what stands before a bracket is the call of a function that may write."""
    if called == QUOTED or (before == "." and called.isidentifier()):
        return True
    # The names of columns in AS t (a, b) and WITH t (a, b), types in x::varchar(9), and the like.
    named = not called or not (called[0].isalpha() or called[0] == "_") or before in NAMING
    return not (named or called in BEFORE_BRACKETS or called in HARMLESS)


def _explained(statement: list[str]) -> list[str]:
    """What an EXPLAIN explains: the statement after its options."""
    at = 1
    if statement[at : at + 1] == ["("]:
        at = statement.index(")", at) + 1 if ")" in statement else len(statement)
    while at < len(statement) and statement[at] in {*ANALYZE, "VERBOSE"}:
        at += 1
    return statement[at:] or ["?"]
