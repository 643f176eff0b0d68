"""The phases of `stress`: normal load, clients that leave, slow ones, and normal load again."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp_poolscope.cli.arrivals import arrivals

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from .client import Answer, Client

    Visit = Callable[[], Awaitable[Answer]]

__all__ = ("MOST", "Phase", "Phases")

MOST = 500
"""Requests under way at once: a service that answers none of them is not given more."""

SERVER_ERROR = 500
SHORTEST = 0.003
"""Seconds, at least, within which a client leaves: timers are no more exact than that."""

SLOWNESS = 1.0
"""Seconds that a slow client takes for half of its request."""

LATE = 1.0
"""Seconds after its time that a phase still sends."""

SHARE_BESIDE = 0.2
"""Of the rate: clients that wait for their answers while the slow ones are there."""


@dataclass
class Phase:
    """What became of the requests of one kind, in one phase."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    """Seconds until each answer."""

    def add(self, answer: Answer) -> None:
        """Count one."""
        self.outcomes[answer.outcome] += 1
        if answer.status is not None:
            self.statuses[answer.status] += 1
            self.took.append(answer.seconds)

    @property
    def sent(self) -> int:
        """All of them."""
        return self.outcomes.total()

    @property
    def lost(self) -> int:
        """Those whose client waited in vain."""
        return self.outcomes["silent"] + self.outcomes["cut"] + self.outcomes["refused"]

    @property
    def failed(self) -> int:
        """Those with an answer of 500 or above."""
        return sum(count for status, count in self.statuses.items() if status >= SERVER_ERROR)

    @property
    def served(self) -> float:
        """The share that got an answer below 500, of all whose client waited."""
        waited = self.sent - self.outcomes["left"]
        return (waited - self.lost - self.failed) / waited if waited else 1.0

    def quantile(self, q: float) -> float | None:
        """Seconds within which the share ``q`` of the answers came."""
        ordered = sorted(self.took)
        return ordered[min(len(ordered) - 1, math.floor(q * len(ordered)))] if ordered else None


class Phases:
    """Sends requests at random moments, as independent clients do, whether or not earlier ones are answered."""

    def __init__(self, client: Client, chance: random.Random, rate: float, tell: Callable[[Phase], None]) -> None:
        self._client = client
        self._chance = chance
        self._rate = rate
        self._tell = tell

    async def normal(self, name: str, seconds: float) -> Phase:
        """Clients that wait for their answers."""
        phase = Phase(name)
        await self._open_loop(self._rate, seconds, lambda: self._count(phase, self._client.ask))
        return phase

    async def aborted(self, seconds: float, share: float, usual: float) -> tuple[Phase, Phase]:
        """Clients of whom a share leaves, at a random moment of what an answer ``usual``ly takes; the others stay."""
        leaving, staying = Phase("clients that leave"), Phase("beside them: stay")
        longest = max(SHORTEST, 1.2 * usual)

        def visit() -> Awaitable[None]:
            if self._chance.random() >= share:
                return self._count(staying, self._client.ask)
            after, politely = self._chance.uniform(0, longest), self._chance.random() < 0.5  # noqa: PLR2004
            return self._count(leaving, lambda: self._client.leave(after, politely=politely))

        await self._open_loop(self._rate, seconds, visit)
        return leaving, staying

    async def slow(self, seconds: float, clients: int) -> tuple[Phase, Phase]:
        """So many clients at once that dribble half a request and leave, again and again; others who ask and stay."""
        slow, staying = Phase("slow clients that leave"), Phase("beside them: stay")
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def dribble() -> None:
            while loop.time() < end:
                way = self._client.dribble_body if self._chance.random() < 0.7 else self._client.dribble_head  # noqa: PLR2004
                answer = await way(SLOWNESS, self._chance)
                slow.add(answer)
                self._tell(slow)
                if answer.outcome != "left":
                    await asyncio.sleep(SLOWNESS / 2)  # it refuses them: do not hammer

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(dribble())
            rate = max(1.0, SHARE_BESIDE * self._rate)
            group.create_task(self._open_loop(rate, seconds, lambda: self._count(staying, self._client.ask)))
        return slow, staying

    async def _count(self, phase: Phase, visit: Visit) -> None:
        phase.add(await visit())
        self._tell(phase)

    async def _open_loop(self, rate: float, seconds: float, visit: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        room = asyncio.Semaphore(MOST)

        async def one() -> None:
            try:
                await visit()
            finally:
                room.release()

        async with asyncio.TaskGroup() as group:
            async for _ in arrivals(rate, self._chance, seconds):
                await room.acquire()
                if loop.time() > end + LATE:  # they do not come back: who could not be sent is not
                    room.release()
                    break
                group.create_task(one())
