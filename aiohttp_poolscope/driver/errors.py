"""What the errors of psycopg2 and aiopg say, and a connection that is used wrongly."""

from __future__ import annotations

import asyncio

import psycopg2
import psycopg2.extensions

__all__ = ("OUT_OF_RESOURCES", "DatabaseError", "cancelled_by_server", "in_words", "sqlstate", "without_values")

DatabaseError = psycopg2.Error

BUSY = (
    "another statement is running on this connection: await it first, "
    "or borrow a second connection with scope.acquire()"
)

OTHER_LOOP = (
    "a connection belongs to the event loop its pool was made in, and this is another one: a thread that runs "
    "asyncio.run(), say. Use asyncio.run_coroutine_threadsafe(..., loop) with the loop of the application"
)

OUT_OF_RESOURCES = "53"
"""SQLSTATE class 53: disk full, out of memory, too many connections. The statement is not at fault."""


def sqlstate(error: BaseException) -> str | None:
    """The five-character SQLSTATE of a database error, or of the database error that caused it."""
    while not isinstance(error, psycopg2.Error):
        if error.__cause__ is None:
            return None
        error = error.__cause__
    code: str | None = error.pgcode
    return code


def cancelled_by_server(error: asyncio.CancelledError) -> bool:
    """Whether it is aiopg's way of saying that the server cancelled a statement, and nobody cancelled the task."""
    task = asyncio.current_task()
    return (
        isinstance(error.__context__, psycopg2.extensions.QueryCanceledError)
        and task is not None
        and not task.cancelling()
    )


def without_values(error: BaseException) -> str:
    """What an error says, on one line; of a statement's only its class and SQLSTATE: its words may have values."""
    code = sqlstate(error)
    return in_words(error) if code is None else f"{type(error).__name__} ({code})"


def in_words(error: BaseException) -> str:
    """What a driver's error says, on one line."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return "; ".join(line for line in lines if line) or type(error).__name__
