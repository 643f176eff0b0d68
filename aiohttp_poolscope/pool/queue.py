"""Queue: a borrow that waits for its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp_poolscope.gate import Outcome, Waiter
from aiohttp_poolscope.request import client_gone, request_id

from .refusals import refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.connection import ScopedConnection
    from aiohttp_poolscope.driver import OpenConnection
    from aiohttp_poolscope.errors import PoolScopeError
    from aiohttp_poolscope.gate import Gate, Slot

    from .opener import Opener
    from .reporter import Reporter
    from .tasks import Tasks

__all__ = ("Queue", "QueuedBorrow")

SOON = 0.1
"""Seconds, two sweeps: a borrow that ends sooner might not be seen by another sweep before."""


class QueuedBorrow(Waiter["OpenConnection"]):
    """A place in the queue until ``end``: a future, and the request it is for."""

    __slots__ = ("end", "future", "request", "timer")

    def __init__(self, future: asyncio.Future[None], db: ScopedConnection, end: float) -> None:
        super().__init__(running=db.running)
        self.future = future
        self.request = db.client
        self.end = end
        self.timer: asyncio.TimerHandle | None = None

    def client_gone(self) -> bool:
        """Whether its client has left. Inside a running handler that is no matter: half-done work is not aborted."""
        return not self.running and self.request is not None and client_gone(self.request)

    def wake(self) -> None:
        """Its outcome is set."""
        if not self.future.done():
            self.future.set_result(None)


class Queue:
    """Lets borrows wait at the gate. ``queued`` is called with each that has joined: it may want a connection opened.

    Queued borrows get no timer of their own: nearly all are served before their time is nearly over.
    """

    def __init__(
        self,
        config: PoolConfig,
        gate: Gate[OpenConnection],
        opener: Opener,
        tasks: Tasks,
        *,
        reporter: Reporter,
        clock: Clock,
        queued: Callable[[], None],
    ) -> None:
        self._config = config
        self._gate = gate
        self._opener = opener
        self._reporter = reporter
        self._now = clock.monotonic
        self._loop = tasks.loop
        self._context = tasks.context
        self._queued = queued

    async def wait(self, db: ScopedConnection, begun: float, end: float) -> Slot[OpenConnection]:
        """The connection that is handed to ``db`` before ``end``; or the error that says why there is none."""
        gate = self._gate
        joined = self._now()
        place = QueuedBorrow(self._loop.create_future(), db, end)
        gate.join(place, joined)
        if place.outcome is None and self._opener.unreachable:
            gate.withdraw(place, Outcome.FAILED, joined)
        if place.outcome is None:
            self._queued()
            if end - joined < SOON:
                self._set_timer(place, joined)
            try:
                await place.future
            except BaseException:  # whatever it is, no place may be left behind: the next connection would go to it
                gate.withdraw(place, Outcome.CANCELLED, self._now())
                self._reporter.unserved(db, place.outcome, self._now() - begun)
                raise
            finally:
                if place.timer is not None:
                    place.timer.cancel()
        now = self._now()
        if place.outcome is Outcome.LENT and place.client_gone():
            gate.withdraw(place, Outcome.CLIENT_GONE, now)
        if place.outcome is not Outcome.LENT:
            raise self._unserved(db, place.outcome, now - begun)
        return gate.claim(place)

    def set_timers(self, now: float) -> None:
        """Give a timer to those whose time is nearly over."""
        for place in self._gate.waiters():
            if isinstance(place, QueuedBorrow) and place.end - now < SOON and place.timer is None:
                self._set_timer(place, now)

    def _unserved(self, db: ScopedConnection, outcome: Outcome | None, waited: float) -> PoolScopeError:
        error = refusal(self._config, self._gate, outcome, waited=waited, problem=self._opener.problem)
        error.pool = self._config.key
        if db.client is not None:
            error.request_id = request_id(db.client)
        self._reporter.unserved(db, outcome, waited, str(error))
        return error

    def _set_timer(self, place: QueuedBorrow, now: float) -> None:
        place.timer = self._loop.call_later(place.end - now, self._time_out, place, context=self._context)

    def _time_out(self, place: QueuedBorrow) -> None:
        if place.outcome is None:
            self._gate.withdraw(place, Outcome.TIMED_OUT, self._now())
            place.wake()
