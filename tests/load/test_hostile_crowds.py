"""Crowds of clients with bad intentions, and a few good ones among them: these are all answered, and soon."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.conftest import Database, Serve, Served, until
from tests.kit.clients import head, read_answer, reset

from .watch import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .conftest import Connect

LARGE = 64 * 1024
"""Bytes of an answer: a few hundred of them are more than the buffers of a socket's two ends."""


async def small(request: web.Request) -> web.Response:
    return web.Response(text=str(await request["db"].fetchval("SELECT 42")))


async def large(request: web.Request) -> web.Response:
    return web.Response(text=await request["db"].fetchval("SELECT repeat('.', %s)", (LARGE,)))


async def upload(request: web.Request) -> web.Response:
    try:
        length = len(await request.read())
    except web.RequestPayloadError as error:  # aiohttp leaves this answer to the handler
        raise web.HTTPBadRequest from error
    return web.Response(text=str(await request["db"].fetchval("SELECT %s", (length,))))


def application(dsn: str, **settings: Any) -> tuple[web.Application, poolscope.PoolScope]:
    app = web.Application()
    scope = poolscope.setup(app, dsn, **{"maxsize": 2, "queue_target": None, "acquire_timeout": 20, **settings})
    app.router.add_get("/", small)
    app.router.add_get("/large", large)
    app.router.add_post("/upload", upload)
    return app, scope


