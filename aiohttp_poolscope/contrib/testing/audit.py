"""What a test has left: connections in use, open transactions, tasks; and who."""

# ruff: noqa: SLF001 - it looks at what a handler should not see

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from aiohttp_poolscope.driver import Driver
from aiohttp_poolscope.errors import DatabaseUnavailable
from aiohttp_poolscope.events import LeaseCancelled, ReturnedDirty
from aiohttp_poolscope.pool import lifecycles, observing
from aiohttp_poolscope.pool.holders import describe, holders
from aiohttp_poolscope.web.outside import current

from .database import elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiohttp_poolscope.connection import ScopedConnection
    from aiohttp_poolscope.events import Event, Events
    from aiohttp_poolscope.pool import Lifecycle, Pool
    from aiohttp_poolscope.stats import Lease

__all__ = ("Audit",)

PATIENCE: Final = 1.0
"""Seconds that an application which goes on after the test has to end what the test began."""

OURS: Final = ("asyncio", "aiohttp_poolscope", "uvloop")

BACKEND_LIMIT: Final = 5.0
"""Seconds that the server has to notice that a connection was closed."""


@dataclass
class Born:
    """A task that was begun in a request: that of ``db``, ``where``."""

    ref: weakref.ref[asyncio.Task[Any]]
    db: ScopedConnection
    where: str

    @property
    def left(self) -> asyncio.Task[Any] | None:
        """The task if it goes on and its request does not."""
        task = self.ref()
        return None if task is None or task.done() or self.db._ended is None else task


