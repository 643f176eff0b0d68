"""Where the fixtures reach into the core: the pools that are made, and the scope that each is of."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

from aiohttp_poolscope.errors import ConfigError
from aiohttp_poolscope.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiohttp_poolscope import PoolScope
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.events import Events

__all__ = ("pool_of", "pools_alive", "pools_made")


@contextlib.contextmanager
def pools_made(made: Callable[[Pool, Events], None]) -> Iterator[None]:
    """Call ``made(pool, events)`` for each pool that is made inside the block, before it opens anything."""
    make = Pool.__init__

    def make_and_tell(self: Pool, config: PoolConfig, events: Events) -> None:
        make(self, config, events)
        made(self, events)

    Pool.__init__ = make_and_tell  # type: ignore[method-assign]
    try:
        yield
    finally:
        Pool.__init__ = make  # type: ignore[method-assign]


def pool_of(scope: PoolScope, call: str) -> Pool:
    """The pool of a scope that runs. ConfigError, naming the ``call``, for one that does not."""
    pool = scope._pool  # noqa: SLF001
    if pool is None or pool.drain.begun:
        raise ConfigError(f"{call}: the scope is {scope.state}; start its application first")
    return pool


def pools_alive() -> list[Pool]:
    """The pools that there are and that have not begun to end: of applications that live longer than one test."""
    return [found for found in gc.get_objects() if type(found) is Pool and not found.drain.begun]
