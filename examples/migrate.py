"""A script with the pool of the service and without its server: applies what has not been applied yet, once.

DATABASE_URL=postgresql://localhost/app python examples/migrate.py
"""

import asyncio
import os
import sys

import aiohttp_poolscope as poolscope

MIGRATIONS = {
    "0001 accounts": "CREATE TABLE migrated_accounts (id int PRIMARY KEY, balance int NOT NULL)",
    "0002 first account": "INSERT INTO migrated_accounts VALUES (1, 100)",
}


async def migrate(dsn: str) -> list[str]:
    """Apply what is missing, in order, each in a transaction of its own; the names of what was applied."""
    applied = []
    # A migration may take longer than a request may, and nobody else uses this pool.
    async with poolscope.open(dsn, maxsize=1, statement_timeout=None) as scope:
        await scope.execute("CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY)")
        for name, sql in MIGRATIONS.items():
            async with scope.transaction() as tx:
                # Two that start at once take turns: the second one finds the name.
                await tx.execute("LOCK TABLE migrations")
                if await tx.fetchval("SELECT 1 FROM migrations WHERE name = %s", (name,)) is None:
                    await tx.execute(sql)
                    await tx.execute("INSERT INTO migrations VALUES (%s)", (name,))
                    applied.append(name)
    return applied


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    try:
        print("\n".join(asyncio.run(migrate(url))) or "nothing to apply")
    except poolscope.DatabaseUnavailable as error:
        sys.exit(str(error))
