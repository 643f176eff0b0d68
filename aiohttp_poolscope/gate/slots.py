"""Slots for connections, their states and what leads from one to another; and places in the queue. Pure."""

from __future__ import annotations

import enum
from typing import Any, Generic, TypeVar

__all__ = (
    "CHECKING",
    "GONE",
    "IDLE",
    "LENT",
    "REPAIRING",
    "STATES",
    "TRANSITIONS",
    "Outcome",
    "Slot",
    "SlotState",
    "Waiter",
)

L = TypeVar("L")


class SlotState(enum.Enum):
    """Where a connection is; it is in exactly one of these."""

    IDLE = "idle"
    LENT = "lent"
    REPAIRING = "repairing"
    CHECKING = "checking"
    GONE = "gone"


class Outcome(enum.Enum):
    """How a borrow ends; each ends in exactly one of these."""

    LENT = "lent"
    TIMED_OUT = "timed_out"
    REFUSED = "refused"
    SHED = "shed"
    CLIENT_GONE = "client_gone"
    CANCELLED = "cancelled"
    FAILED = "failed"


IDLE, LENT, REPAIRING, CHECKING, GONE = SlotState

TRANSITIONS: dict[str, tuple[tuple[SlotState | None, ...], tuple[SlotState, ...]]] = {
    "fill": ((None,), (IDLE, LENT)),
    "try_acquire": ((IDLE,), (LENT,)),
    "cancel_lend": ((LENT,), (REPAIRING,)),
    "withdraw": ((LENT,), (IDLE, LENT)),
    "give": ((LENT, REPAIRING, CHECKING), (IDLE, LENT)),
    "repair": ((IDLE, LENT), (REPAIRING,)),
    "next_check": ((IDLE,), (CHECKING,)),
    "lost": ((IDLE, LENT, REPAIRING, CHECKING), (GONE,)),
}
"""Each call of the gate that changes a slot's state: from any of these (None: it was being opened) to one of those."""

STATES = frozenset(state for before, _ in TRANSITIONS.values() for state in before if state is not None)
"""States of the slots that a gate has: something leads on from each."""


class Slot(Generic[L]):
    """Room for one open connection. ``since``: when it entered its state; ``used``: when it was last returned."""

    __slots__ = ("expires", "holder", "link", "since", "state", "used")

    def __init__(self, link: L, *, expires: float = float("inf")) -> None:
        self.link = link
        self.expires = expires
        self.state = REPAIRING
        self.since = 0.0
        self.used = 0.0
        self.holder: Any = None


class Waiter(Generic[L]):
    """A place in the queue. The pool's own kind says how to wake it and whether its client has left."""

    __slots__ = ("outcome", "running", "since", "slot")

    def __init__(self, *, running: bool = False) -> None:
        self.running = running
        self.since = 0.0
        self.outcome: Outcome | None = None
        self.slot: Slot[L] | None = None

    def client_gone(self) -> bool:
        """Whether its client has left, so that it must not get a connection."""
        return False

    def wake(self) -> None:
        """Called once, when ``outcome`` is set by somebody else than the waiter itself."""