class Audit:
    """What ``poolscope_audit`` is. ``findings``: what is wrong so far, in words."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self.passed = False
        self.scheduled = False
        self._runs: list[Lifecycle] = []
        self._scopes: set[Events] = set()
        self._subscriptions = contextlib.ExitStack()
        self._known: set[tuple[int, int]] = set()
        self._factories: dict[asyncio.AbstractEventLoop, Any] = {}
        self._born: list[Born] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[Audit]:
        """Note what happens in the pools there are, and in those that are made."""
        for run in lifecycles():
            self._known.update((id(db), db._lease) for _, db in holders(run.pool.gate))
            self._made(run)
        try:
            with observing(self._made), self._subscriptions:
                yield self
        finally:
            for loop, factory in self._factories.items():
                if not loop.is_closed():
                    loop.set_task_factory(factory)

    def look(self) -> None:
        """The test has passed, and its fixtures are still there. Fails it for what is certain already."""
        self.passed = True
        for run in self._runs:
            for _, db in holders(run.pool.gate):
                # Whose task goes on may be about to give it back: a handler that ends while the test does.
                if db.task is not None and db.task.done():
                    self._found_lease(db, "its task has ended")
        self.note_tasks()
        self._report()

    def note_tasks(self) -> None:
        """Look for tasks that were begun in a request and are still there when their application has ended."""
        for born in list(self._born):
            run = self._run_of(born.db)
            if run is not None and run.ended and not run.pool.tasks.loop.is_running():
                self._found_task(born)

    def finish(self) -> None:
        """All has ended that was to end with the test. Fails it for what is left."""
        if not self.passed:
            return  # its own failure is what there is to see
        for run in self._runs:
            loop = run.pool.tasks.loop
            if run.draining:
                self._ask_server(run.pool)
            elif not loop.is_closed() and not loop.is_running():
                loop.run_until_complete(self._look_at_open(run.pool))
        self._report()

    def _report(self) -> None:
        found, self.findings = self.findings, []
        if found:
            pytest.fail("poolscope_audit: " + "\n".join(found), pytrace=False)

    def _made(self, run: Lifecycle) -> None:
        self._runs.append(run)
        if run.events not in self._scopes:
            self._scopes.add(run.events)
            self._subscriptions.enter_context(run.events.listening(self._hear, ReturnedDirty, LeaseCancelled))
        loop = run.pool.tasks.loop
        if loop not in self._factories and not loop.is_closed():
            self._factories[loop] = before = loop.get_task_factory()
            loop.set_task_factory(self._task_factory(before))

    def _task_factory(self, before: Any) -> Callable[..., Any]:
        def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
            task = before(loop, coro, **options) if before else asyncio.Task(coro, loop=loop, **options)
            context = options.get("context")
            db = current.get() if context is None else context.get(current)
            if db is not None:
                self._born.append(Born(weakref.ref(task), db, _where()))
            return task

        return make

    def _hear(self, event: Event) -> None:
        if isinstance(event, ReturnedDirty):
            self._say(f"a transaction was left open by {_whose(event.lease)}: it was rolled back")
            return
        for run in self._runs:  # which of them are known already, an event does not say
            if run.draining:
                for _, db in holders(run.pool.gate):
                    self._found_lease(db, "the application ended, and drain_grace with it")

    def _found_lease(self, db: ScopedConnection, when: str) -> None:
        key = (id(db), db._lease)
        if key not in self._known:
            self._known.add(key)
            inside = ", in a transaction" if db.in_transaction else ""
            self._say(f"a connection was left in use{inside} by {_whose(describe(db, 0.0))} ({when})")

    def _found_task(self, born: Born) -> None:
        if (task := born.left) is not None:
            name = getattr(task.get_coro(), "__qualname__", task.get_name())
            self._say(f"a task was left behind by {born.db.who}: {name}, begun at {born.where}")
            self._born.remove(born)

    def _say(self, finding: str) -> None:
        if finding not in self.findings:
            self.findings.append(finding)

    async def _look_at_open(self, pool: Pool) -> None:
        """An application that goes on: it gets a moment to end what the test has begun."""

        def left() -> list[ScopedConnection]:
            return [db for _, db in holders(pool.gate) if (id(db), db._lease) not in self._known]

        def tasks() -> list[Born]:
            return [born for born in self._born if _pool_of(born.db) is pool and born.left is not None]

        end = time.monotonic() + PATIENCE
        while (left() or tasks()) and time.monotonic() < end:  # noqa: ASYNC110  nobody tells when
            await asyncio.sleep(0.01)
        for db in left():
            self._found_lease(db, f"{PATIENCE:g} s after the test")
        for born in tasks():
            self._found_task(born)

    def _run_of(self, db: ScopedConnection) -> Lifecycle | None:
        pool = _pool_of(db)
        return next((run for run in self._runs if run.pool is pool), None)

    def _ask_server(self, pool: Pool) -> None:
        """No backend of a pool that has ended may be left. One that cannot be asked has none."""
        name = pool.driver.name
        others = [run for run in self._runs if not run.draining and run.pool.driver.name == name]
        if others or pool.config.request_tag == "application_name":
            return
        with contextlib.suppress(DatabaseUnavailable):
            for pid, state, query in elsewhere(lambda: _backends(pool, name)):
                self._say(f"backend {pid} of pool {pool.key!r} is left on the server, {state}: {query}")


async def _backends(pool: Pool, name: str) -> list[Any]:
    driver = Driver(pool.config, "poolscope_audit")
    link = await driver.open()
    try:
        cursor = link.raw.cursor()
        end = time.monotonic() + BACKEND_LIMIT
        while True:
            await link.run(
                cursor,
                "SELECT pid, state, query FROM pg_stat_activity "
                "WHERE application_name = %s AND datname = current_database()",
                (name,),
            )
            found = list(cursor.fetchall())
            if not found or time.monotonic() > end:
                return found
            await asyncio.sleep(0.01)
    finally:
        link.close()
        await driver.close(1.0)


def _pool_of(db: ScopedConnection) -> object:
    """The pool that lends to it; of a request that reads from a replica, the one that lends now."""
    return getattr(db._lender, "source", db._lender)


def _whose(lease: Lease) -> str:
    # Its path is forgotten with the request.
    who = f"{lease.method} {lease.path or lease.route}" if lease.method else f"task {lease.task!r}"
    return f"{who}, borrowed at {lease.where}"


def _where() -> str:
    """The nearest line that is neither asyncio's nor ours."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        frame = frame.f_back
    return "an unknown line" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
