"""Where the fixtures enter the core: the run of a scope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope.errors import ConfigError
from aiohttp_poolscope.web.outside import run_of

if TYPE_CHECKING:
    from aiohttp_poolscope import PoolScope
    from aiohttp_poolscope.pool import Lifecycle

__all__ = ("serving",)


def serving(scope: PoolScope, call: str) -> Lifecycle:
    """The run of a scope. ConfigError, naming the ``call``, for one that does not run."""
    run = run_of(scope)
    if run is None or run.draining:
        raise ConfigError(f"{call}: the scope is {scope.state}; start its application first")
    return run
