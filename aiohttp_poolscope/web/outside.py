"""Outside: a scope for code outside of requests, and what there is to know about it. It knows nothing of aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import random
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from aiohttp_poolscope.clock import SYSTEM
from aiohttp_poolscope.connection import Acquisition, ScopedConnection
from aiohttp_poolscope.driver import DatabaseError, sqlstate
from aiohttp_poolscope.errors import ConfigError, DatabaseUnavailable, PoolScopeError, ShuttingDown
from aiohttp_poolscope.events import Events
from aiohttp_poolscope.logs import LOGGED, begin_anew, log_callback_error, write
from aiohttp_poolscope.pool import Lifecycle, leases
from aiohttp_poolscope.stats import Lease, PoolStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.connection import Isolation, Transaction
    from aiohttp_poolscope.driver import Connector, OpenConnection
    from aiohttp_poolscope.events import Event
    from aiohttp_poolscope.gate import Slot
    from aiohttp_poolscope.pool import Pool
    from aiohttp_poolscope.stats import Duration

__all__ = ("Outside", "State", "current", "is_plain", "on_another_run", "run_of", "slots_of")

T = TypeVar("T")
C = TypeVar("C", bound="Callable[[Event], object]")
State = Literal["starting", "serving", "draining", "closed"]

RETRIABLE = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected: the same transaction may succeed when it is run again."""

LONGEST_PAUSE = 1.0
"""Seconds: the upper limit of the random pause before a transaction is run again."""

current: contextvars.ContextVar[ScopedConnection | None] = contextvars.ContextVar("poolscope_current", default=None)
"""The connection of the request that is being handled: a lease taken beside it is for the same request."""


def is_plain(callback: object) -> bool:
    """Whether it can be called, and is not async."""
    called = getattr(callback, "__call__", None)  # noqa: B004  an object may be called, and be async in that
    return called is not None and not any(map(inspect.iscoroutinefunction, (callback, called)))


def slots_of(scope: Outside) -> tuple[Slot[OpenConnection], ...]:
    """The connections that a scope has open, to be looked at; none while there is no pool."""
    run = scope._run
    return () if run is None else tuple(run.pool.gate.slots)


def run_of(scope: Outside) -> Lifecycle | None:
    """The run of a scope's pool; None while there is none."""
    return scope._run


@contextlib.asynccontextmanager
async def on_another_run(scope: Outside, config: PoolConfig, driver: Connector) -> AsyncIterator[Lifecycle]:
    """A scope that runs has a second run for the block, whose connections ``driver`` opens; the first one idles.

    Requests that begin inside the block belong to the second. Not public: for tests.
    """
    first = scope._run
    if first is None:
        raise scope._not_serving()
    second = Lifecycle(config, scope._events, driver, scope._clock)
    await second.start()
    scope._run = second
    try:
        yield second
    finally:
        ended = second.draining
        if scope._run is second:
            scope._run = first
        await asyncio.shield(second.begin_drain())
        if ended:  # its application did inside the block, and knew of this one only
            await asyncio.shield(first.begin_drain())


