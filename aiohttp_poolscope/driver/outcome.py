"""Outcome: what became of a statement when not the statement, but its connection or its time was at fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg2
import psycopg2.extensions

from aiohttp_poolscope.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    PoolScopeError,
    QueryTimeout,
    TransactionFailed,
)
from aiohttp_poolscope.sql.effects import may_have_written
from aiohttp_poolscope.sql.masking import shown
from aiohttp_poolscope.sql.tokens import statements

from .errors import in_words

if TYPE_CHECKING:
    from .address import Target

__all__ = ("check_size", "named", "own_error", "refuse_unless_rollback")


def refuse_unless_rollback(text: str) -> None:
    """Raise TransactionFailed for whatever is no ROLLBACK: a statement before it has ended late, or for nobody."""
    found = statements(text)
    if found and found[0][0] in {"ROLLBACK", "ABORT"}:
        return
    raise TransactionFailed(
        "a statement in this transaction was cancelled for its time, or with its task, and ended well all the same: "
        "what it has done is rolled back. Let its QueryTimeout, or the cancellation, leave the transaction() block"
    )


LARGEST: Final = 0x3FFFFFFF - 6
"""Bytes of the largest statement that fits into a message of the protocol."""


def check_size(query: bytes | None) -> None:
    """Raise PoolScopeError if the statement that the connection has died of was too large: nothing of it was run."""
    if query is not None and len(query) > LARGEST:
        raise PoolScopeError(
            f"the statement has {len(query):,} bytes with its values: PostgreSQL takes {LARGEST:,} at most, and closes "
            "the connection. Send it in parts"
        )


def named(error: Exception, pool: str | None, sent: object) -> Exception:
    """The error itself; if it is ours, it knows the key of the pool and the statement that was sent."""
    if isinstance(error, PoolScopeError):
        error.pool = pool
        if sent is not None:
            error.statement = shown(sent)
    return error


def own_error(
    error: psycopg2.Error,
    *,
    sent: str | None,
    in_transaction: bool,
    target: Target,
    closed: Any,
    reason: PoolScopeError | None,
    late: QueryTimeout | None,
) -> PoolScopeError | None:
    """What is raised instead of the driver's ``error``; None: it is the statement's own.

    ``sent`` is the text that was sent, None if nothing was, and ``in_transaction`` whether a transaction was open then.
    ``reason`` is why somebody closed the connection, ``late`` that the statement was cancelled for its time.
    """
    if reason is None and isinstance(error, psycopg2.extensions.QueryCanceledError):
        return late or QueryTimeout(f"the statement was cancelled: {in_words(error)}")
    if reason is None and not closed:
        return None
    doubtful = sent is not None and may_have_written(sent, in_transaction=in_transaction)
    if doubtful and not isinstance(reason, QueryTimeout):
        why = f"the connection to {target} died: {in_words(error)}" if reason is None else str(reason)
        return OutcomeUnknown(
            f"{why}. A statement that may write was in flight, or a COMMIT: it may have been carried out, or not. "
            "Look before you repeat it"
        )
    return reason or DatabaseUnavailable(f"the connection to {target} died: {in_words(error)}")
