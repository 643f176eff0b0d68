"""The example of LISTEN and NOTIFY does what it says. (It runs as a script beside the others.)"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import WSCloseCode

from tests.conftest import DEADLINE, until

from .test_examples import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientWebSocketResponse, web

    from aiohttp_poolscope.contrib.testing.faults import Faults
    from tests.conftest import Database, Serve, Served

pytestmark = pytest.mark.usefixtures("poolscope_audit")

example = load("listen_notify")
MISSED = example.MISSED
COUNT, LONG = 1500, 7900
"""Messages, and bytes of each: together more than the kernel keeps for a client that does not read."""


class Guest:
    """A client that reads whatever comes."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.socket = socket
        self.got: list[str] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            self.got.append(message.data)


@contextlib.asynccontextmanager
async def guests(served: Served, count: int) -> AsyncIterator[list[Guest]]:
    """So many clients in the room."""
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(served.client.ws_connect(served.url)) for _ in range(count)]
        entered = [Guest(socket) for socket in sockets]
        yield entered
        for guest in entered:
            guest.task.cancel()


async def begun(database: Database, *rooms: tuple[web.Application, list[Guest]]) -> None:
    """All are in, all processes listen, and what came before that is forgotten."""
    for app, everybody in rooms:
        await until(lambda app=app, everybody=everybody: len(app[example.ROOM]) == len(everybody), "all in the room")
    done = ("LISTEN poolscope_room", "idle")  # one that is active does not hear yet
    await until(lambda: database.backends("query", "state").count(done) == len(rooms), "the listeners")
    database.sql("NOTIFY poolscope_room, 'begun'")
    for guest in [guest for _, everybody in rooms for guest in everybody]:
        await until(lambda guest=guest: guest.got[-1:] == ["begun"], "the first message")
        guest.got.clear()


async def test_what_one_sends_all_get(dsn: str, serve: Serve, database: Database) -> None:
    """Twenty clients of two processes, and psql: everybody gets everything in one order, over one connection each."""
    first, second = (example.make_app(dsn, queue_target=None) for _ in range(2))
    async with serve(first) as one, serve(second) as two, guests(one, 10) as here, guests(two, 10) as there:
        await begun(database, (first, here), (second, there))
        everybody = [*here, *there]
        for number, guest in enumerate(everybody):
            await guest.socket.send_str(f"I am {number}, 100 % 'me'")
        database.sql("NOTIFY poolscope_room, 'and I am psql'")
        await until(lambda: all(len(guest.got) == 21 for guest in everybody), "all messages for all")
        assert all(guest.got == here[0].got for guest in everybody)
        assert len(set(here[0].got)) == 21
        for app in (first, second):
            [_lease] = app[example.LISTENER].leases()
            assert app[example.LISTENER].stats().size == 1
            await until(lambda app=app: app[example.SCOPE].stats().in_use == 0, "no connection held by a websocket")
        names = [name.split("@")[0] for (name,) in database.backends("application_name")]
        assert names.count("listener") == 2


async def test_the_connection_is_lost(
    dsn: str, serve: Serve, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backends are killed again and again: everybody is told that something may be missing, and then it goes on."""
    monkeypatch.setattr(example, "PAUSE", 0.05)
    app = example.make_app(dsn)
    async with serve(app) as served, guests(served, 3) as everybody:
        await begun(database, (app, everybody))
        for number in range(3):
            database.kill()
            told = number + 1
            await until(lambda told=told: all(guest.got.count(MISSED) == told for guest in everybody), "the news of it")
            database.sql("SELECT pg_notify('poolscope_room', %s)", f"after {number}")
            await until(lambda told=told: all(len(guest.got) == 2 * told for guest in everybody), "the message after")
        assert everybody[0].got == [MISSED, "after 0", MISSED, "after 1", MISSED, "after 2"]


async def test_the_database_is_away_for_a_while(
    serve: Serve, dsn: str, database: Database, poolscope_faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens again by itself, however many attempts it takes; who wants to send meanwhile is told so."""
    monkeypatch.setattr(example, "PAUSE", 0.01)
    app = example.make_app(dsn)
    away = poolscope_faults.database_away
    async with serve(app) as served, guests(served, 2) as everybody:
        await begun(database, (app, everybody))
        async with away(app[example.SCOPE]), away(app[example.LISTENER]):
            await until(lambda: app[example.LISTENER].stats().connect_failed > 5, "several failures")
            await everybody[0].socket.send_str("nobody hears me")
            await until(lambda: everybody[0].got, "the answer")
            assert json.loads(everybody[0].got[0]) == {"error": "database-unavailable"}
        await until(lambda: MISSED in everybody[1].got, "the news of it")
        database.sql("NOTIFY poolscope_room, 'hello again'")
        await until(lambda: all(guest.got[-1] == "hello again" for guest in everybody), "what was said then")


async def test_who_does_not_read_holds_up_nobody(
    dsn: str, serve: Serve, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others get everything at once; for him a few messages are kept, and a word that there were more."""
    monkeypatch.setattr(example, "BEHIND", 10)
    app = example.make_app(dsn)
    async with serve(app) as served, guests(served, 2) as [reads, sleeps]:
        await begun(database, (app, [reads, sleeps]))
        sleeps.task.cancel()
        await asyncio.wait((sleeps.task,))
        sql = "SELECT pg_notify('poolscope_room', rpad(n::text, %s)) FROM generate_series(%s, %s) AS n"
        for first in range(1, COUNT, 10):
            database.sql(sql, LONG, first, first + 9)
            await until(lambda count=first + 9: len(reads.got) == count, "ten more")
            assert all(inbox.qsize() <= 11 for inbox in app[example.ROOM].values())
        assert [int(text) for text in reads.got] == [*range(1, COUNT + 1)]
        last, got = reads.got[-1], [""]
        while got[-1] != last:
            got.append((await sleeps.socket.receive(DEADLINE)).data)
        assert MISSED in got
        assert len(got) < COUNT


async def test_the_end(dsn: str, serve: Serve, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Everybody is said goodbye to, and the connection that listens holds up nothing."""
    app = example.make_app(dsn)
    async with serve(app) as served, guests(served, 3) as everybody:
        await begun(database, (app, everybody))
        await served.runner.cleanup()
        for guest in everybody:
            await asyncio.wait_for(guest.task, DEADLINE)
            assert guest.socket.close_code == WSCloseCode.GOING_AWAY
    assert "forced" not in caplog.text.replace("0 forced", "")
    assert "no longer listening" not in caplog.text
