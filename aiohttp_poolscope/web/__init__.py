"""The plugin as an aiohttp application meets it: scope, middleware, marks on handlers, errors as responses."""

from .scope import PoolScope, ScopeKey, setup

__all__ = ("PoolScope", "ScopeKey", "setup")
