"""The demo's database: where it is, and the bank in it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ("ACCOUNTS", "BRANCHES", "OPENING", "SCHEMA", "bank")

SCHEMA = "poolscope_demo"
ACCOUNTS = 5_000
BRANCHES = ("Athens", "Bergen", "Cork", "Delft", "Evora", "Florence", "Ghent", "Havana", "Izmir", "Jena")
OPENING = 1_000
"""What every account begins with, so that what all of them hold is known."""

_CREATE = """
CREATE SCHEMA poolscope_demo;
CREATE TABLE poolscope_demo.accounts (
    id integer PRIMARY KEY,
    branch text NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0),
    reference text NOT NULL
);
CREATE TABLE poolscope_demo.transfers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payer integer NOT NULL,
    payee integer NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    at timestamptz NOT NULL DEFAULT now()
)
"""
_FILL = """
INSERT INTO poolscope_demo.accounts (id, branch, balance, reference)
SELECT n, (%(branches)s)[1 + n %% %(count)s], %(opening)s, md5(n::text) || md5((-n)::text)
FROM generate_series(1, %(accounts)s) AS n
"""


@contextlib.asynccontextmanager
async def bank(dsn: str) -> AsyncIterator[None]:
    """Accounts in a schema of their own, which is dropped at the end.

    Raises DuplicateSchema of psycopg2 when there is one already: it may be somebody's.
    """
    async with poolscope.open(dsn, maxsize=1) as scope, scope.transaction() as tx:
        await tx.execute(_CREATE)
        fill = {"branches": list(BRANCHES), "count": len(BRANCHES), "opening": OPENING, "accounts": ACCOUNTS}
        await tx.execute(_FILL, fill)
    try:
        yield
    finally:
        async with poolscope.open(dsn, maxsize=1) as scope:
            await scope.execute("DROP SCHEMA poolscope_demo CASCADE")
