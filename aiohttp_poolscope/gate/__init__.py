"""Pure decisions: the next connection's borrower, refusals under overload, and pauses between attempts to connect."""

from __future__ import annotations

from .breaker import Breaker, BreakerState
from .gate import Gate, Room
from .overload import Overload
from .slots import LENT, Outcome, Slot, SlotState, Waiter

__all__ = ("LENT", "Breaker", "BreakerState", "Gate", "Outcome", "Overload", "Room", "Slot", "SlotState", "Waiter")