class Bystanders:
    """Well-behaved clients, each of which asks again as soon as it is answered; every answer must be the right one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.took: list[float] = []

    def more(self, count: int) -> Callable[[], bool]:
        """Whether they have got so many more answers."""
        wanted = len(self.took) + count
        return lambda: len(self.took) >= wanted

    def __str__(self) -> str:
        took = sorted(self.took)
        return f"{len(took)} answered, median {took[len(took) // 2]:.4f} s, worst {took[-1]:.4f} s"


@contextlib.asynccontextmanager
async def bystanders(served: Served, size: int = 4) -> AsyncIterator[Bystanders]:
    found, going = Bystanders(size), True

    async def client() -> None:
        while going:
            begun = time.monotonic()
            assert await served.get() == (200, "42")
            found.took.append(time.monotonic() - begun)

    async with asyncio.TaskGroup() as group:
        for _ in range(size):
            group.create_task(client())
        try:
            yield found
        finally:
            going = False
    print(found)


async def only(others: Bystanders, served: Served) -> None:
    """Wait until the server has seen that nobody else is there any more."""
    await until(lambda: len(served.runner.server.connections) <= others.size, "the end of all others", 10.0)  # type: ignore[union-attr]


async def test_heads_that_dribble_in_cost_the_pool_nothing(
    dsn: str, database: Database, serve: Serve, connect: Connect
) -> None:
    """Two hundred clients send their heads byte by byte: none of them gets as far as a connection before its end."""
    app, scope = application(dsn)
    sent = head("/", X_Request_ID="y" * 100)
    async with serve(app) as served, Watch(scope, database) as watch:
        before = scope.stats().borrows
        async with bystanders(served) as others:
            slow = [await connect(served, sent[:1]) for _ in range(200)]
            for position in range(1, 20):
                for _, writer in slow:
                    writer.write(sent[position : position + 1])
                await until(others.more(4), "the others' answers")
        assert scope.stats().borrows - before == len(others.took)
        for number, (reader, writer) in enumerate(slow):
            if number % 10 == 0:
                writer.write(sent[20:])
                assert (await read_answer(reader)).body == b"42"
            reset(writer)
        await watch.calm()


STOPPED = {
    "half a line": b"GET / HT",
    "half a head": head("/")[:-2],
    "half a header": b"GET / HTTP/1.1\r\nHost: test\r\nX-Request-ID: ab",
    "no body": head("/upload", "POST", Content_Length="100"),
    "half a body": head("/upload", "POST", Content_Length="100") + b"." * 50,
    "no more than promised": head("/upload", "POST", Content_Length=str(1 << 40)) + b"." * 1000,
    "100-continue": head("/upload", "POST", Content_Length="100", Expect="100-continue"),
    "half a chunk": head("/upload", "POST", Transfer_Encoding="chunked") + b"64\r\n....",
    "no last chunk": head("/upload", "POST", Transfer_Encoding="chunked") + b"4\r\n....\r\n",
    "half a body of a GET": head("/", Content_Length="100"),
    "an answer and half a head": head("/") + head("/")[:-2],
}
"""What is sent, and then no more. The last two are answered all the same."""


async def test_requests_that_stop_half_way_hold_nothing(
    dsn: str, database: Database, serve: Serve, connect: Connect, *, cancellation: bool, seed: int
) -> None:
    """Requests that stop in the middle of line, head, body or chunk: nobody waits for them, however they end then."""
    rng = random.Random(seed)
    app, scope = application(dsn)
    options = {"handler_cancellation": cancellation, "lingering_time": 0.1}
    async with serve(app, **options) as served, Watch(scope, database) as watch:
        before = scope.stats().borrows
        async with bystanders(served) as others:
            stopped = [await connect(served, each) for each in STOPPED.values() for _ in range(15)]
            await until(others.more(50), "the others' answers")
            assert all(lease.route == "/" for lease in scope.leases())
            for _, writer in stopped:
                rng.choice((reset, asyncio.StreamWriter.close, asyncio.StreamWriter.write_eof))(writer)
            await until(others.more(50), "the others' answers")
        for _, writer in stopped:
            writer.close()
        await only(others, served)
        assert scope.stats().borrows - before == len(others.took) + 2 * 15
        await watch.calm()


MALFORMED = {
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\nHost: test\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "binary": bytes(range(256)) * 4,
    "long path": head("/" + "x" * 20_000),
    "long method": head("/", "X" * 5_000),
    "long id": head("/", X_Request_ID="x" * 20_000),
    "many headers": head("/", **{f"X-{number}": "x" * 100 for number in range(2_000)}),
    "one long header name": head("/", **{"X" * 20_000: "x"}),
    "id with control characters": b"GET / HTTP/1.1\r\nHost: test\r\nX-Request-ID: \x1b[2J\x00\x07\r\n\r\n",
    "id on two lines": b"GET / HTTP/1.1\r\nHost: test\r\nX-Request-ID: a\r\n b\r\n\r\n",
    "header without a name": b"GET / HTTP/1.1\r\nHost: test\r\n: x\r\n\r\n",
    "header without a colon": b"GET / HTTP/1.1\r\nHost: test\r\nnonsense\r\n\r\n",
    "two lengths": b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n.....",
    "length and chunks": head("/upload", "POST", Content_Length="4", Transfer_Encoding="chunked") + b"0\r\n\r\n",
    "negative length": head("/upload", "POST", Content_Length="-1"),
    "length that is none": head("/upload", "POST", Content_Length="4,5"),
    "chunk that is none": head("/upload", "POST", Transfer_Encoding="chunked") + b"zz\r\n....\r\n",
    "encoding that is none": head("/upload", "POST", Transfer_Encoding="chunked, nonsense") + b"0\r\n\r\n",
    "compressed nonsense": head("/upload", "POST", Content_Encoding="gzip", Content_Length="4") + b"....",
    "too much": head("/upload", "POST", Content_Length="3000000") + bytes(3_000_000),
    "websocket that is none": head("/", Connection="Upgrade", Upgrade="websocket"),
    "path with line feeds": head("/%0d%0aX-Forged:%20yes"),
    "path that is not UTF-8": b"GET /\xff\xfe HTTP/1.1\r\nHost: test\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
}


def mutated(rng: random.Random) -> bytes:
    """A good request with a few bytes changed, doubled or left out."""
    data = bytearray(rng.choice((head("/", X_Request_ID="abc"), head("/upload", "POST", Content_Length="4") + b"....")))
    for _ in range(rng.randrange(1, 6)):
        position = rng.randrange(len(data))
        data[position : position + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(data)


async def test_malformed_requests_are_refused_or_answered(
    dsn: str, database: Database, serve: Serve, connect: Connect, seed: int
) -> None:
    """Whatever a client sends, it is answered below 500 or cut off; no connection of the pool is lost by it."""
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    app, scope = application(dsn)

    async def one(name: str, data: bytes) -> None:
        reader, writer = await connect(served, data)
        try:
            async with asyncio.timeout(0.5):  # some are good beginnings: the server waits for more
                status = (await read_answer(reader)).status
        except TimeoutError:
            status = -1
        statuses[status] += 1
        assert status < 500, (name, data)
        writer.close()

    async with serve(app, access_log=None, lingering_time=0.1) as served, Watch(scope, database) as watch:
        async with bystanders(served) as others:
            await asyncio.gather(*(one(name, data) for name, data in MALFORMED.items()))
            assert statuses[400] > len(MALFORMED) / 2
            await asyncio.gather(*(one("mutated", mutated(rng)) for _ in range(300)))
            await until(others.more(10), "the others' answers")
        print(dict(statuses))
        await only(others, served)
        await watch.calm()


@pytest.mark.usefixtures("many_descriptors")
async def test_a_thousand_who_keep_their_connection_and_say_no_more(
    dsn: str, database: Database, serve: Serve, connect: Connect
) -> None:
    """1,200 clients were answered once and keep their connection: others are served as ever, above descriptor 1023."""
    app, scope = application(dsn, minsize=0, connect_at_start=False)
    async with serve(app) as served, Watch(scope, database) as watch:
        idle = [await connect(served, b"") for _ in range(1200)]
        await until(lambda: len(served.runner.server.connections) == 1200)  # type: ignore[union-attr]
        async with bystanders(served) as others:
            for some in (idle[start::4] for start in range(4)):  # no more than may wait
                for _, writer in some:
                    writer.write(head("/"))
                assert {(await read_answer(reader)).body for reader, _ in some} == {b"42"}
            await until(others.more(100), "the others' answers")
            assert scope._run is not None
            assert {slot.link.raw.fileno() > 1023 for slot in scope._run.pool.gate.slots} == {True}
        await watch.calm()


async def test_pipelines_that_nobody_reads_hold_no_connection(
    dsn: str, database: Database, serve: Serve, connect: Connect
) -> None:
    """Ten clients send two hundred requests each and read no answer: they are stuck, and nobody else is."""
    app, scope = application(dsn)
    async with serve(app) as served, Watch(scope, database) as watch:
        async with bystanders(served) as others:
            stuck = [await connect(served, head("/large") * 200) for _ in range(10)]
            await until(others.more(50), "the others' answers")
            await until(lambda: all(lease.route == "/" for lease in scope.leases()), "all of them stuck")
            for number, (reader, writer) in enumerate(stuck):
                if number == 0:
                    assert [len((await read_answer(reader)).body) for _ in range(200)] == [LARGE] * 200
                reset(writer)
        assert scope.stats().borrows < 10 * 200 + len(others.took)
        await watch.calm()


async def test_a_flood_of_clients_that_do_not_wait(
    dsn: str, database: Database, serve: Serve, cancellation: bool, seed: int
) -> None:
    """Five hundred connect, say nothing, half or all of a request, and leave at once; others are served."""
    rng = random.Random(seed)
    app, scope = application(dsn, maxsize=4)

    async def come_and_go() -> None:
        while left:
            left.pop()
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", served.port)
                writer.write(rng.choice((b"", b"GET / HT", head("/"), head("/"), head("/large"))))
                rng.choice((reset, asyncio.StreamWriter.close))(writer)

    left = list(range(500))
    async with serve(app, handler_cancellation=cancellation, access_log=None) as served:
        async with Watch(scope, database) as watch:
            async with bystanders(served) as others:
                await asyncio.gather(*(come_and_go() for _ in range(50)))
                await until(others.more(10), "the others' answers")
            await only(others, served)
            await watch.calm()
        assert len(others.took) > 10
