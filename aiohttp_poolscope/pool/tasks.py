"""Tasks: the background work of one pool."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

__all__ = ("Tasks",)

T = TypeVar("T")

logger = logging.getLogger("aiohttp_poolscope")


class Tasks:
    """The tasks of one pool: named after it, cancelled together, ignorant of the request that called for them.

    ``loop`` and ``context`` are those that the pool was made in.
    """

    def __init__(self, key: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.context = contextvars.copy_context()
        self._key = key
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order of birth

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run ``work`` in a task of its own."""
        task = self.loop.create_task(work, name=f"poolscope {self._key}: {name}", context=self.context.copy())
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        """Those that go on."""
        return iter(tuple(self._tasks))

    async def cancel(self, limit: float) -> None:
        """Cancel every task and wait for their ends, ``limit`` seconds at most."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=limit)
            for task in late:  # a hook of the user's that holds on to its cancellation
                logger.warning("pool %r: %s does not end", self._key, task.get_name())
