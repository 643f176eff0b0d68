"""The model against the real thing: the same statements and accidents on both, and all that a link says of itself."""

from __future__ import annotations

import asyncio
import contextvars
import random
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.driver import DatabaseError, Driver, Link, link, sqlstate
from aiohttp_poolscope.errors import ConnectionReleased, PoolScopeError

from .shell.driver import ModelDriver
from .shell.loop import Clock, Loop
from .shell.network import Host
from .shell.plan import HOST

if TYPE_CHECKING:
    from tests.conftest import Database

SEQUENCES, LENGTH, AT_ONCE = 300, 12, 15

RACES = 5
"""So many times a sequence may be played again on the real server, whose answers can race with one another."""

PATIENCE = 20.0
"""Seconds for whatever must come: no busy machine takes longer."""

STATEMENTS = (
    "SELECT 1",
    "SELECT 1",
    "BEGIN",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "INSERT INTO visits VALUES ('{tag}', {number})",
    "INSERT INTO visits VALUES ('{tag}', {number})",
    "SELECT 1/0",
    "SAVEPOINT here",
    "ROLLBACK TO here; RELEASE here",
    "RELEASE here",
    "DECLARE rows CURSOR FOR SELECT generate_series(1, 5)",
    "BEGIN; DECLARE rows CURSOR FOR SELECT generate_series(1, 5)",
    "FETCH FORWARD 2 FROM rows",
    "CLOSE rows",
    "DISCARD ALL",
    "SET my.own = '{tag}'",
    "SELECT coalesce(current_setting('my.own', true), '')",
    "SELECT generate_series(1, 3)",
)

ACCIDENTS = (
    *("abandon", "abandon", "settle", "late", "both", "ping", "look", "cancel late", "abandon briefly"),
    *("kill", "kill during", "fail", "fail during", "close during", "close"),
)


class Side(Protocol):
    """The real one, or the model."""

    async def open(self) -> Link:
        """A connection."""

    def kill(self, opened: Link) -> None:
        """The server ends its session."""

    def works(self, opened: Link) -> bool:
        """Whether the server is at a statement of it: a cancel that came before would be in vain."""

    def rows(self, tag: str) -> list[int]:
        """What is in the table."""


class Real:
    """PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._driver = Driver(PoolConfig.build(database.dsn, statement_timeout=None), "faithful")

    async def open(self) -> Link:
        return await self._driver.open()

    def kill(self, opened: Link) -> None:
        self._database.sql("SELECT pg_terminate_backend(%s)", opened.raw.info.backend_pid)

    def works(self, opened: Link) -> bool:
        sleeping = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND query ~ 'pg_sleep'"
        return bool(self._database.sql(sleeping, opened.raw.info.backend_pid))

    def rows(self, tag: str) -> list[int]:
        return [n for (n,) in self._database.sql("SELECT n FROM visits WHERE tag = %s ORDER BY n", tag)]


class Model:
    """The world's."""

    def __init__(self, loop: Loop, seed: int) -> None:
        self._rows: list[Any] = []
        self._host = Host(HOST, loop, random.Random(seed), self._rows)
        self._host.check_interval = 1.0
        config = PoolConfig.build(f"postgresql://model@{HOST}/model?sslmode=disable")
        asked_by: contextvars.ContextVar[str | None] = contextvars.ContextVar("asked_by", default="model")
        self._driver = ModelDriver(config, [self._host], asked_by, lambda *_: None, loop.clock)

    async def open(self) -> Link:
        return await self._driver.open()

    def kill(self, opened: Link) -> None:
        opened.raw.session.die()

    def works(self, opened: Link) -> bool:
        return opened.raw.session._running is not None

    def rows(self, tag: str) -> list[int]:
        return sorted(row.number for row in self._rows if row.tag == tag)


def drawn(seed: int) -> list[str]:
    """A sequence of operations."""
    rng = random.Random(f"faithful {seed}")
    # Most of them stay alive for long enough to get anywhere.
    weights = (*(2 for _ in ACCIDENTS[:9]), *(1 for _ in ACCIDENTS[9:]))
    return [
        rng.choice(STATEMENTS) if rng.random() < 0.65 else rng.choices(ACCIDENTS, weights)[0] for _ in range(LENGTH)
    ]


async def played(side: Side, seed: int) -> list[str]:
    """What each operation came to, and what the link says afterwards."""
    opened = await side.open()
    story: list[str] = []
    tag = f"t{seed}"
    for number, operation in enumerate(drawn(seed)):
        try:
            came = await _play(side, opened, operation.format(tag=tag, number=number))
        except (DatabaseError, PoolScopeError) as error:
            # A dying server's last words may arrive with the end of the connection, or before it.
            came = f"{type(error).__name__} {None if opened.closed else sqlstate(error)}"
        await _until(lambda: opened.cancelling is None)
        story.append(f"{operation}: {came}; {_state(opened)}")
        if opened.closed and number > 3 and random.Random(f"{seed} {number}").random() < 0.5:
            break
    opened.close()
    story.append(_state(opened))
    await asyncio.sleep(0.05)
    story.append(repr(side.rows(tag)))
    return story


