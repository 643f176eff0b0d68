"""Connections that are not given back: who is told, what is told, what is not, and how they come back."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.errors import ConnectionReleased
from aiohttp_poolscope.pool import housekeeper
from tests.conftest import BUSY, Database, Serve, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOKING = 0.2
"""Seconds between two looks at the leases, in these tests."""

SECRETS = ("hunter2-password", "parameter-4711", "query-string-token", "cookie-monster", "postgresql://", "host=")
"""What stands in the connection's address, in a statement or in a request, and must stand in no log."""


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The pool looks at its leases five times a second instead of once, and all that it says is kept."""
    monkeypatch.setattr(housekeeper, "CALM", LOOKING)
    caplog.set_level(logging.INFO, "aiohttp_poolscope")


class Said:
    """What the pool has said of leases in the log."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def lines(self) -> list[str]:
        return [each.getMessage() for each in self._caplog.records if each.name == "aiohttp_poolscope"]

    @property
    def leaks(self) -> list[str]:
        return [line for line in self.lines if "a connection is held for" in line]

    @property
    def late(self) -> list[str]:
        return [line for line in self.lines if "a connection came back after" in line]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    return Said(caplog)


def line_of(marker: str) -> str:
    """The line in this file that ends with ``# <marker>``, as leases tell it."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {marker}"))
    return f"{__file__}:{number} in "


class Leaky:
    """An application that leaks in every way there is, until ``out`` is set."""

    def __init__(self, dsn: str, **settings: Any) -> None:
        self.out = asyncio.Event()
        self.kept: list[Any] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.app = web.Application()
        self.scope = poolscope.setup(self.app, dsn, **settings)
        for handler in (self.eager, self.lazy, self.second, self.behind, self.keep):
            self.app.router.add_get(f"/{handler.__name__}/{{id}}", handler)

    async def eager(self, request: web.Request) -> web.Response:  # eager
        await self.stuck(request["db"])
        return web.Response()

    @poolscope.lazy
    async def lazy(self, request: web.Request) -> web.Response:
        await request["db"].fetchval("SELECT 1")  # lazy
        await self.stuck(request["db"])
        return web.Response()

    @poolscope.lazy
    async def second(self, request: web.Request) -> web.Response:
        async with self.scope.acquire() as db:  # second
            await self.stuck(db)
        return web.Response()

    async def behind(self, request: web.Request) -> web.Response:
        request["db"].release()
        self.spawn(self.transaction(), "left behind")
        return web.Response()

    @poolscope.lazy
    async def keep(self, request: web.Request) -> web.Response:
        await self.forget()
        return web.Response()

    async def transaction(self) -> None:
        async with self.scope.transaction() as tx:  # transaction
            await self.stuck(tx)

    async def forget(self) -> None:
        self.kept.append(await self.scope.acquire())  # forgotten

    async def stuck(self, db: Any) -> None:
        await db.fetchval("SELECT %s", (SECRETS[1],))
        await self.out.wait()

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        self.tasks.add(task := asyncio.create_task(work, name=name))
        task.add_done_callback(self.tasks.discard)
        return task

    async def end(self) -> None:
        self.out.set()
        for db in self.kept:
            db.release()
        await asyncio.gather(*self.tasks)


def field(report: str, name: str) -> str | None:
    """One field of the lease in a report."""
    found = re.search(rf"\b{name}=(None|'[^']*')", report)
    assert found, report
    return None if found[1] == "None" else found[1].strip("'")


async def test_every_kind_of_leak_is_reported_once_and_again_when_it_ends(dsn: str, serve: Serve, said: Said) -> None:
    """Eager or lazy, in a task, in a transaction, after its task: who has it is told once, and when it comes back."""
    it = Leaky(dsn, maxsize=7, leak_threshold=0.1)
    async with serve(it.app) as served:
        asking = [
            asyncio.create_task(served.status(f"/{kind}/7", headers={"X-Request-ID": f"id-{kind}"}))
            for kind in ("eager", "lazy", "second")
        ]
        assert await served.status("/behind/7", headers={"X-Request-ID": "id-behind"}) == 200
        it.spawn(it.transaction(), "nightly")
        await it.spawn(it.forget(), "forgetful")
        await until(lambda: it.scope.stats().leaked == 6, "six reports")
        async with it.scope.acquire():  # the seventh: when it is reported, the others have been looked at again
            await until(lambda: it.scope.stats().leaked == 7, "the seventh report")
        reports = {(field(each, "path"), field(each, "task"), field(each, "where")): each for each in said.leaks}
        assert len(said.leaks) == len(reports) == 7
        assert any(line_of("forgotten") in each for each in said.leaks)
        for kind in ("eager", "lazy", "second"):
            (report,) = [each for each in said.leaks if f"/{kind}/7" in each]
            assert (field(report, "method"), field(report, "route")) == ("GET", f"/{kind}/{{id}}")
            assert field(report, "request_id") == f"id-{kind}"
            assert field(report, "task")
            assert line_of(kind) in report
        assert {"nightly", "forgetful", "left behind"} < {task for _, task, _ in reports}
        assert len(said.late) == 1
        await it.end()
        assert await asyncio.gather(*asking) == [200] * 3
        await until(lambda: not it.scope.stats().in_use, "the return of all")
        assert len(said.late) == 7
        assert all(float(re.search(r"came back after ([\d.]+) s", each)[1]) >= 0.1 for each in said.late)  # type: ignore[index]
        assert {field(each, "where") for each in said.late} == {where for _, _, where in reports}
        assert it.scope.stats().leaked == 7


async def test_a_transaction_of_the_scope_tells_its_line(dsn: str, make_scope: Any, said: Said) -> None:
    """A transaction held open is reported with the line that began it, also where run_transaction() did."""
    async with make_scope(maxsize=2, leak_threshold=0.1) as scope:

        async def held(_: Any) -> None:
            await until(lambda: scope.stats().leaked == 2, "the reports")

        async def run() -> None:
            await scope.run_transaction(held)  # run

        task = asyncio.create_task(run())
        async with scope.transaction():  # block
            await until(lambda: scope.stats().leaked == 2, "the reports")
        await task
    assert sorted(line_of(each) in report for each in ("run", "block") for report in said.leaks) == [
        False, False, True, True,
    ]  # fmt: skip


async def test_two_leaky_leases_of_one_request_are_two_reports(dsn: str, serve: Serve, said: Said) -> None:
    """It is the lease that leaks, not the request: a second one is reported as well, with the line that borrowed it."""

    @poolscope.lazy
    async def handler(request: web.Request) -> web.Response:
        await request["db"].fetchval("SELECT 1")  # the first lease
        await until(lambda: scope.stats().leaked == 1, "its report")
        request["db"].release()
        await request["db"].fetchval("SELECT 1")  # the quick lease
        request["db"].release()
        await request["db"].fetchval("SELECT 1")  # the other lease
        await until(lambda: scope.stats().leaked == 2, "its report")
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, leak_threshold=0.1)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status(headers={"X-Request-ID": "one-request"}) == 200
    for lines in (said.leaks, said.late):
        assert [line_of("the first lease") in each for each in lines] == [True, False]
        assert [line_of("the other lease") in each for each in lines] == [False, True]
        assert [field(each, "request_id") for each in lines] == ["one-request"] * 2


@pytest.mark.parametrize("kind", ["lazy", "second", "eager"])
async def test_stacks_show_the_way_to_the_borrow(dsn: str, serve: Serve, said: Said, kind: str) -> None:
    """stacks=True: report and leases() have every line of the way; for an eager lease, where its handler stands."""
    it = Leaky(dsn, maxsize=1, leak_threshold=0.1, stacks=True)
    async with serve(it.app) as served:
        asked = asyncio.create_task(served.status(f"/{kind}/7"))
        await until(lambda: said.leaks, "the report")
        (lease,) = it.scope.leases()
        await it.end()
        assert await asked == 200
    assert lease.stack is not None
    ours = [line for line in lease.stack if line.startswith(__file__)]
    assert [line.rpartition(".")[2] for line in ours] == {"eager": ["eager", "stuck"]}.get(kind, [kind])
    if kind != "eager":
        assert ours[-1].startswith(line_of(kind))
        assert lease.stack[-1] == ours[-1] == lease.where
    assert all(line in said.leaks[0] for line in lease.stack)


@pytest.mark.parametrize("stacks", [False, True])
async def test_reports_tell_no_secret(dsn: str, serve: Serve, said: Said, stacks: bool) -> None:
    """No parameter of a statement, no query string, no cookie, nothing of the DSN is in a report; a stack if wanted."""
    it = Leaky(dsn, maxsize=3, leak_threshold=0.1, stacks=stacks, password=SECRETS[0])
    headers = {"Cookie": f"session={SECRETS[3]}", "Authorization": SECRETS[3]}
    async with serve(it.app) as served:
        asking = [
            asyncio.create_task(served.client.get(served.url / kind / "7" % {"token": SECRETS[2]}, headers=headers))
            for kind in ("eager", "lazy")
        ]
        it.spawn(it.transaction(), "nightly")
        await until(lambda: it.scope.stats().leaked == 3, "the reports")
        told = [*said.lines, repr(it.scope.leases()), repr(it.scope)]
        assert [lease.stack is not None for lease in it.scope.leases()] == [stacks] * 3
        await it.end()
        for each in asking:
            async with await each as response:
                assert response.status == 200
    assert len(said.leaks) == len(said.late) == 3
    assert [(secret, line) for line in (*told, *said.lines) for secret in SECRETS if secret in line] == []


HOSTILE = {
    "long": b"x" * 10_000,
    "line feed": b"a\nWARNING forged",
    "carriage return": b"a\rWARNING forged",
    "escape": b"\x1b[2Jcleared",
    "null": b"a\x00b",
    "delete": b"a\x7fb",
    "obsolete folding": b"a\r\n WARNING forged",
    "latin-1": b"\xe9\x85\x9b",
    "separators": "a\u2028b\u0085c".encode(),
    "quotes": b"')] WARNING",
}
"""Request ids. What aiohttp refuses by itself does not come this far."""

FORGED = "/eager/%0AWARNING%20forged%1b%5b2J%e2%80%a8%c2%85"
"""A path that is several lines once it is decoded."""


async def test_no_request_breaks_a_log_line(dsn: str, serve: Serve, said: Said) -> None:
    """Whatever its id and its path are, a request's leak is one line of printable characters, and not a long one."""
    it = Leaky(dsn, maxsize=len(HOSTILE), leak_threshold=0.1)
    head = f"GET {FORGED} HTTP/1.1\r\nHost: test\r\nX-Request-ID: ".encode()
    async with serve(it.app, max_field_size=16384) as served:
        clients = {name: await served.raw(head + each + b"\r\n\r\n") for name, each in HOSTILE.items()}
        heard = {name: asyncio.create_task(reader.read(12)) for name, (reader, _) in clients.items()}
        await until(lambda: it.scope.stats().leaked + sum(each.done() for each in heard.values()) == len(HOSTILE))
        refused = {name for name, each in heard.items() if each.done() and each.result()[8:] == b" 400"}
        assert refused == {name for name, each in heard.items() if each.done()}
        await it.end()
        await asyncio.wait(heard.values())
        for _, writer in clients.values():
            writer.close()
    print("refused by aiohttp:", refused)
    assert "long" not in refused
    assert len(said.leaks) == len(said.late) == len(HOSTILE) - len(refused)
    assert [line for line in said.lines if not line.isprintable()] == []
    assert max(map(len, said.leaks)) < 1000