class Outside:
    """The side of a scope that needs a pool and no request."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        begin_anew(config.key)
        self._events = Events(partial(log_callback_error, config.key))
        self._events.listen(write, *LOGGED)
        self._clock = SYSTEM  # a simulation has another
        self._run: Lifecycle | None = None
        self._ran = False
        self._users = 0
        # Applications that are not shutting down, and blocks.
        self._needed_by: list[object] = []
        self._starting: asyncio.Lock

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Open the pool, and drain and close it at the end of the block: for use without an application.

        ``async with scope.running(): await scope.execute(...)`` is for command lines, workers and migrations. Inside
        of another such block, or of an application that is running, the pool is the same, and ends with the last.
        Raises DatabaseUnavailable when ``connect_at_start`` finds no database.
        """
        block = object()
        self._needed_by.append(block)
        try:
            await self._enter()
            try:
                yield self
            finally:
                await self._leave()
        finally:
            self._needed_by.remove(block)

    async def _enter(self) -> None:
        """Open the pool, unless somebody has. To be paired with ``_leave`` once it has returned."""
        if not self._users:
            self._starting = asyncio.Lock()
        self._users += 1
        try:
            async with self._starting:  # two may start at once
                if self._run is not None and self._run.draining:  # that of the run before
                    await asyncio.shield(self._run.begin_drain())
                    self._run = None
                if self._run is None:
                    self._ran = False
                    run = Lifecycle(self.config, self._events, clock=self._clock)
                    await run.start()
                    self._run = run
        except BaseException:
            await self._leave()
            raise

    async def _leave(self) -> None:
        """Drain and close the pool, if nobody else is there."""
        self._users -= 1
        if self._run is not None and not self._users:
            run, self._ran = self._run, True
            try:
                await asyncio.shield(run.begin_drain())
            finally:
                self._run = None

    @property
    def state(self) -> State:
        """``starting`` until the pool is open, ``serving``, ``draining`` once the shutdown began, then ``closed``."""
        if self._run is None:
            return "closed" if self._ran else "starting"
        return "draining" if self._run.draining else "serving"

    def on_event(self, callback: C, *kinds: type[Event]) -> C:
        """Call ``callback(event)`` for what happens to the pool, or for these kinds and families of ``events`` only.

        It is called at once, where it happens, so it should be quick; what it raises is logged and harms nobody. It
        lives as long as the scope. Also a decorator: ``@scope.on_event``. Raises ConfigError when it is async, or a
        kind is none.
        """
        if not is_plain(callback):
            raise ConfigError(f"on_event({callback!r}): must be a plain function of one argument, the event")
        self._events.listen(callback, *kinds)
        return callback

    def on_duration(self, callback: Callable[[float], object], of: Duration) -> None:
        """Call ``callback(seconds)`` for each ``"wait"``, ``"lease"``, ``"connect"``, ``"ping"`` or ``"reset"``.

        For whoever keeps histograms of their own: no event is made for it. They are the durations of the histograms in
        ``stats()``: the wait of each borrow that was served, 0.0 if it found an idle connection; each lease; and so on.
        Otherwise as ``on_event``. Raises ConfigError when ``callback`` is async, or ``of`` is none of these.
        """
        if not is_plain(callback):
            raise ConfigError(f"on_duration({callback!r}): must be a plain function of one argument, the seconds")
        self._events.measure(callback, of)

    def expire(self) -> None:
        """Replace every connection as it comes back: after a change of passwords, roles or the primary."""
        self._open_pool().expire()

    def acquire(self, timeout: float | None = None) -> Acquisition:
        """A connection for code outside of requests, or a second one inside.

        ``async with scope.acquire() as db``, or ``db = await scope.acquire()`` and then ``db.release()``. Waits
        ``timeout`` seconds at most (default: ``acquire_timeout``; 0: one that needs no ping). Raises PoolExhausted,
        DatabaseUnavailable or ShuttingDown.
        """
        pool = self._open_pool()
        pool.check_loop()
        db = ScopedConnection(pool, once=True)
        db.task = asyncio.current_task()
        around = current.get()
        if around is not None and around.client is not None:
            db.client, db.route, db.method = around.client, around.route, around.method
            db.handling = db.task is around.task  # and not a task that the handler has made
        return Acquisition(db, timeout)

    @contextlib.asynccontextmanager
    async def transaction(
        self, isolation: Isolation | None = None, *, readonly: bool = False, deferrable: bool = False
    ) -> AsyncIterator[Transaction]:
        """A connection and a transaction on it: COMMIT at the end, ROLLBACK on any exception."""
        async with self.acquire() as db, db.transaction(isolation, readonly=readonly, deferrable=deferrable) as tx:
            yield tx

    async def run_transaction(
        self,
        fn: Callable[[Transaction], Awaitable[T]],
        retries: int = 3,
        *,
        isolation: Isolation | None = None,
        readonly: bool = False,
    ) -> T:
        """Run ``await fn(tx)`` in a transaction and return its result.

        It is run again, ``retries`` times at most, after a serialization failure or a deadlock (SQLSTATE 40001 and
        40P01), with a random pause in between and no connection held meanwhile. ``fn`` must bear being run again.
        """
        attempt = 0
        while True:
            try:
                async with self.transaction(isolation, readonly=readonly) as tx:
                    return await fn(tx)
            except Exception as error:
                if sqlstate(error) not in RETRIABLE or attempt >= retries:
                    raise
            attempt += 1
            await asyncio.sleep(random.random() * min(LONGEST_PAUSE, 0.01 * 2**attempt))  # noqa: S311

    async def fetch(self, sql: str, params: Any = None, *, timeout: float | None = None) -> list[Any]:
        """All rows of one statement."""
        async with self.acquire() as db:
            return await db.fetch(sql, params, timeout=timeout)

    async def fetchrow(self, sql: str, params: Any = None, *, timeout: float | None = None) -> Any:
        """The first row of one statement, or None."""
        async with self.acquire() as db:
            return await db.fetchrow(sql, params, timeout=timeout)

    async def fetchval(self, sql: str, params: Any = None, *, timeout: float | None = None) -> Any:
        """The first column of the first row of one statement, or None."""
        async with self.acquire() as db:
            return await db.fetchval(sql, params, timeout=timeout)

    async def execute(self, sql: str, params: Any = None, *, timeout: float | None = None) -> str:
        """Run one statement; returns its command status."""
        async with self.acquire() as db:
            return await db.execute(sql, params, timeout=timeout)

    async def check(self) -> float:
        """One round trip to the database, in seconds, on a connection of the pool; or DatabaseUnavailable."""
        try:
            async with self.acquire() as db:
                now = self._open_pool().clock.monotonic
                begun = now()
                await db.fetchval("SELECT 1")
                return now() - begun
        except DatabaseUnavailable:
            raise
        except (PoolScopeError, DatabaseError) as error:
            raise DatabaseUnavailable(f"pool {self.config.key!r}: the check failed: {error}") from error

    async def trouble(self) -> str | None:
        """Why this scope cannot serve now, in a word or two; None if it can. For readiness.

        It borrows nothing and never queues behind requests. It pings an idle connection (1 s to answer); with all in
        use, one that was lent lately will do: a pool that is busy is not in trouble. Only then it has another one
        opened (1 s as well). Answers: "starting", "draining", "closed", "breaker open", "no answer", and "stalled" if
        all ``maxsize`` are in use, and none has come back for longer than a statement may take.
        """
        if self.state != "serving":
            return self.state
        trouble = await self._open_pool().trouble()
        # It may have ended meanwhile.
        return trouble if trouble is None or self.state == "serving" else self.state

    def stats(self) -> PoolStats:
        """The numbers of this moment; all zero while there is no pool. Any thread may ask."""
        run = self._run
        if run is None:
            return PoolStats(minsize=self.config.minsize, maxsize=self.config.maxsize)
        return run.stats()

    def leases(self) -> tuple[Lease, ...]:
        """Who holds a connection, since when and for which request; the longest first."""
        run = self._run
        return () if run is None else leases(run.pool.gate, run.pool.clock.monotonic())

    def _open_pool(self) -> Pool:
        if self._run is None:
            raise self._not_serving()
        return self._run.pool

    def _not_serving(self) -> PoolScopeError:
        if self._run is not None or self._ran:
            return ShuttingDown(f"pool {self.config.key!r} is shutting down or closed")
        return PoolScopeError(
            f"pool {self.config.key!r} is not started: use scope.setup(app), or append scope.cleanup_ctx to "
            "app.cleanup_ctx, and run the application"
        )
