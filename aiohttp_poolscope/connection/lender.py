"""Lender: what a connection needs of whoever lends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.gate import Slot

    from .connection import ScopedConnection

__all__ = ("Lender",)


class Lender(Protocol):
    """A pool, as its connections see it."""

    @property
    def key(self) -> str:
        """Its name, for messages."""

    @property
    def stacks(self) -> bool:
        """Whether the whole stack of each borrow is kept."""

    def check_loop(self) -> None:
        """Raise PoolScopeError unless called in the event loop that its connections belong to."""

    async def borrow(self, db: ScopedConnection, timeout: float | None = None) -> None:
        """Attach a slot to ``db`` within ``timeout`` seconds (default ``acquire_timeout``), or raise why there is none.

        Cancelled, it leaves nothing attached.
        """

    def take_back(self, slot: Slot[OpenConnection]) -> None:
        """The lease of ``slot`` has ended. It awaits nothing, so that no cancellation can cut it short."""
