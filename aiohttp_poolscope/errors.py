"""What can go wrong, and which HTTP answer it becomes when a handler lets it through.

Each error carries two texts. ``str(error)`` is for the log: it names the pool, the numbers and the next step.
``title`` is for the client: it is fixed, so that no host, user or driver text can reach a response.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = (
    "ClientGone",
    "ConfigError",
    "ConnectionBusy",
    "ConnectionReleased",
    "DatabaseUnavailable",
    "OutcomeUnknown",
    "PoolExhausted",
    "PoolScopeError",
    "QueryTimeout",
    "QueueFull",
    "ShuttingDown",
    "TransactionFailed",
)


class PoolScopeError(Exception):
    """Base of every error this package raises itself.

    ``status`` is the HTTP status the middleware answers with, ``code`` the machine-readable name in the body,
    ``title`` the sentence in the body and ``retry_after`` the ``Retry-After`` header in seconds (None: no header).
    ``request_id`` names the request whose borrow was refused, None where there was none. ``pool`` is the key of the
    pool, and ``statement`` the text of the statement that was in flight, without any value in it, where it is known.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "The request could not be completed."
    retry_after: int | None = None
    request_id: str | None = None
    pool: str | None = None
    statement: str | None = None


class ConfigError(PoolScopeError):
    """A setting that cannot be right, said with the setting's name. Raised at construction or start-up."""

    code = "configuration-error"


class PoolExhausted(PoolScopeError):
    """No connection within ``acquire_timeout``, or shed because the queue stands (503)."""

    status = 503
    code = "pool-exhausted"
    title = "All database connections are in use. Try again shortly."
    retry_after = 1


class QueueFull(PoolExhausted):
    """``max_waiting`` requests are waiting already (503)."""

    code = "queue-full"
    title = "Too many requests are waiting for a database connection. Try again shortly."


class DatabaseUnavailable(PoolScopeError):
    """Connecting fails, the breaker is open, or the connection died under the handler (503)."""

    status = 503
    code = "database-unavailable"
    title = "The database cannot be reached. Try again shortly."
    retry_after = 1


class ShuttingDown(PoolScopeError):
    """The pool is draining or closed (503, ``Connection: close``)."""

    status = 503
    code = "shutting-down"
    title = "The service is shutting down. Try again on another instance."
    retry_after = 1


class QueryTimeout(PoolScopeError):
    """A statement was cancelled: ``statement_timeout``, a per-call ``timeout``, or an operator (504)."""

    status = 504
    code = "query-timeout"
    title = "The database did not answer in time."


class OutcomeUnknown(PoolScopeError):
    """The connection was lost while a COMMIT, or a statement that may write, was in flight (500).

    It may have been carried out. Only what can be repeated without harm should be repeated.
    """

    code = "outcome-unknown"
    title = "It is not known whether the request was carried out. Look before you repeat it."


class ClientGone(PoolScopeError):
    """The client left before its turn came. The handler does not run; 499 is seen in the access log only."""

    status = 499
    code = "client-gone"
    title = "The client closed the connection."


class ConnectionReleased(PoolScopeError):
    """A connection was used after it went back to the pool (500)."""

    code = "connection-released"


class ConnectionBusy(PoolScopeError):
    """A second statement was started while one is running on the same connection (500)."""

    code = "connection-busy"


class TransactionFailed(PoolScopeError):
    """COMMIT of a transaction that PostgreSQL has already failed: nothing was written (500)."""

    code = "transaction-failed"
