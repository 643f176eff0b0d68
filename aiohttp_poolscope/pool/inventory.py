"""Inventory: how a connection of the pool ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope.gate import SlotState

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.driver import Connector, OpenConnection
    from aiohttp_poolscope.events import CloseReason
    from aiohttp_poolscope.gate import Gate, Slot

    from .reporter import Reporter

__all__ = ("Inventory",)


class Inventory:
    """Closes connections in the one right way. ``closed`` counts them; ``dead`` those of them that were found dead."""

    def __init__(self, gate: Gate[OpenConnection], driver: Connector, reporter: Reporter, clock: Clock) -> None:
        self.closed = self.dead = 0
        self._gate = gate
        self._driver = driver
        self._reporter = reporter
        self._now = clock.monotonic

    def discard(self, slot: Slot[OpenConnection], reason: CloseReason, cause: str | None = None) -> None:
        """Close a connection and free its room. Harmless when it is gone already."""
        if slot not in self._gate.slots:
            return
        try:
            slot.link.close()
        finally:  # whatever the driver, or the loop, has against it: it is lent to nobody again
            self._gate.lost(slot, self._now())
            self.closed += 1
            self.dead += reason == "dead"
            self._driver.forget_empty()
            self._reporter.closed(slot, reason, cause)

    def discard_dead(self, slot: Slot[OpenConnection]) -> None:
        """Discard a connection that was found dead."""
        self.discard(slot, "dead")

    def retire(self, chosen: Callable[[OpenConnection], bool]) -> None:
        """Close the chosen connections as they come back; those that are idle, now."""
        for slot in [slot for slot in self._gate.slots if chosen(slot.link)]:
            slot.expires = float("-inf")
            if slot.state is SlotState.IDLE:
                self.discard(slot, "expired")
