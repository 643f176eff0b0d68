"""The driver: the only part that imports aiopg and psycopg2.

It shows the rest of the package a small protocol. ``Driver.open`` makes a Link; a Link runs one statement at a time,
says what transaction it is in, cancels, and closes. Each oddity of the libraries below is met here, once.
"""

from .driver import Driver
from .errors import OUT_OF_RESOURCES, DatabaseError, cancelled_by_server, sqlstate, without_values
from .link import FAILED, IDLE, IN_TRANSACTION, Link
from .port import BeforeStatement, Connector, OpenConnection, StatementObserver

__all__ = (
    "FAILED",
    "IDLE",
    "IN_TRANSACTION",
    "OUT_OF_RESOURCES",
    "BeforeStatement",
    "Connector",
    "DatabaseError",
    "Driver",
    "Link",
    "OpenConnection",
    "StatementObserver",
    "cancelled_by_server",
    "sqlstate",
    "without_values",
)
