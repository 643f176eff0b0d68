"""What a handler holds: one connection, its statements, cursors, transactions and streams."""

from .connection import Acquisition, ScopedConnection
from .cursor import ScopedCursor
from .statements import ISOLATIONS, Isolation, Stream, Transaction

__all__ = ("ISOLATIONS", "Acquisition", "Isolation", "ScopedConnection", "ScopedCursor", "Stream", "Transaction")
