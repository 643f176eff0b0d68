"""Where the fixtures reach into the core: the run of a scope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope.errors import ConfigError

if TYPE_CHECKING:
    from aiohttp_poolscope import PoolScope
    from aiohttp_poolscope.pool import Lifecycle

__all__ = ("run_of",)


def run_of(scope: PoolScope, call: str) -> Lifecycle:
    """The run of a scope. ConfigError, naming the ``call``, for one that does not run."""
    run = scope._run  # noqa: SLF001
    if run is None or run.draining:
        raise ConfigError(f"{call}: the scope is {scope.state}; start its application first")
    return run
