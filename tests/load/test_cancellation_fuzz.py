"""Tasks cancelled at random moments: in a borrow, a statement, a transaction, a cursor, a stream, a release."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope import PoolScope
from aiohttp_poolscope.driver import link
from tests.conftest import BUSY

from .watch import Watch

if TYPE_CHECKING:
    from tests.conftest import Database

TASKS = int(os.environ.get("POOLSCOPE_FUZZ", "3000"))
AT_A_TIME = 24

Work = Callable[[PoolScope, int], Awaitable[int]]


class Boom(Exception):
    """What the failing sibling raises."""


# What a task does. Each statement asks for a token of its own, and each returns the task's number at the end.


async def say(db: Any, token: int) -> int:
    got = await db.fetchval("SELECT %s", (token,))
    assert got == token, f"{token} got the result of {got}"
    return token


async def pay(db: Any, number: int, amount: int) -> None:
    status = await db.execute("INSERT INTO ledger VALUES (%s, %s)", (number, amount))
    assert status == "INSERT 0 1", status


async def one_statement(scope: PoolScope, number: int) -> int:
    return await say(scope, number)


async def borrow_only(scope: PoolScope, number: int) -> int:
    async with scope.acquire():
        await asyncio.sleep(0)
    return number


async def borrow_and_release(scope: PoolScope, number: int) -> int:
    db = await scope.acquire()
    try:
        await say(db, number)
    finally:
        db.release()
    return number


async def statements(scope: PoolScope, number: int) -> int:
    async with scope.acquire() as db:
        for each in range(3):
            await say(db, number * 10 + each)
    return number


async def slow_statement(scope: PoolScope, number: int) -> int:
    async with scope.acquire() as db:
        row = await db.fetchrow("SELECT %s, pg_sleep(0.004)", (number,))
        assert row[0] == number
    return number


async def transaction(scope: PoolScope, number: int) -> int:
    async with scope.transaction() as tx:
        await pay(tx, number, 1)
        await say(tx, number)
        await pay(tx, number, -1)
    return number


async def nested(scope: PoolScope, number: int) -> int:
    async with scope.acquire() as db, db.transaction() as tx:
        await pay(tx, number, 1)
        try:
            async with tx.transaction() as inner:
                await pay(inner, number, 100)
                raise Boom
        except Boom:
            pass
        async with tx.transaction() as inner:
            await pay(inner, number, -1)
    return number


async def retried(scope: PoolScope, number: int) -> int:
    async def work(tx: Any) -> int:
        await pay(tx, number, 1)
        await pay(tx, number, -1)
        return number

    return await scope.run_transaction(work)


async def many(scope: PoolScope, number: int) -> int:
    async with scope.acquire() as db:
        amounts = [(number, 1)] + [(number, 0)] * 120 + [(number, -1)]
        await db.executemany("INSERT INTO ledger VALUES (%s, %s)", amounts)
    return number


async def forgotten(scope: PoolScope, number: int) -> int:
    """Begin by hand and forget to commit: that must become no part of somebody else's transaction."""
    async with scope.acquire() as db:
        await db.execute("BEGIN")
        await pay(db, number, 1)
    return number


async def cursor(scope: PoolScope, number: int) -> int:
    async with scope.acquire() as db, db.cursor() as cur:
        await cur.execute("SELECT generate_series(%s, %s)", (number, number + 9))
        rows = await cur.fetchmany(4) + await cur.fetchall()
        assert [row[0] for row in rows] == list(range(number, number + 10))
    return number


async def stream(scope: PoolScope, number: int) -> int:
    async with scope.acquire() as db:
        rows = [row[0] async for row in db.stream("SELECT generate_series(%s, %s)", (number, number + 29), size=10)]
        assert rows == list(range(number, number + 30))
        async for _ in db.stream("SELECT generate_series(1, 100)", size=10):
            break
        return await say(db, number)


async def go_on_after_timeout(scope: PoolScope, number: int) -> int:
    """Time out on a connection, and use the same one again."""
    async with scope.acquire() as db:
        for each in range(3):
            try:
                async with asyncio.timeout(0.002):
                    await db.fetchval("SELECT %s, pg_sleep(0.01)", (-1,))
            except TimeoutError:
                pass
            await say(db, number * 10 + each)
    return number


async def go_on_in_transaction(scope: PoolScope, number: int) -> int:
    """Time out in a transaction, and begin another on the same connection."""
    async with scope.acquire() as db:
        try:
            async with asyncio.timeout(0.003), db.transaction() as tx:
                await pay(tx, number, 1)
                await tx.execute("SELECT pg_sleep(1)")  # a COMMIT that is cancelled would close the connection
        except TimeoutError:
            pass
        async with db.transaction() as tx:
            await pay(tx, number, 1)
            await pay(tx, number, -1)
    return number


WORKS: tuple[Work, ...] = (
    one_statement, borrow_only, borrow_and_release, statements, slow_statement, transaction, nested, retried, many,
    forgotten, cursor, stream, go_on_after_timeout, go_on_in_transaction,
)  # fmt: skip