async def test_the_last_word_about_a_leak_is_one_line(dsn: str, serve: Serve, said: Said) -> None:
    """What the shutdown says of those that it has forced is one line as well, whatever path they came by."""
    it = Leaky(dsn, drain_grace=0.05, drain_timeout=0.1)
    async with serve(it.app) as served:
        reader, writer = await served.raw(f"GET {FORGED.replace('eager', 'keep')} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await reader.read(12)) == b"HTTP/1.1 200"
        writer.close()
    (forced,) = [line for line in said.lines if "1 forced" in line]
    assert "keep" in forced
    assert forced.isprintable()


USES: tuple[Callable[[Any], Awaitable[Any]], ...] = (
    lambda db: db.fetchval("SELECT 1"),
    lambda db: db.cursor(),
    lambda db: anext(db.stream("SELECT 1")),
    lambda db: db.transaction().__aenter__(),
    lambda db: db.acquire(),
)


async def test_after_max_lease_every_use_says_why(make_scope: Any) -> None:
    """A holder whose connection was taken away hears it at its next use, whichever that is; release() is harmless."""
    async with make_scope(maxsize=1, max_lease=0.1) as scope:
        db = await scope.acquire()
        cursor = await db.cursor()
        await cursor.execute("SELECT 1")
        await until(lambda: db.closed, "the end of max_lease")
        for use in USES:
            with pytest.raises(ConnectionReleased, match=r"max_lease \(0\.1 s\)"):
                await use(db)
        with pytest.raises(ConnectionReleased, match="max_lease"):
            await cursor.fetchone()
        with pytest.raises(ConnectionReleased, match="max_lease"):
            _ = db.raw
        assert await scope.fetchval("SELECT 1") == 1
        db.release()
        assert scope.stats().in_use == 0


async def test_a_transaction_beyond_max_lease_has_written_nothing(make_scope: Any, database: Database) -> None:
    """A transaction held open for longer than max_lease is undone, and its COMMIT says so."""
    database.sql("CREATE TABLE written (id int)")
    async with make_scope(maxsize=1, max_lease=0.1) as scope:

        async def work() -> None:
            async with scope.transaction() as tx:
                await tx.execute("INSERT INTO written VALUES (1)")
                await until(lambda: not scope.stats().in_use, "the end of max_lease")

        with pytest.raises(ConnectionReleased, match="max_lease"):
            await work()
        await until(
            lambda: database.sql("SELECT * FROM pg_locks WHERE relation = 'written'::regclass") == [], "no lock"
        )
        assert database.sql("SELECT * FROM written") == []


@pytest.mark.parametrize("abandon_interval", [0.2, None])
async def test_max_lease_ends_the_statement_too(
    dsn: str, database: Database, serve: Serve, abandon_interval: float | None
) -> None:
    """The statement in flight of a lease that is taken away ends on the server; its client hears 500."""

    async def handler(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(%s)", (request.match_info["seconds"],))
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, max_lease=0.1, abandon_interval=abandon_interval)
    app.router.add_get("/{seconds}", handler)
    async with serve(app) as served:
        status, body = await served.get("/60")
        begun = time.monotonic()
        assert (status, json.loads(body)["code"]) == (500, "connection-released")
        limit = (abandon_interval or 0.0) + BUSY
        await until(lambda: ("active",) not in database.backends("state"), "the statement's end", limit)
        print(round(time.monotonic() - begun, 3))
        await until(lambda: scope.stats().size, "the next connection")
        assert await served.status("/0") == 200


async def test_max_lease_gives_back_what_nobody_has(dsn: str, serve: Serve, said: Said) -> None:
    """A connection that was borrowed and forgotten serves others again after max_lease, even the only one."""
    it = Leaky(dsn, maxsize=1, max_lease=0.1, leak_threshold=0.05, acquire_timeout=10)
    async with serve(it.app) as served:
        for number in range(3):
            assert await served.status(f"/keep/{number}") == 200
        assert it.scope.stats().in_use == 1
        await until(lambda: not it.scope.stats().in_use, "the end of the last")
        assert it.scope.stats().opened - it.scope.stats().closed <= 1
    assert [field(each, "path") for each in said.leaks] == ["/keep/0", "/keep/1", "/keep/2"]
