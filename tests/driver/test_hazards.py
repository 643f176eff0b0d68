"""What aiopg and psycopg2 do wrong, met by the driver. The numbers are those of the table of hazards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import psycopg2
import pytest

from aiohttp_poolscope.driver.link import CANCEL_MARGIN
from aiohttp_poolscope.errors import ConnectionBusy, DatabaseUnavailable, QueryTimeout
from tests.conftest import BUSY, Database, until
from tests.kit.wire import ask, driving, linked, wired

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp_poolscope.driver import Link


async def running(database: Database, link: Link) -> None:
    """Wait until the link's statement runs on the server."""
    pid = link.raw.get_backend_pid()
    await until(lambda: ("active",) in database.sql("SELECT state FROM pg_stat_activity WHERE pid = %s", pid))


def statements(database: Database) -> list[str]:
    """What runs in the database now."""
    return [query for state, query in database.backends("state", "query") if state == "active"]


@contextlib.asynccontextmanager
async def reused(descriptor: int, pair: tuple[socket.socket, socket.socket]) -> AsyncIterator[None]:
    """Somebody else gets this descriptor number; at the end he must still be told what comes in."""
    os.dup2(pair[0].fileno(), descriptor)
    seen: list[bytes] = []
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, lambda: seen.append(os.read(descriptor, 100)))
    try:
        yield
        pair[1].sendall(b"hello")
        await until(lambda: seen == [b"hello"])
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@pytest.mark.parametrize("end", ["closed by us", "found dead", "dead mid-query", "failed"])
async def test_a_second_close_touches_nobody(database: Database, end: str) -> None:
    """Whoever has the descriptor after the link keeps his reader, however often the link is closed (C4)."""
    ours, theirs = socket.socketpair()
    async with linked(database.dsn) as link:
        descriptor = link.raw.fileno()
        if end == "closed by us":
            link.close()
        elif end == "failed":
            link.fail(QueryTimeout("now"))
        elif end == "found dead":
            database.kill()
            await until(lambda: link.closed)
        else:
            statement = asyncio.ensure_future(ask(link, "SELECT pg_sleep(30)"))
            await running(database, link)
            database.kill()
            with pytest.raises(DatabaseUnavailable):
                await statement
        async with reused(descriptor, (ours, theirs)):
            link.fail(QueryTimeout("again"))
            link.close()
            link.close()
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("many_descriptors")
async def test_descriptors_above_1023(dsn: str) -> None:
    """With more than 1,023 open descriptors an SQL error is raised at once and the connection is kept (C5)."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        async with linked(dsn) as link:
            assert link.raw.fileno() > 1023
            async with asyncio.timeout(10):
                for _ in range(2):
                    with pytest.raises(psycopg2.errors.UndefinedTable):
                        await ask(link, "SELECT 1 FROM nowhere")
                    assert await ask(link, "SELECT 1") == 1
    finally:
        for descriptor in held:
            os.close(descriptor)


async def test_a_timeout_keeps_the_connection(database: Database) -> None:
    """A per-call time-out is a QueryTimeout, ends the statement on the server and keeps the connection (C1, C3)."""
    async with linked(database.dsn) as link:
        pid = link.raw.get_backend_pid()
        with pytest.raises(QueryTimeout, match=r"did not end within 0\.05 s"):
            await link.run(link.cursor(), "SELECT pg_sleep(30)", timeout=0.05)
        assert statements(database) == []
        assert await ask(link, "SELECT pg_backend_pid()") == pid
        assert link.clean


async def test_a_timeout_is_over_with_its_statement(dsn: str) -> None:
    """What was to close a connection that cannot be cancelled in time does nothing to the next statement."""
    async with linked(dsn) as link:
        with pytest.raises(QueryTimeout):
            await link.run(link.cursor(), "SELECT pg_sleep(30)", timeout=0.05)
        assert await ask(link, "SELECT 1 FROM pg_sleep(%s)", (1.5 * CANCEL_MARGIN,)) == 1


@pytest.mark.parametrize("how", ["statement_timeout", "pg_cancel_backend"])
async def test_a_cancel_by_the_server_is_a_query_timeout(database: Database, how: str) -> None:
    """SQLSTATE 57014 is raised as QueryTimeout, not as a cancellation of the task (C1)."""
    async with linked(database.dsn, statement_timeout=0.05 if how == "statement_timeout" else None) as link:
        pid = link.raw.get_backend_pid()
        statement = asyncio.ensure_future(ask(link, "SELECT pg_sleep(30)"))
        if how == "pg_cancel_backend":
            await running(database, link)
            database.sql("SELECT pg_cancel_backend(%s)", pid)
        with pytest.raises(QueryTimeout) as caught:
            await statement
        assert isinstance(caught.value.__cause__, psycopg2.extensions.QueryCanceledError)
        assert await ask(link, "SELECT pg_backend_pid()") == pid


async def test_an_abandoned_statement_is_ended_and_the_connection_kept(database: Database) -> None:
    """After a real cancellation the next statement first ends the old one on the server (C2, C3)."""
    async with linked(database.dsn, abandon_interval=None) as link:
        pid = link.raw.get_backend_pid()
        statement = asyncio.ensure_future(ask(link, "SELECT pg_sleep(30)"))
        await running(database, link)
        statement.cancel()
        with pytest.raises(asyncio.CancelledError):
            await statement
        assert statement.cancelled()
        assert not link.clean
        assert await ask(link, "SELECT pg_backend_pid()") == pid
        assert statements(database) == []


async def test_a_cancel_under_way_never_hits_the_next_statement(database: Database) -> None:
    """The next statement is not sent before a request to cancel has reached the server."""
    with wired(database) as wire:
        wire.deaf_to_cancel = True
        async with linked(wire.dsn) as link:
            first = asyncio.ensure_future(ask(link, "SELECT 1 FROM pg_sleep(0.1)"))
            await until(lambda: wire.queries)
            link.cancel()
            assert await first == 1
            assert not link.clean
            second = asyncio.ensure_future(ask(link, "SELECT 2 FROM pg_sleep(0.2)"))
            await until(lambda: link.running_since and wire.cancels)
            assert len(wire.queries) == 1
            wire.deaf_to_cancel = False
            assert await second == 2
            assert link.clean


async def test_a_server_that_never_answers_the_cancel(database: Database) -> None:
    """The time-out holds, a quarter of a second late at most, and that connection is closed."""
    with wired(database) as wire:
        wire.deaf_to_cancel = True
        async with linked(wire.dsn) as link:
            begun = time.monotonic()
            with pytest.raises(QueryTimeout, match=r"did not end within 0\.05 s"):
                await link.run(link.cursor(), "SELECT pg_sleep(30)", timeout=0.05)
            assert time.monotonic() - begun < BUSY
            assert link.closed


async def test_a_silent_server_does_not_stop_the_process(database: Database) -> None:
    """While a cancel waits for a silent server the loop and other threads keep running (no lock is held)."""
    with wired(database) as wire:
        wire.deaf_to_cancel = True
        async with linked(wire.dsn) as link:
            statement = asyncio.ensure_future(link.run(link.cursor(), "SELECT pg_sleep(30)", timeout=0.05))
            await until(lambda: wire.cancels)
            asking = [thread for thread in threading.enumerate() if thread.name == "poolscope-cancel"]
            assert asking
            for _ in range(100):
                await asyncio.sleep(0)
            assert asking[0].is_alive()
            with pytest.raises(QueryTimeout):
                await statement
        wire.deaf_to_cancel = False
        await asyncio.to_thread(asking[0].join, 5)


async def test_settling_has_an_end(database: Database) -> None:
    """A statement that cannot be ended closes the connection, and the one that wanted it is told."""
    with wired(database) as wire:
        wire.deaf_to_cancel = True
        async with linked(wire.dsn) as link:
            statement = asyncio.ensure_future(ask(link, "SELECT pg_sleep(30)"))
            await until(lambda: wire.queries)
            statement.cancel()
            await asyncio.wait([statement])
            with pytest.raises(DatabaseUnavailable, match="did not end an abandoned statement"):
                await ask(link, "SELECT 1")
            assert link.closed


async def test_settling_is_one_users_business(database: Database) -> None:
    """While an abandoned statement is being ended nobody else can use the connection."""
    with wired(database) as wire:
        wire.deaf_to_cancel = True
        async with linked(wire.dsn) as link:
            statement = asyncio.ensure_future(ask(link, "SELECT pg_sleep(30)"))
            await until(lambda: wire.queries)
            statement.cancel()
            await asyncio.wait([statement])
            settling = asyncio.ensure_future(link.cancel_and_wait())
            await until(lambda: wire.cancels)
            with pytest.raises(ConnectionBusy):
                await link.cancel_and_wait()
            with pytest.raises(ConnectionBusy):
                await ask(link, "SELECT 1")
            wire.deaf_to_cancel = False
            await settling
            assert await ask(link, "SELECT 1") == 1


async def test_an_error_that_arrives_with_the_cancellation(dsn: str) -> None:
    """A statement that fails in the tick in which its task is cancelled leaves no complaint about a lost error."""
    async with linked(dsn) as link:
        statement = asyncio.ensure_future(ask(link, "SELECT 1 / length(pg_sleep(0.2)::text)"))
        loop = asyncio.get_running_loop()

        def at_once() -> None:
            if link.aio._waiter is not None and link.aio._waiter.done():
                statement.cancel()
            elif not statement.done():
                loop.call_soon(at_once)

        await until(lambda: link.running_since)
        at_once()
        with pytest.raises(asyncio.CancelledError):
            await statement
        assert await ask(link, "SELECT 1") == 1


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
async def test_death_while_idle(database: Database, used: bool) -> None:
    """A connection killed while idle is seen dead without being asked, and says DatabaseUnavailable (C10, C11)."""
    async with linked(database.dsn) as link:
        if used:
            assert await ask(link, "SELECT 1") == 1
        database.kill()
        await until(lambda: link.closed)
        assert not link.clean
        with pytest.raises(DatabaseUnavailable, match="died"):
            await link.run(link.cursor(), "SELECT 1")
        with pytest.raises(DatabaseUnavailable, match="died"):
            link.new_cursor()


async def test_death_mid_query(database: Database) -> None:
    """A backend killed under a statement is DatabaseUnavailable with psycopg2's error as the cause (C11)."""
    async with linked(database.dsn) as link:
        statement = asyncio.ensure_future(ask(link, "SELECT pg_sleep(30)"))
        await running(database, link)
        database.kill()
        with pytest.raises(DatabaseUnavailable) as caught:
            await statement
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
        assert link.closed


