"""The example of background jobs does what it says. (It runs as a script beside the others.)"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.conftest import until

from .test_examples import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

    from aiohttp import web

    from tests.conftest import Database, Serve, Served

pytestmark = pytest.mark.usefixtures("poolscope_audit")


@pytest.fixture
def example() -> ModuleType:
    """The example, in a hurry."""
    module = load("background_jobs")
    module.DURATION = 0.1
    return module


def sent(database: Database) -> list[bool]:
    return [each for (each,) in database.sql("SELECT sent IS NOT NULL FROM poolscope_mails ORDER BY id")]


async def add(served: Served, count: int) -> None:
    async def one() -> None:
        async with served.client.post(served.url, data={"to": "ann@example.org"}) as response:
            assert response.status == 202, await response.text()

    await asyncio.gather(*(one() for _ in range(count)))


async def test_jobs_outlive_their_requests(dsn: str, serve: Serve, example: ModuleType, database: Database) -> None:
    """Twelve jobs over one connection, of which they hold none while they send."""
    app = example.make_app(dsn, maxsize=1, queue_target=None)
    async with serve(app) as served:
        await add(served, 12)
        assert False in sent(database)
        scheduler = app[example.JOBS]
        await until(lambda: scheduler.active_count and not app[example.SCOPE].stats().in_use, "jobs that only send")
        assert scheduler.active_count <= 5
        await until(lambda: all(sent(database)), "the last mail")
        assert json.loads((await served.get())[1]) == {"total": 12, "sent": 12}


async def test_the_end_waits_for_jobs(dsn: str, serve: Serve, example: ModuleType, database: Database) -> None:
    """Those that run and those that wait for their turn are done when the application has ended."""
    app = example.make_app(dsn)
    async with serve(app) as served:
        await add(served, 12)
        assert False in sent(database)
    assert sent(database) == [True] * 12


async def test_what_takes_too_long_stays_in_the_table(
    dsn: str, serve: Serve, example: ModuleType, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """After GRACE they are cancelled, with nothing written; the next process sends them, and each one once."""
    caplog.set_level("INFO")
    example.DURATION, example.GRACE = 60.0, 0.1
    async with serve(example.make_app(dsn)) as served:
        await add(served, 7)
    assert sent(database) == [False] * 7
    example.DURATION = 0.0
    async with serve(example.make_app(dsn)):
        await until(lambda: all(sent(database)), "the mails of the process before")
    assert caplog.text.count("sent mail") == 7


async def test_a_request_that_comes_at_the_end(dsn: str, serve: Serve, example: ModuleType, database: Database) -> None:
    """While the jobs are waited for, a request that runs is answered; its mail is left to the next process."""
    app = example.make_app(dsn)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        reached.set()
        await go_on.wait()
        answer: web.Response = await example.add(request)
        return answer

    app.router.add_post("/slow", slow)
    async with serve(app) as served:
        await add(served, 3)
        late = asyncio.create_task(served.client.post(served.url / "slow", data={"to": "bob@example.org"}))
        await reached.wait()
        ending = asyncio.create_task(served.runner.cleanup())
        scheduler = app[example.JOBS]
        await until(lambda: scheduler.closed, "the end of the jobs")
        go_on.set()
        assert (await late).status == 202
        await ending
    assert sent(database) == [True] * 3 + [False]


async def test_the_order_is_what_saves_them(
    dsn: str, serve: Serve, example: ModuleType, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Waited for in a cleanup context instead, each finds the pool closed: what the comment in make_app says."""
    app = example.make_app(dsn)
    app.on_shutdown.remove(example.end)

    async def too_late(app: web.Application) -> AsyncIterator[None]:
        yield
        await example.end(app)

    app.cleanup_ctx.append(too_late)  # which ends before the pool's
    async with serve(app) as served:
        await add(served, 3)
    assert sent(database) == [False] * 3
    assert caplog.text.count("a job failed: ShuttingDown") == 3
