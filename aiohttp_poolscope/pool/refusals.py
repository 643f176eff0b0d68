"""Refusals: why a borrow was not served, as the error that its borrower gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.errors import (
    ClientGone,
    DatabaseUnavailable,
    PoolExhausted,
    PoolScopeError,
    QueueFull,
    ShuttingDown,
)
from aiohttp_poolscope.gate import Outcome

if TYPE_CHECKING:
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.gate import Gate

__all__ = ("refusal",)


def refusal(
    config: PoolConfig, gate: Gate[Any], outcome: Outcome | None, *, waited: float, problem: str
) -> PoolScopeError:
    """The error for a borrow that ended with ``outcome`` after ``waited`` seconds.

    ``problem`` is why the last attempt to connect failed, empty if it did not.
    """
    key = config.key
    numbers = f"{gate.lent}/{gate.maxsize} in use, {gate.waiting} waiting, waited {waited:.1f} s"
    match outcome:
        case Outcome.CLIENT_GONE:
            return ClientGone(f"pool {key!r}: the client left while its request waited ({numbers})")
        case Outcome.FAILED:
            return DatabaseUnavailable(f"pool {key!r}: {problem} ({numbers})")
        case Outcome.REFUSED if gate.draining:
            return ShuttingDown(f"pool {key!r} is shutting down")
        case Outcome.REFUSED:
            return QueueFull(f"pool {key!r}: the queue is full ({numbers}). max_waiting is {config.max_waiting}")
        case Outcome.SHED:
            return PoolExhausted(
                f"pool {key!r}: more requests come than can be served, the longest waiting are refused "
                f"({numbers}). Shorten the leases, raise maxsize, or see queue_target"
            )
    trouble = f" {problem}." if problem else ""
    return PoolExhausted(
        f"pool {key!r}: no connection within acquire_timeout ({numbers}).{trouble} scope.leases() tells who holds them"
    )
