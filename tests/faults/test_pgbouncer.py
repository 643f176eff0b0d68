"""PgBouncer in transaction mode between the pool and the server: the promises hold, or docs/pgbouncer.md says so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from typing import Any

import pytest

from aiohttp_poolscope.errors import DatabaseUnavailable, QueryTimeout
from tests.conftest import BUSY, Database, until
from tests.kit.bouncer import PgBouncer, needed
from tests.kit.wire import driving, linked, wired_to

pytestmark = needed

PID = "SELECT pg_backend_pid()"
TAKES_ONE = "SELECT pg_sleep(0.2)"
"""Long enough for others to need a server connection meanwhile."""


async def test_ten_connections_share_two(make_scope: Any, database: Database) -> None:
    """Ten connections of the pool share two of the server: all are served, and no more are opened there."""
    with PgBouncer(database.dsn, default_pool_size=2) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, minsize=10, maxsize=10) as scope:
            asked = [scope.fetchrow("SELECT pg_backend_pid(), %s FROM pg_sleep(0.01)", (n,)) for n in range(40)]
            rows = await asyncio.gather(*asked)
            assert [number for _, number in rows] == list(range(40))
            assert len({pid for pid, _ in rows}) == 2
            assert (len(bouncer.clients()), len(bouncer.servers())) == (10, 2)
            assert (scope.stats().opened, scope.stats().closed) == (10, 0)


async def test_who_waits_in_pgbouncer_is_served(make_scope: Any, database: Database) -> None:
    """While every server connection is in a transaction, statements wait; then they run, on the same connections."""
    with PgBouncer(database.dsn, default_pool_size=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, minsize=5, maxsize=5) as scope:
            async with scope.transaction() as tx:
                await tx.execute("SELECT 1")
                waiting = [asyncio.ensure_future(scope.fetchval("SELECT %s", (n,))) for n in range(4)]
                await until(lambda: bouncer.waiting() == 4)
            assert await asyncio.gather(*waiting) == list(range(4))
            assert scope.stats().closed == 0


async def test_a_transaction_has_one_server_connection(make_scope: Any, database: Database) -> None:
    """Statements go from one server connection to the next; those of a transaction, a stream or executemany do not."""
    database.sql("CREATE TABLE things (n int, pid int DEFAULT pg_backend_pid())")
    with PgBouncer(database.dsn, default_pool_size=3, min_pool_size=3, server_round_robin=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, maxsize=3) as scope, scope.acquire() as db:
            await asyncio.gather(scope.execute(TAKES_ONE), scope.execute(TAKES_ONE), db.execute(TAKES_ONE))
            assert len({await db.fetchval(PID) for _ in range(6)}) == 3
            for _ in range(3):
                async with db.transaction() as tx:
                    async with tx.transaction() as inner:
                        pids = {await inner.fetchval(PID) for _ in range(4)}
                    assert {await tx.fetchval(PID), *pids} == pids
                stream = db.stream("SELECT n, pg_backend_pid() FROM generate_series(1, 9) n", size=2)
                rows = [row async for row in stream]
                assert [n for n, _ in rows] == list(range(1, 10))
                assert len({pid for _, pid in rows}) == 1
                await db.executemany("INSERT INTO things VALUES (%s)", [(n,) for n in range(250)])
                assert await db.fetchval("SELECT count(DISTINCT pid) FROM things") == 1
                await db.execute("TRUNCATE things")


async def cut_short(db: Any, rng: random.Random) -> bool:
    """A statement that is ended about when it would end, or with its task. Whether it was a QueryTimeout."""
    takes = rng.random() * 0.01
    limit = max(0.0005, takes - rng.random() * 0.004)
    try:
        if rng.random() < 0.7:
            await db.execute("SELECT pg_sleep(%s)", (takes,), timeout=limit)
        else:
            async with asyncio.timeout(limit):
                await db.execute("SELECT pg_sleep(%s)", (takes,))
    except TimeoutError:
        return False
    except QueryTimeout:
        return True
    return False


async def test_a_cancel_hits_nobody_else(make_scope: Any, database: Database) -> None:
    """Statements are cancelled as they end, on shared server connections: no other is hit, nor the next one."""
    settings = {"pgbouncer": True, "statement_timeout": None, "acquire_timeout": 60}
    rng = random.Random(1)
    busy, cancelled = 3, 0

    async def neighbour(scope: Any, number: int) -> None:
        nonlocal busy
        for turn in itertools.count():
            if turn >= 100 and cancelled >= 20:
                break
            said = f"{number} {turn}"
            assert await scope.fetchval("SELECT %s FROM pg_sleep(%s)", (said, rng.random() * 0.006)) == said
        busy -= 1

    async def canceller(scope: Any) -> None:
        nonlocal cancelled
        while busy:
            async with scope.acquire() as db:
                cancelled += await cut_short(db, rng)
                if not db.closed:  # it is, if it waited too long in PgBouncer, where nothing is cancelled
                    assert await db.fetchval("SELECT 7 FROM pg_sleep(0.005)") == 7

    with PgBouncer(database.dsn, default_pool_size=5) as bouncer:
        async with (
            make_scope(bouncer.dsn, minsize=3, maxsize=3, key="neighbours", **settings) as theirs,
            make_scope(bouncer.dsn, minsize=4, maxsize=4, key="cancelling", **settings) as ours,
            asyncio.timeout(60),
            asyncio.TaskGroup() as group,
        ):
            for number in range(busy):
                group.create_task(neighbour(theirs, number))
            for _ in range(4):
                group.create_task(canceller(ours))


async def test_a_time_out_in_pgbouncers_queue(make_scope: Any, database: Database) -> None:
    """A statement that waits in PgBouncer cannot be cancelled there: its time-out, or its task's end, closes it."""
    with PgBouncer(database.dsn, default_pool_size=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, maxsize=3) as scope:
            async with scope.transaction() as tx:
                assert await tx.fetchval("SELECT 1") == 1
                begun = time.monotonic()
                async with scope.acquire() as db:
                    with pytest.raises(QueryTimeout):
                        await db.execute("SELECT 2", timeout=0.1)
                    assert time.monotonic() - begun < BUSY
                    assert db.closed
                assert await tx.fetchval("SELECT 3") == 3
            assert await scope.fetchval("SELECT 4") == 4
            async with scope.transaction() as tx:
                await tx.execute("SELECT 5")
                await until(lambda: not bouncer.waiting())
                task = asyncio.ensure_future(scope.execute("SELECT 6"))
                await until(lambda: bouncer.waiting() == 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert scope.stats().repairing == 1
                await until(lambda: not scope.stats().repairing, "the end of its connection", 3.0)
                assert await tx.fetchval("SELECT 7") == 7
            assert await scope.fetchval("SELECT 8") == 8


async def test_a_silent_network(make_scope: Any, database: Database) -> None:
    """When PgBouncer itself does not answer any more, statement_timeout holds, and closes the connection."""
    with PgBouncer(database.dsn) as bouncer, wired_to(bouncer.dsn) as wire:
        async with make_scope(wire.dsn, pgbouncer=True, statement_timeout=0.1) as scope:
            async with scope.acquire() as db, asyncio.timeout(10):
                wire.frozen = wire.deaf_to_cancel = True
                with pytest.raises(QueryTimeout):
                    await db.execute("SELECT 1")
                assert db.closed
            wire.frozen = wire.deaf_to_cancel = False
            assert await scope.fetchval("SELECT 1") == 1


async def test_abandoned(make_scope: Any, database: Database) -> None:
    """A cancelled statement ends on the server. One without a connection goes on, unless its role has a limit."""
    mine = "query LIKE '%%mine%%' AND state = 'active'"
    sleep = "SELECT pg_sleep(%s), 'mine'"
    with PgBouncer(database.dsn, default_pool_size=1) as bouncer:
        async with make_scope(bouncer.dsn, pgbouncer=True, maxsize=1) as scope:
            task = asyncio.ensure_future(scope.execute(sleep, (60,)))
            await until(lambda: (True,) in database.backends(mine))
            task.cancel()
            await until(lambda: (True,) not in database.backends(mine), "its end")
            assert await scope.fetchval("SELECT 1") == 1
            assert scope.stats().closed == 0
        for seconds, interval in ((1.5, 0), (60, 100)):
            database.sql(f"ALTER ROLE {bouncer.user} SET client_connection_check_interval = {interval}")
            bouncer.console("RECONNECT")
            try:
                async with linked(bouncer.dsn, pgbouncer=True) as link:
                    running = asyncio.ensure_future(link.run(link.cursor(), sleep, (seconds,)))
                    await until(lambda: (True,) in database.backends(mine))
                    begun = time.monotonic()
                    link.fail(DatabaseUnavailable("as if the process had been killed"))
                    with contextlib.suppress(DatabaseUnavailable):
                        await running
                await until(lambda: (True,) not in database.backends(mine), "its end", 10.0)
                assert interval or time.monotonic() - begun > 1.0
            finally:
                database.sql(f"ALTER ROLE {bouncer.user} RESET client_connection_check_interval")


async def test_the_role_is_asked_for(database: Database) -> None:
    """What PgBouncer says of the server's role is not believed: it repeats what some server told it once."""
    with PgBouncer(database.dsn) as bouncer:
        async with linked(bouncer.dsn, pgbouncer=True) as link:
            assert link.raw.get_parameter_status("in_hot_standby") == "off"
            assert link.in_standby is None
            assert await link.is_standby() is False


async def test_without_the_setting(make_scope: Any, database: Database) -> None:
    """Without pgbouncer=True PgBouncer refuses the connection, and the start fails with what it said."""
    refused = pytest.raises(DatabaseUnavailable, match=r"unsupported startup parameter.*set pgbouncer=True")
    with PgBouncer(database.dsn) as bouncer, refused:
        async with make_scope(bouncer.dsn):
            pass


@pytest.mark.parametrize("auth_type", ["scram-sha-256", "md5"])
async def test_passwords(make_scope: Any, server: Any, auth_type: str) -> None:
    """PgBouncer's own passwords work, also with libpq's default sslmode; a wrong one is said at once."""
    with PgBouncer(server, auth_type=auth_type) as bouncer:
        address = bouncer.dsn.removesuffix("?sslmode=disable")
        async with make_scope(address, pgbouncer=True) as scope:
            assert await scope.fetchval("SELECT 1") == 1
        wrong = driving(address, pgbouncer=True, password="wrong", connect_timeout=30)
        async with wrong as driver, asyncio.timeout(10):
            with pytest.raises(DatabaseUnavailable, match="authentication failed"):
                await driver.open()
