"""Lifecycle: what observes one that is made, and what gives it another driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.driver import Driver
from aiohttp_poolscope.events import Events
from aiohttp_poolscope.pool import Lifecycle, observing, supplying

if TYPE_CHECKING:
    from aiohttp_poolscope.driver import Link


def no_callback_fails(kind: str, error: BaseException) -> None:
    raise AssertionError(kind) from error


class Counting(Driver):
    """Counts what it opens."""

    opened = 0

    async def open(self) -> Link:
        self.opened += 1
        return await super().open()


async def test_a_driver_is_asked_for(dsn: str) -> None:
    """The first who has one gives it, and the config that goes with it; observers see the result, nobody else's pool.

    A lifecycle that is given a driver asks nobody, and outside of the block nobody is asked.
    """
    mine, other = (PoolConfig.build(dsn, key=key, minsize=2, maxsize=3) for key in ("mine", "other"))
    smaller = PoolConfig.build(dsn, key="mine", maxsize=1)
    asked: list[PoolConfig] = []
    seen: list[Lifecycle] = []
    drivers: list[Counting] = []

    def supply(config: PoolConfig) -> Any:
        asked.append(config)
        if config is not mine:
            return None
        drivers.append(Counting(smaller))
        return smaller, drivers[-1]

    def make(config: PoolConfig, driver: Driver | None = None) -> Lifecycle:
        return Lifecycle(config, Events(no_callback_fails), driver)

    with supplying(supply), observing(seen.append):
        supplied, plain, given = make(mine), make(other), make(mine, Counting(mine))
    assert asked == [mine, other]
    assert seen == [supplied, plain, given]
    assert (supplied.pool.driver, supplied.pool.config) == (drivers[0], smaller)
    assert [run.stats().maxsize for run in (supplied, plain, given, make(mine))] == [1, 3, 3, 3]
    assert type(plain.pool.driver) is Driver

    await supplied.start()
    assert drivers[0].opened == supplied.stats().opened == 1
    await supplied.begin_drain()
