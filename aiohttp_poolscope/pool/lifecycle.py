"""Lifecycle: one run of a pool, from the first connection to the last. It makes all that a run needs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp_poolscope.capacity.limits import LIMITS, Limits, overdrawn
from aiohttp_poolscope.clock import SYSTEM
from aiohttp_poolscope.driver import DatabaseError, Driver
from aiohttp_poolscope.errors import ConfigError, DatabaseUnavailable, OutcomeUnknown, QueryTimeout
from aiohttp_poolscope.events import DrainFinished, DrainStarted
from aiohttp_poolscope.gate import SlotState
from aiohttp_poolscope.stats import PoolStats

from .drain import Drain, Drained
from .housekeeper import Housekeeper
from .pool import Pool
from .recycler import RESTORE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.driver import Connector
    from aiohttp_poolscope.events import Events

__all__ = ("Lifecycle", "lifecycles", "observing", "supplying")

logger = logging.getLogger("aiohttp_poolscope")


Supply = Callable[["PoolConfig"], "tuple[PoolConfig, Connector] | None"]
"""Asked for the driver of a lifecycle, and for the config that goes with it; None: its own."""

_alive: weakref.WeakSet[Lifecycle] = weakref.WeakSet()
_observers: list[Callable[[Lifecycle], None]] = []
_supplies: list[Supply] = []


@contextlib.contextmanager
def observing(observer: Callable[[Lifecycle], None]) -> Iterator[None]:
    """Call ``observer(lifecycle)`` for each that is made inside the block, before it opens anything."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextlib.contextmanager
def supplying(supply: Supply) -> Iterator[None]:
    """Ask ``supply(config)`` for the driver of each lifecycle that is made inside the block, unless it is given one."""
    _supplies.append(supply)
    try:
        yield
    finally:
        _supplies.remove(supply)


def lifecycles() -> list[Lifecycle]:
    """Those that have not begun to end."""
    return [each for each in tuple(_alive) if not each.draining]


class Lifecycle:
    """Makes a pool and whatever runs it, starts it, and ends it.

    ``driver`` opens the connections; None: one that connects to where ``config`` says. ``clock`` is for all of it.
    """

    def __init__(
        self, config: PoolConfig, events: Events, driver: Connector | None = None, clock: Clock = SYSTEM
    ) -> None:
        if driver is None:
            config, driver = _supplied(config, clock)
        self.events = events
        self._config = config
        self.pool = Pool(config, events, driver, clock=clock, queued=self._on_queued)
        self._housekeeper = Housekeeper(self.pool)
        self._drain = Drain(self.pool)
        self._ending: asyncio.Task[None] | None = None
        _alive.add(self)
        for observer in tuple(_observers):
            observer(self)

    async def start(self) -> None:
        """Open ``minsize`` connections (at least one) unless ``connect_at_start`` is off."""
        try:
            if self._config.connect_at_start:
                await self.pool.opener.fill(max(1, self._config.minsize))
                await self._check_budget()
                await self._try_reset()
        except BaseException:
            _alive.discard(self)
            await self.pool.close()
            raise
        self._housekeeper.start()
        self.pool.replenish()

    @property
    def draining(self) -> bool:
        """Whether the pool is ending, or has ended."""
        return self._ending is not None

    @property
    def ended(self) -> bool:
        """Whether the pool is closed."""
        return self._ending is not None and self._ending.done()

    def begin_drain(self) -> asyncio.Task[None]:
        """Refuse requests that have not begun, and start to drain. The task is done when the pool is closed."""
        if self._ending is None:
            self.pool.gate.drain()
            # Not one of the pool's own tasks: it is the one that ends them.
            self._ending = asyncio.get_running_loop().create_task(self._end(), name=f"poolscope {self.pool.key}: drain")
            self.pool.reporter.emit(DrainStarted, in_use=self.pool.gate.lent)
        return self._ending

    async def _end(self) -> None:
        begun, taken, drained = self.pool.clock.monotonic(), self.pool.gate.taken, Drained()
        try:
            drained = await self._drain.run()
        finally:
            await self.pool.close()
        self.pool.reporter.emit(
            DrainFinished,
            duration=self.pool.clock.monotonic() - begun,
            served=self.pool.gate.taken - taken,
            cancelled=drained.cancelled,
            forced=drained.forced,
        )

    async def _try_reset(self) -> None:
        """Run a ``reset`` of the user's once: a mistake in it would cost a new connection for each lease."""
        config = self._config
        if config.reset in {"auto", "rollback", "full"}:
            return
        link = self.pool.gate.idle_slots()[0].link
        try:
            await link.reset(config.reset, RESTORE_LIMIT)
        except (DatabaseError, QueryTimeout) as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"pool {self.pool.key!r}: reset={config.reset!r} fails: {said}") from error
        except OutcomeUnknown as error:  # nobody's request is in doubt: there is no database, as for any start
            raise DatabaseUnavailable(str(error)) from error

    async def _check_budget(self) -> None:
        config = self._config
        if config.pgbouncer:  # it is PgBouncer's limits that count, and these cannot be asked for
            return
        # Nobody else is here yet: without a lease no hook runs and nothing is counted.
        link = self.pool.gate.idle_slots()[0].link
        cursor = link.cursor()
        await link.run(cursor, LIMITS)
        row = link.read_first(cursor)
        limits = Limits(*(row.values() if isinstance(row, dict) else row))
        said = overdrawn(limits, processes=config.processes, maxsize=config.maxsize, budget=config.budget)
        if said is not None:
            if config.budget_strict:
                raise ConfigError(f"pool {self.pool.key!r}: {said} (budget_strict)")
            logger.warning("pool %r: %s", self.pool.key, said)

    def stats(self) -> PoolStats:
        """The numbers of this moment. An exporter's thread may ask: what changes meanwhile is copied at one go."""
        pool, gate, now = self.pool, self.pool.gate, self.pool.clock.monotonic()
        slots = tuple(gate.slots)
        ended = {outcome.value: count for outcome, count in gate.ended.items()}
        return PoolStats(
            size=gate.size,
            idle=gate.idle,
            in_use=gate.lent,
            opening=gate.opening,
            repairing=gate.repairing,
            waiting=gate.waiting,
            minsize=gate.minsize,
            maxsize=gate.maxsize,
            borrows=gate.borrows - gate.waiting - gate.handed,
            lent=gate.taken,
            **ended,
            opened=pool.opener.opened,
            closed=pool.inventory.closed,
            dead=pool.inventory.dead,
            repaired=pool.recycler.repaired,
            abandoned=pool.recycler.abandoned,
            leaked=self._housekeeper.leaked,
            connect_failed=pool.opener.connect_failed,
            errors=dict(pool.reporter.errors),
            oldest_wait=max((now - waiter.since for waiter in gate.waiters()), default=0.0),
            oldest_lease=max((now - slot.since for slot in slots if slot.state is SlotState.LENT), default=0.0),
            breaker=str(pool.opener.breaker.state),
            wait=pool.wait.snapshot(),
            lease=pool.lease.snapshot(),
            connect=pool.opener.connect.snapshot(),
            ping=pool.recycler.ping.snapshot(),
            reset=pool.recycler.reset.snapshot(),
        )

    def _on_queued(self) -> None:
        self._housekeeper.wake()


def _supplied(config: PoolConfig, clock: Clock) -> tuple[PoolConfig, Connector]:
    found = (supply(config) for supply in tuple(_supplies))
    return next((each for each in found if each is not None), (config, Driver(config, clock=clock)))
