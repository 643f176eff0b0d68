"""The pools of a process, as a registry of prometheus_client reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope import ConfigError, PoolScope
from aiohttp_poolscope.contrib.extras import extra

from .metrics import families
from .workers import read

with extra("prometheus"):
    from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric as Family

__all__ = ("PoolScopeCollector", "must_differ")


class PoolScopeCollector(Collector):
    """The pools of this process, for a registry of prometheus_client.

    ``registry.register(PoolScopeCollector(scope, reports))``. ``setup_metrics`` needs none of it; this is for those
    who have a route for their metrics. It works before a scope starts and after it has closed, and from any thread.
    One collector has all scopes: a second one in the same registry is refused there.

    Raises ConfigError when there is no scope, or two with one key: their series would be the same.
    """

    def __init__(self, *scopes: PoolScope) -> None:
        must_differ("PoolScopeCollector(*scopes)", scopes)
        self._scopes = scopes

    def describe(self) -> Iterator[Family]:
        """The names alone: a registry asks for them to find what is there twice."""
        return families([], several=False)

    def collect(self) -> Iterator[Family]:
        """What the pools say now."""
        return families([read(scope) for scope in self._scopes], several=False)


def must_differ(call: str, scopes: tuple[PoolScope, ...]) -> None:
    """Raise ConfigError for no scope, for what is none, and for two with one key."""
    if not scopes:
        raise ConfigError(f"{call}: give at least one scope")
    for scope in scopes:
        if not isinstance(scope, PoolScope):
            raise ConfigError(f"{call}: {scope!r} is no PoolScope")
    keys = [scope.config.key for scope in scopes]
    if len(set(keys)) < len(keys):
        names = ", ".join(map(repr, keys))
        raise ConfigError(f"{call}: each scope needs a key of its own, not {names}: it is the label of its series")
