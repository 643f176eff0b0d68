"""Replica: the lender of a request that reads from a replica, and its way home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp_poolscope.errors import DatabaseUnavailable, PoolExhausted, ShuttingDown

if TYPE_CHECKING:
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.connection import ScopedConnection
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.gate import Slot
    from aiohttp_poolscope.pool import Pool

__all__ = ("ReplicaOrHome", "not_carried")

RESETS: Final = ("rollback", "auto", "full")
"""From the weakest, which any other contains, to the strongest. SQL of one's own compares with no other."""


def not_carried(scope: PoolConfig, replica: PoolConfig) -> str | None:
    """What a replica's connections lack of what a scope does to its own, in words; None: nothing."""
    for name in ("on_acquire", "on_release", "request_tag", "reset"):
        wanted, has = getattr(scope, name), getattr(replica, name)
        if wanted in (has, None, "off", RESETS[0]) or (name == "reset" and _is_stronger(has, wanted)):
            continue
        return (
            f"its {name} is {_shown(has)}, and that of pool {scope.key!r}, whose requests it would serve, is "
            f"{_shown(wanted)}. Write {name}={_shown(wanted)} in the replica's settings; or, if its connections need "
            "something else, read_from(replica, hooks='own')"
        )
    return None


def _shown(value: Any) -> str:
    return str(getattr(value, "__qualname__", repr(value)))


def _is_stronger(reset: str, than: str) -> bool:
    return reset in RESETS and than in RESETS and RESETS.index(reset) > RESETS.index(than)


class ReplicaOrHome:
    """Lends from a replica's pool, and from ``home``, that of the scope that was asked, while the replica cannot.

    ``source`` is the pool that lends now. Each request has one of its own: where it falls back to is no affair of the
    replica, which several scopes may read from. Once home, it stays there.
    """

    __slots__ = ("home", "source")

    def __init__(self, replica: Pool, home: Pool) -> None:
        self.source = replica
        self.home = home

    @property
    def key(self) -> str:
        """The key of the pool that lends now."""
        return self.source.key

    @property
    def stacks(self) -> bool:
        """Whether that pool keeps stacks."""
        return self.source.stacks

    def check_loop(self) -> None:
        """Raise PoolScopeError unless called in the loop of the pool that lends now."""
        self.source.check_loop()

    async def borrow(self, db: ScopedConnection, timeout: float | None = None) -> None:
        """Borrow; at home if the replica's pool is closing, or its database is away."""
        try:
            await self.source.borrow(db, timeout)
        except (DatabaseUnavailable, PoolExhausted, ShuttingDown):
            gate = self.source.gate
            # A replica with connections is only busy: its load is not for the primary.
            if self.source is self.home or (gate.slots and not gate.draining):
                raise
            self.source = self.home
            await self.source.borrow(db, timeout)

    def take_back(self, slot: Slot[OpenConnection]) -> None:
        """To the pool that has lent it."""
        self.source.take_back(slot)
