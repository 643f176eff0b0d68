"""`top` by way of the database: what pg_stat_activity has of each process's pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope.driver import DatabaseError
from aiohttp_poolscope.errors import PoolScopeError
from aiohttp_poolscope.sql.masking import shown

from .view import LONGEST, ServerView

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from aiohttp_poolscope.web import PoolScope

__all__ = ("KEY", "Server")

KEY = "top"
"""Its pool's: so its own session is known by its application_name, too."""

GROUPS = """
SELECT coalesce(nullif(application_name, ''), '(none)') AS application_name, coalesce(usename, '?') AS "user",
       count(*)::int AS backends, count(*) FILTER (WHERE state = 'active')::int AS active,
       count(*) FILTER (WHERE state = 'idle')::int AS idle,
       count(*) FILTER (WHERE state LIKE 'idle in transaction%')::int AS idle_in_transaction,
       count(*) FILTER (WHERE wait_event_type = 'Lock')::int AS waiting_for_lock,
       extract(epoch FROM max(clock_timestamp() - coalesce(xact_start, query_start))
               FILTER (WHERE state <> 'idle'))::float8 AS longest
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
GROUP BY 1, 2 ORDER BY 1, 2
"""
SESSIONS = """
SELECT pid, coalesce(nullif(application_name, ''), '(none)') AS application_name, state,
       extract(epoch FROM clock_timestamp() - coalesce(xact_start, query_start))::float8 AS seconds, query AS statement
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'
ORDER BY coalesce(xact_start, query_start) LIMIT %s
"""


class Server:
    """The database that a scope is connected to. The scope's rows must be dicts."""

    def __init__(self, scope: PoolScope, address: str) -> None:
        self._scope = scope
        self._address = address
        self._groups: Sequence[dict[str, Any]] = ()
        self._seen = False

    async def look(self) -> ServerView:
        """Ask once. While the database is away, after a first answer, the view says so."""
        try:
            async with self._scope.acquire() as db:
                groups = [dict(row) for row in await db.fetch(GROUPS)]
                longest = [dict(row) for row in await db.fetch(SESSIONS, (LONGEST,))]
        except (PoolScopeError, DatabaseError, OSError) as error:
            if not self._seen:
                raise
            return ServerView(self._address, (), (), str(error).strip() or repr(error))
        self._seen = True
        for each in longest:  # psycopg2 puts the values into the text: they are nobody's business here
            each["statement"] = shown(each["statement"])
        return ServerView(self._address, groups, longest)