def _state(opened: Link) -> str:
    return (
        f"closed={opened.closed} clean={opened.clean} busy={opened.busy} executing={opened.executing} "
        f"status={opened.status} running={opened.running_since is not None} cancelling={opened.cancelling is not None}"
    )


async def _play(side: Side, opened: Link, operation: str) -> Any:
    played = getattr(_Accidents, operation.replace(" ", "_"), None)
    if played is not None:
        return await played(side, opened)
    cursor = opened.cursor()
    await opened.run(cursor, operation)
    rows = opened.read_all(cursor) if cursor.statusmessage.startswith(("SELECT", "FETCH")) else None
    return f"{cursor.statusmessage} {cursor.rowcount} {rows}"


class _Accidents:
    """What can be done to a link, besides running a statement."""

    @staticmethod
    async def abandon(side: Side, opened: Link) -> bool:
        task = await _begun(side, opened, 30)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    @staticmethod
    async def abandon_briefly(side: Side, opened: Link) -> bool:
        task = await _begun(side, opened, 0.05)
        task.cancel()
        await asyncio.wait([task])
        await _until(lambda: opened.closed or not opened.executing)
        return task.done()

    @staticmethod
    async def settle(side: Side, opened: Link) -> None:
        await opened.cancel_and_wait()

    @staticmethod
    async def late(side: Side, opened: Link) -> None:
        await opened.run(opened.cursor(), "SELECT pg_sleep(30)", timeout=0.05)

    @staticmethod
    async def cancel_late(side: Side, opened: Link) -> None:
        """Nothing runs: it must hit nothing that is sent afterwards."""
        opened.cancel()
        await opened.run(opened.cursor(), "SELECT pg_sleep(0.05)")

    @staticmethod
    async def both(side: Side, opened: Link) -> None:
        task = await _begun(side, opened, 0.2)
        try:
            await opened.run(opened.cursor(), "SELECT 1")
        finally:
            await asyncio.wait([task])
            await asyncio.gather(task, return_exceptions=True)

    @staticmethod
    async def ping(side: Side, opened: Link) -> None:
        await opened.ping()

    @staticmethod
    async def look(side: Side, opened: Link) -> Any:
        return opened.read_first(opened.cursor())

    @staticmethod
    async def kill(side: Side, opened: Link) -> None:
        side.kill(opened)
        await _until(lambda: opened.closed)

    @staticmethod
    async def kill_during(side: Side, opened: Link) -> None:
        task = await _begun(side, opened, 30)
        side.kill(opened)
        await task
        await _until(lambda: opened.closed)

    @staticmethod
    async def fail(side: Side, opened: Link) -> None:
        opened.fail(ConnectionReleased("on purpose"))

    @staticmethod
    async def fail_during(side: Side, opened: Link) -> None:
        task = await _begun(side, opened, 30)
        opened.fail(ConnectionReleased("on purpose"))
        await task

    @staticmethod
    async def close(side: Side, opened: Link) -> None:
        opened.close()

    @staticmethod
    async def close_during(side: Side, opened: Link) -> None:
        task = await _begun(side, opened, 30)
        opened.close()
        await task


async def _begun(side: Side, opened: Link, seconds: float) -> asyncio.Task[None]:
    """A statement that runs; or one that has failed at once."""
    if opened.executing and not opened.closed:
        await opened.cancel_and_wait()  # so that it is this one that is seen to run
    task = asyncio.get_running_loop().create_task(opened.run(opened.cursor(), f"SELECT pg_sleep({seconds})"))
    await _until(lambda: task.done() or (opened.executing and side.works(opened)))
    return task


async def _until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a server has to cancel something: a busy machine needs more of it, and then all would differ."""
    monkeypatch.setattr(link, "CANCEL_MARGIN", PATIENCE)
    monkeypatch.setattr(link, "SETTLE_LIMIT", PATIENCE)


@pytest.mark.slow
@pytest.mark.one_loop
@pytest.mark.usefixtures("_patient")
async def test_the_model_is_faithful(database: Database) -> None:
    """Whatever is done to a link, over the model it says and does what it says and does on a real server."""
    database.sql("CREATE TABLE visits (tag text, n int)")
    real = Real(database)
    for first in range(0, SEQUENCES, AT_ONCE):
        seeds = range(first, min(first + AT_ONCE, SEQUENCES))
        stories = await asyncio.gather(*(played(real, seed) for seed in seeds))
        for seed, story in zip(seeds, stories, strict=True):
            modelled = await asyncio.to_thread(_modelled, seed)
            for _ in range(RACES):
                # PostgreSQL forgets a cancel that comes before it has read the statement: the link is closed then. The
                # model does not draw that. What is told wrongly is told wrongly again.
                if modelled == story:
                    break
                story = await played(real, seed)  # noqa: PLW2901
            assert modelled == story, f"sequence {seed}"
    await real._driver.close(PATIENCE)


def _modelled(seed: int) -> list[str]:
    loop = Loop(Clock(), random.Random(seed))
    try:
        return loop.run_until_complete(played(Model(loop, seed), seed))
    finally:
        loop.close()
