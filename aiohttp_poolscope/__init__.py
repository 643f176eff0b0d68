"""One PostgreSQL connection per aiohttp request, that always comes back."""

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.connection import ScopedConnection, ScopedCursor, Stream, Transaction
from aiohttp_poolscope.request import request_id
from aiohttp_poolscope.web import PoolScope, open, setup  # noqa: A004
from aiohttp_poolscope.web.marks import eager, lazy, no_connection, replica, transactional

from . import events
from .errors import (
    ClientGone,
    ConfigError,
    ConnectionBusy,
    ConnectionReleased,
    DatabaseUnavailable,
    OutcomeUnknown,
    PoolExhausted,
    PoolScopeError,
    QueryTimeout,
    QueueFull,
    ShuttingDown,
    TransactionFailed,
)
from .stats import HistogramSnapshot, Lease, PoolStats

__version__ = "0.1.0"

__all__ = (
    "ClientGone",
    "ConfigError",
    "ConnectionBusy",
    "ConnectionReleased",
    "DatabaseUnavailable",
    "HistogramSnapshot",
    "Lease",
    "OutcomeUnknown",
    "PoolConfig",
    "PoolExhausted",
    "PoolScope",
    "PoolScopeError",
    "PoolStats",
    "QueryTimeout",
    "QueueFull",
    "ScopedConnection",
    "ScopedCursor",
    "ShuttingDown",
    "Stream",
    "Transaction",
    "TransactionFailed",
    "__version__",
    "eager",
    "events",
    "lazy",
    "no_connection",
    "open",
    "replica",
    "request_id",
    "setup",
    "transactional",
)
