"""The example of server-sent events does what it says. (It runs as a script beside the others.)"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import aiohttp_poolscope as poolscope
from tests.conftest import DEADLINE, until

from .test_examples import load

if TYPE_CHECKING:
    from types import ModuleType

    from aiohttp_poolscope.contrib.testing.faults import Faults
    from tests.conftest import Database, Serve, Served

pytestmark = pytest.mark.usefixtures("poolscope_audit")

CLIENTS = 30
PATIENT: dict[str, Any] = {"queue_target": None, "acquire_timeout": 2 * DEADLINE}
"""On a slow machine so many clients would be an overload, and some of them be refused."""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, in a hurry."""
    module = load("server_sent_events")
    monkeypatch.setattr(module, "INTERVAL", 0.02)
    return module


class Reader:
    """A client that reads events as a browser does."""

    def __init__(self, served: Served, last: int | None = None) -> None:
        self._served = served
        self.last = last
        self.got: list[str] = []
        self.comments = 0
        self.ended = False

    async def read(self) -> None:
        headers = {} if self.last is None else {"Last-Event-ID": str(self.last)}
        async with self._served.client.get(self._served.url, headers=headers) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            data: list[str] = []
            async for raw in response.content:
                name, _, value = raw.decode().rstrip("\n").partition(": ")
                if name == "id":
                    self.last = int(value)
                elif name == "data":
                    data.append(value)
                elif name == "" and data:
                    self.got.append("\n".join(data))
                    data = []
                self.comments += raw == b":\n"
        self.ended = True


async def add(served: Served, text: str) -> None:
    async with served.client.post(served.url, data={"text": text}) as response:
        assert response.status == 201, await response.text()


async def test_events_without_connections(dsn: str, serve: Serve, example: ModuleType, database: Database) -> None:
    """Thirty clients on two connections get every event in order; who came back goes on; the end is theirs as well."""
    app = example.make_app(dsn, maxsize=2, **PATIENT)
    async with serve(app) as served:
        scope = app[example.SCOPE]
        readers = [Reader(served) for _ in range(CLIENTS)]
        tasks = [asyncio.create_task(reader.read()) for reader in readers]
        await until(lambda: all(reader.comments for reader in readers), "the first look of all")
        texts = [f"number {number}" for number in range(10)] + ["two\nlines", ""]
        for text in texts[:8]:
            await add(served, text)
        await until(lambda: all(len(reader.got) == 8 for reader in readers), "eight events")
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        await asyncio.gather(*(add(served, text) for text in texts[8:]))
        back = Reader(served, readers[0].last)
        tasks.append(asyncio.create_task(back.read()))
        await until(lambda: all(len(reader.got) == 12 for reader in readers[1:]) and len(back.got) == 4, "the others")
        everything = [text for (text,) in database.sql("SELECT text FROM poolscope_news ORDER BY id")]
        assert sorted(everything) == sorted(texts)
        assert all(reader.got == everything for reader in readers[1:])
        assert readers[0].got + back.got == everything
        await until(lambda: scope.stats().in_use == 0, "a moment in which nobody holds a connection")
        assert scope.stats().size <= 2
        await served.runner.cleanup()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*tasks[1:])
        assert all(reader.ended for reader in [*readers[1:], back])


async def test_nothing_is_held_between_two_looks(dsn: str, serve: Serve, example: ModuleType, monkeypatch: Any) -> None:
    """With a long pause between the looks, many open streams hold no connection; a client that left is forgotten."""
    monkeypatch.setattr(example, "INTERVAL", 60.0)
    app = example.make_app(dsn, maxsize=1, **PATIENT)
    async with serve(app) as served:
        scope = app[example.SCOPE]
        readers = [Reader(served) for _ in range(CLIENTS)]
        tasks = [asyncio.create_task(reader.read()) for reader in readers]
        await until(lambda: all(reader.comments for reader in readers), "the first look of all")
        await until(lambda: scope.stats().in_use == 0, "the end of the last look")
        assert scope._run is not None
        assert scope._run.pool.attached == CLIENTS  # their handlers run
        await asyncio.wait_for(add(served, "served at once"), DEADLINE)
        ends: list[poolscope.events.Event] = []
        scope.on_event(ends.append, poolscope.events.DrainFinished)
        await served.runner.cleanup()
        [end] = ends
        assert isinstance(end, poolscope.events.DrainFinished)
        assert (end.cancelled, end.forced) == (0, ())
        await asyncio.gather(*tasks)


async def test_a_client_that_leaves(
    dsn: str, serve: Serve, example: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """Its handler ends with one of the next looks, without a word in the log."""
    app = example.make_app(dsn)
    async with serve(app) as served:
        gone = Reader(served)
        task = asyncio.create_task(gone.read())
        await until(lambda: gone.comments, "the first look")
        pool = app[example.SCOPE]._run.pool
        assert pool.attached == 1
        task.cancel()
        await asyncio.wait((task,))
        await until(lambda: pool.attached == 0, "the end of the handler")
    assert "Error" not in caplog.text


async def test_the_database_is_away_for_a_while(
    serve: Serve, example: ModuleType, dsn: str, database: Database, poolscope_faults: Faults
) -> None:
    """A stream knows nothing of it but a pause; what came meanwhile is sent afterwards."""
    app = example.make_app(dsn)
    async with serve(app) as served:
        stays = Reader(served)
        task = asyncio.create_task(stays.read())
        await until(lambda: stays.comments, "the first look")
        async with poolscope_faults.database_away(app[example.SCOPE]):
            await until(lambda: app[example.SCOPE].stats().failed > 2, "looks in vain")
            database.sql("INSERT INTO poolscope_news (text) VALUES ('meanwhile')")
            assert stays.got == []
        await until(lambda: stays.got == ["meanwhile"], "the event")
        assert not task.done()
        await served.runner.cleanup()
        await task
