"""PoolScope: the plugin. A middleware that gives each request a connection, and a context that holds the pool."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.errors import ConfigError

from .middleware import Middleware
from .outside import is_plain
from .replica import not_carried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from aiohttp import web
    from yarl import URL

    from aiohttp_poolscope.config import Source

__all__ = ("PoolScope", "open", "setup")

logger = logging.getLogger("aiohttp_poolscope")


class PoolScope(Middleware):
    """One pool of PostgreSQL connections for one application, and a connection for each of its requests.

    ``dsn`` is a URL, libpq's ``key=value`` form, None (libpq's ``PG*`` variables and service file), or a function (also
    async) that is asked for one at every connect. ``settings`` are those of PoolConfig. Raises ConfigError, with the
    setting's name, for whatever cannot be right.
    """

    def __init__(self, dsn: str | URL | Source = None, /, **settings: Any) -> None:
        self._set_config(PoolConfig.build(dsn, **settings))

    @classmethod
    def from_env(cls, prefix: str = "DB_", **settings: Any) -> PoolScope:
        """A scope configured by environment variables: ``DB_HOST``, ``DB_POOL_MAX``, ... and ``DATABASE_URL``."""
        scope = cls.__new__(cls)
        scope._set_config(PoolConfig.from_env(prefix, **settings))
        return scope

    def _set_config(self, config: PoolConfig) -> None:
        Middleware.__init__(self, config)
        self._hooked: web.Application | None = None

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<PoolScope {self.config.key!r} {self.state}: {stats.in_use} in use, {stats.idle} idle, "
            f"{stats.waiting} waiting of {stats.maxsize}>"
        )

    def setup(self, app: web.Application) -> PoolScope:
        """Add the middleware, the cleanup context and the start of the drain to ``app``."""
        app.middlewares.append(self.middleware)
        app.cleanup_ctx.append(self.cleanup_ctx)
        self._hook_shutdown(app)
        return self

    def read_from(
        self,
        replica: PoolScope,
        when: Callable[[web.Request], bool] | None = None,
        *,
        hooks: Literal["same", "own"] = "same",
    ) -> None:
        """Serve reads from another scope: one with ``readonly=True`` and ``target="prefer-standby"``, say.

        Handlers marked ``@poolscope.replica``, and requests for which ``when(request)`` is true, get their
        ``request["db"]`` from ``replica``; from this scope itself while that one is not running or its database is
        away. It has to be set up in the application, too; under its own key requests borrow at first use only, and
        its end refuses nobody. A replica is behind: what was just written may be missing.

        A connection of the replica is prepared and cleared as one of this scope: it has the same ``on_acquire``,
        ``on_release`` and ``request_tag``, and a ``reset`` no weaker. ``hooks="own"``: it has its own, and rightly so.

        Raises ConfigError when ``replica`` is not another scope, or lacks one of these, or ``when`` is no function.
        """
        if not isinstance(replica, PoolScope) or replica is self or replica.config.key == self.config.key:
            raise ConfigError(f"read_from(replica={replica!r}): must be another PoolScope, with a key of its own")
        if when is not None and not is_plain(when):
            raise ConfigError(f"read_from(when={when!r}): must be a plain function of one argument, the request")
        if hooks not in ("same", "own"):
            raise ConfigError(f"read_from(hooks={hooks!r}): must be 'same' or 'own'")
        if hooks == "same" and (missing := not_carried(self.config, replica.config)) is not None:
            raise ConfigError(f"read_from(replica={replica.config.key!r}): {missing}")
        self._replica, self._reads = replica, when
        replica._is_replica = True

    async def cleanup_ctx(self, app: web.Application) -> AsyncIterator[None]:
        """Open the pool, and at the end drain and close it. For ``app.cleanup_ctx``."""
        if not app.on_shutdown.frozen:  # in a sub-application it is, by now: there only setup() can do it
            self._hook_shutdown(app)
        self._needed_by.append(app)
        try:
            self._look_at(app)
            await self._enter()
            try:
                yield
            finally:
                await self._leave()  # set up in several applications, it lives until the last of them ends
        finally:
            self._ends(app)

    def _look_at(self, app: web.Application) -> None:
        """Warn of what would be a riddle later."""
        if app.middlewares.count(self.middleware) > 1:
            said = "stands in app.middlewares more than once: scope.setup(app) has added it already"
        elif self._has_namesake(app):
            said = "stands beside that of another scope of this key, and hides its connection: give one another key"
        elif self.config.skip is None and not self._is_replica and not self._has_middleware(app):
            said = (
                f"is in no application, so request[{self.config.key!r}] will not exist: scope.setup(app) adds it, or "
                "app.middlewares.append(scope.middleware). For scope.acquire() alone say skip=lambda request: True"
            )
        else:
            return
        logger.warning("pool %r: the middleware %s", self.config.key, said, extra={"pool": self.config.key})

    def _has_namesake(self, app: web.Application) -> bool:
        owners = [getattr(middleware, "__self__", None) for middleware in app.middlewares]
        return any(isinstance(it, PoolScope) and it is not self and it.key == self.key for it in owners)

    def _has_middleware(self, app: web.Application) -> bool:
        return self.middleware in app.middlewares or any(map(self._has_middleware, app._subapps))

    def begin_drain(self) -> None:
        """Refuse new requests and start to close. Readiness says 503 from now on. Harmless when repeated."""
        if self._run is not None:
            self._run.begin_drain()

    def _hook_shutdown(self, app: web.Application) -> None:
        if self._hooked is not app:
            self._hooked = app
            # First of all: other hooks may take their time, and handlers hold our connections meanwhile.
            app.on_shutdown.insert(0, self._on_shutdown)

    async def _on_shutdown(self, app: web.Application) -> None:
        self._ends(app)
        if not self._needed_by:
            self.begin_drain()

    def _ends(self, app: web.Application) -> None:
        self._needed_by = [each for each in self._needed_by if not _is_within(each, app)]


def setup(app: web.Application, dsn: str | URL | Source = None, /, **settings: Any) -> PoolScope:
    """Make a PoolScope and set it up in ``app``: ``scope = poolscope.setup(app, dsn, maxsize=20)``."""
    return PoolScope(dsn, **settings).setup(app)


def open(dsn: str | URL | Source = None, /, **settings: Any) -> AbstractAsyncContextManager[PoolScope]:  # noqa: A001
    """A running scope without an aiohttp application: ``async with poolscope.open(dsn, maxsize=2) as scope``.

    For command lines, workers, scripts and migrations. Arguments and errors are those of PoolScope; the block begins as
    ``PoolScope.running`` does, and its end drains and closes the pool.
    """
    return PoolScope(dsn, **settings).running()


def _is_within(app: object, outer: web.Application) -> bool:
    return app is outer or any(_is_within(app, inner) for inner in outer._subapps)
