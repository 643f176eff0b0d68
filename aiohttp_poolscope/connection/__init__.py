"""What a handler holds: one connection, its statements, cursors, transactions and streams."""

from .connection import Acquisition, ScopedConnection
from .cursor import ScopedCursor
from .lender import Lender
from .statements import ISOLATIONS, Isolation
from .stream import Stream
from .transaction import Transaction

__all__ = (
    "ISOLATIONS",
    "Acquisition",
    "Isolation",
    "Lender",
    "ScopedConnection",
    "ScopedCursor",
    "Stream",
    "Transaction",
)
