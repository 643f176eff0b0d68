"""An event loop whose clock jumps: nothing waits, and every step of every task can be stopped at."""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from contextvars import Context

__all__ = ("Clock", "Loop", "Stuck")

STEPS = 1_000_000
"""Steps that no schedule takes: more are a loop that turns without end."""


class Stuck(Exception):
    """The world does not go on: nothing is ready and no timer is left, or it turns in one place."""


class Clock:
    """The time of one world. It satisfies the pool's clock."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def time(self) -> float:
        """Seconds since 1970, say."""
        return 1_700_000_000.0 + self.now


class Loop(asyncio.BaseEventLoop):
    """Runs what is ready; when nothing is, the time is that of the next timer.

    Timers of one instant run in an order of their own, drawn from ``rng``: in the real world an answer that arrives,
    a time-out and a client's departure can fall into one turn of the loop in any order.

    ``before`` and ``after`` are called around each step with its number.
    """

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        super().__init__()
        self.clock = clock
        self.steps = 0
        self.before: Callable[[int], None] | None = None
        self.after: Callable[[int], None] | None = None
        self.complaints: list[str] = []
        self._rng = rng
        self._pending: list[tuple[float, float, int, asyncio.TimerHandle]] = []
        self._made = 0

    def time(self) -> float:
        """The world's."""
        return self.clock.now

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As ever, but for the order within one instant."""
        self._check_closed()  # type: ignore[attr-defined]
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._made += 1
        heapq.heappush(self._pending, (when, self._rng.random(), self._made, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""

    def _write_to_self(self) -> None:
        """There is no other thread to be woken from."""

    def remove_reader(self, fd: int) -> bool:
        """There are no sockets."""
        return False

    def remove_writer(self, fd: int) -> bool:
        """There are no sockets."""
        return False

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        pending = self._pending
        if not ready:
            while pending and pending[0][-1].cancelled():
                heapq.heappop(pending)
            if not pending:
                raise Stuck("nothing is ready and no timer is left, while tasks wait")
            self.clock.now = max(self.clock.now, pending[0][0])
        while pending and pending[0][0] <= self.clock.now:
            ready.append(heapq.heappop(pending)[-1])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                self._step(handle)

    def _step(self, handle: Any) -> None:
        self.steps = step = self.steps + 1
        if step > STEPS:
            raise Stuck(f"{STEPS:,} steps, and no end: {handle!r}")
        if self.before is not None:
            self.before(step)
            if handle.cancelled():
                return
        handle._run()
        if self.after is not None:
            self.after(step)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Whatever the loop complains of is a finding."""
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")
