"""The plugin as an aiohttp application meets it: scope, middleware, marks on handlers, errors as responses."""

from .middleware import ScopeKey
from .scope import PoolScope, open, setup  # noqa: A004

__all__ = ("PoolScope", "ScopeKey", "open", "setup")
