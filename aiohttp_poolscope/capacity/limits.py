"""Budget: whether all processes together ask for more connections than the server has to give. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("LIMITS", "Limits", "overdrawn")

LIMITS = """
SELECT current_setting('max_connections')::int AS general,
       current_setting('superuser_reserved_connections')::int AS superuser_reserved,
       coalesce(current_setting('reserved_connections', true), '0')::int AS reserved,
       r.rolconnlimit AS role, d.datconnlimit AS database,
       (SELECT count(*) FROM pg_stat_activity
         WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND (usesysid <> r.oid OR datid <> d.oid))::int AS others
  FROM pg_roles AS r, pg_database AS d
 WHERE r.rolname = current_user AND d.datname = current_database()
"""
"""What the server says of its limits; -1 is none. ``reserved_connections`` exists since PostgreSQL 16.

``others`` are connections of other roles or to other databases. One of this role to this database may be our own:
another process's, or those of the release that this one replaces.

Each column has a name of its own, because a row may be a dict or a namedtuple.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections a server has, in the order of the LIMITS query."""

    max_connections: int
    superuser_reserved: int
    reserved: int
    role: int
    database: int
    others: int = 0

    @property
    def available(self) -> int:
        """What an ordinary role can have of them."""
        general = self.max_connections - self.superuser_reserved - self.reserved - self.others
        return max(0, min([general, *(limit for limit in (self.role, self.database) if limit >= 0)]))


def overdrawn(limits: Limits, *, processes: int, maxsize: int, budget: float) -> str | None:
    """What is wrong with ``processes * maxsize`` connections, with the numbers and what to change; None if nothing."""
    wanted, allowed = processes * maxsize, int(limits.available * budget)
    if wanted <= allowed:
        return None
    numbers = (
        f"max_connections {limits.max_connections}, {limits.superuser_reserved + limits.reserved} of them reserved, "
        f"{limits.others} in use by others, "
        f"role limit {_limit(limits.role)}, database limit {_limit(limits.database)}"
    )
    return (
        f"{processes} {'process' if processes == 1 else 'processes'} with maxsize {maxsize} may open {wanted} "
        f"connections, and the server has {limits.available} to give ({numbers}); {budget:.0%} of that is {allowed}. "
        f"Set maxsize to {max(1, allowed // processes)} or less, run fewer processes, or put PgBouncer in between"
    )


def _limit(limit: int) -> str:
    return "none" if limit < 0 else str(limit)