# How it is cancelled. Each says whether the work was finished; what must hold either way is checked here.


async def moment(rng: random.Random) -> None:
    """Now, some turns of the loop later, or some milliseconds."""
    if rng.random() < 0.5:
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(rng.random() * rng.choice((0.002, 0.02)))


async def outcome(task: asyncio.Task[int], number: int, *, cancelled: bool) -> bool:
    await asyncio.wait((task,))
    if cancelled:  # cancel() said that it will be: then nothing may swallow it
        assert task.cancelled(), f"{task}: a cancellation was swallowed"
        return False
    assert task.result() == number
    return True


async def by_cancel(work: Work, scope: PoolScope, number: int, rng: random.Random) -> bool:
    task = asyncio.ensure_future(work(scope, number))
    await moment(rng)
    return await outcome(task, number, cancelled=task.cancel())


async def by_two_cancels(work: Work, scope: PoolScope, number: int, rng: random.Random) -> bool:
    task = asyncio.ensure_future(work(scope, number))
    await moment(rng)
    cancelled = task.cancel()
    for _ in range(rng.randrange(4)):
        await asyncio.sleep(0)
    task.cancel()
    return await outcome(task, number, cancelled=cancelled)


async def by_timeout(work: Work, scope: PoolScope, number: int, rng: random.Random) -> bool:
    me = asyncio.current_task()
    assert me is not None
    before, done = me.cancelling(), False
    try:
        async with asyncio.timeout(rng.random() * rng.choice((0.002, 0.02))) as limit:
            assert await work(scope, number) == number
            done = True
    except TimeoutError:
        assert limit.expired()
    else:
        assert done
    assert me.cancelling() == before
    assert await say(scope, -number) == -number  # and goes on as if nothing had been
    return done


async def by_wait_for(work: Work, scope: PoolScope, number: int, rng: random.Random) -> bool:
    try:
        assert await asyncio.wait_for(work(scope, number), rng.random() * rng.choice((0.002, 0.02))) == number
    except TimeoutError:
        return False
    return True


async def by_sibling(work: Work, scope: PoolScope, number: int, rng: random.Random) -> bool:
    async def fail() -> None:
        await moment(rng)
        raise Boom

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work(scope, number))
            group.create_task(fail())
    except* Boom:
        pass
    else:
        raise AssertionError("the sibling did not fail")
    return await outcome(task, number, cancelled=task.cancelling() > 0)


async def not_at_all(work: Work, scope: PoolScope, number: int, rng: random.Random) -> bool:
    assert await work(scope, number) == number
    return True


WAYS = (by_cancel, by_two_cancels, by_timeout, by_wait_for, by_sibling, not_at_all)


@pytest.mark.parametrize("reset", ["rollback", "full"])
async def test_tasks_cancelled_at_random_moments_lose_nothing(
    make_scope: Any, database: Database, seed: int, reset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is cancelled ends cancelled, who is not gets his own result, no connection is lost, no work half done."""
    monkeypatch.setattr(link, "SETTLE_LIMIT", BUSY)  # a server that has no processor is not one that hangs
    database.sql("CREATE TABLE ledger (task int, amount int)")
    finished: dict[int, Work] = {}
    outcomes: Counter[tuple[str, bool]] = Counter()
    numbers = list(range(1, 1 + (TASKS if reset == "rollback" else TASKS // 3)))

    async def one_after_another() -> None:
        while numbers:
            number = numbers.pop()
            rng = random.Random(f"{seed} {number}")
            work, way = rng.choice(WORKS), rng.choice(WAYS)
            try:
                done = await way(work, scope, number, rng)
            except BaseException as error:
                error.add_note(f"task {number}: {work.__name__} {way.__name__}")
                raise
            outcomes[way.__name__, done] += 1
            if done:
                finished[number] = work

    async with make_scope(maxsize=6, queue_target=None, acquire_timeout=20, reset=reset) as scope:
        async with Watch(scope, database) as watch:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_A_TIME):
                    group.create_task(one_after_another())
            await watch.calm()
        assert watch.samples > 5
        assert sum(scope.stats().wait.counts[1:]) > 10  # there were not enough connections
        for way in WAYS[:-1]:
            assert outcomes[way.__name__, False] > 0, outcomes  # it was a fuzz, of all kinds
        assert sum(count for (_, done), count in outcomes.items() if done) > 0
        async with asyncio.TaskGroup() as group:  # every connection there can be still works
            for number in range(6):
                group.create_task(statements(scope, number))
    ledger = {task: (amount, rows) for task, amount, rows in database.sql(
        "SELECT task, sum(amount), count(*) FROM ledger GROUP BY task")}  # fmt: skip
    entries = {transaction: 2, nested: 2, retried: 2, many: 122, go_on_in_transaction: 2}
    assert {amount for amount, _ in ledger.values()} <= {0}
    assert {rows for _, rows in ledger.values()} <= {2, 122}
    for number, work in finished.items():
        assert ledger.get(number, (0, 0))[1] == entries.get(work, 0), (number, work)