async def test_death_between_statement_and_fetch(database: Database) -> None:
    """Rows that can no longer be read, because the connection died after they came, are DatabaseUnavailable (C18)."""
    async with linked(database.dsn) as link:
        cursor = link.new_cursor()
        await link.run(cursor, "SELECT 1")
        database.kill()
        await until(lambda: link.closed)
        with pytest.raises(DatabaseUnavailable):
            link.reading(cursor.fetchone)


async def test_closed_under_its_user(database: Database) -> None:
    """fail() closes at once, and the user of the statement in flight gets the reason given."""
    async with linked(database.dsn) as link:
        statement = asyncio.ensure_future(ask(link, "SELECT pg_sleep(30)"))
        await running(database, link)
        link.fail(QueryTimeout("enough"))
        link.fail(QueryTimeout("too late to be the reason"))
        with pytest.raises(QueryTimeout, match="enough"):
            await statement
        with pytest.raises(QueryTimeout, match="enough"):
            await ask(link, "SELECT 1")


async def test_connecting_is_bounded() -> None:
    """A server that accepts and stays silent costs connect_timeout, no more (C8)."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/x"
        async with driving(address, connect_timeout=0.1) as driver, asyncio.timeout(5):
            with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.1 s"):
                await driver.open()
            assert not driver._pools


async def test_a_refused_connection_is_clear_every_time(database: Database) -> None:
    """A server that refuses is said to refuse, at each attempt, and the first attempt after that succeeds (C15)."""
    with wired(database) as wire:
        address, port = wire.dsn.replace("sslmode=disable", "sslmode=prefer"), wire.port
    async with driving(address) as driver:
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable, match="Connection refused"):
                await driver.open()
        with wired(database, port) as wire:
            link = await driver.open()
            assert await ask(link, "SELECT 1") == 1
            link.close()


async def test_a_driver_closes_though_a_link_is_left(dsn: str) -> None:
    """Closing the driver has an end even if somebody kept a link (P6)."""
    async with driving(dsn) as driver:
        link = await driver.open()
        with pytest.raises(TimeoutError):
            await driver.close(0.05)
        link.close()
        await driver.close(0.05)
