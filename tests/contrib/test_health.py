"""Health routes, over real sockets: what each probe hears, and that asking costs nobody anything (O5)."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import ClientSession, TCPConnector, web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib import health
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from aiohttp_poolscope.contrib.health import setup_health
from tests.conftest import DEADLINE, until
from tests.kit.clients import head, read_answer
from tests.kit.wire import wired

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.conftest import Audit, Database, Serve, Served

NAMES = ("readiness", "liveness", "startup")
PATHS = ("/readyz", "/livez", "/startupz")

SOON = 3.0
"""Seconds: above what any probe may take (its limit is 0.8), on a machine that has other work to do."""

WORDS = {"starting", "draining", "closed", "breaker open", "no answer", "stalled"}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: Any


async def probe(served: Served, path: str = "/readyz", method: str = "GET") -> Answer:
    async with served.client.request(method, served.url / path.lstrip("/")) as response:
        text = await response.text()
        return Answer(response.status, response.headers, json.loads(text) if text else None)


async def becomes(served: Served, status: int, path: str = "/readyz", reason: str | None = None) -> Answer:
    """Wait until a probe hears this."""
    async with asyncio.timeout(2 * DEADLINE):
        while True:
            answer = await probe(served, path)
            reasons = [pool["reason"] for pool in answer.body["pools"].values()]
            if answer.status == status and (reason is None or reason in reasons):
                return answer
            await asyncio.sleep(0.02)


def saying(state: str, reason: str | None) -> dict[str, Any]:
    return {"status": "unready" if reason else "ready", "pools": {"db": {"state": state, "reason": reason}}}


class App:
    """An application with health routes whose other handler holds its connection until ``go``."""

    def __init__(self, dsn: str, settings: dict[str, Any] | None = None, **health: Any) -> None:
        self.go = asyncio.Event()
        self.web = web.Application()
        self.scope = poolscope.setup(self.web, dsn, **{"maxsize": 2, "acquire": "eager", **(settings or {})})
        setup_health(self.web, self.scope, **health)
        self.web.router.add_get("/hold", self.hold)

    async def hold(self, request: web.Request) -> web.Response:
        await self.go.wait()
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, to be stopped and started."""
    with EmbeddedPostgres(tcp=True) as server:
        yield server


def installed(how: str, scope: poolscope.PoolScope) -> web.Application:
    """An application with the routes at /internal, and the scope set up before them, after them, or by hand."""
    app = web.Application()
    paths = {name: f"/internal{path}" for name, path in zip(NAMES, PATHS, strict=True)}
    if how == "by hand":
        app.middlewares.append(scope.middleware)
        app.cleanup_ctx.append(scope.cleanup_ctx)
    elif how != "after":
        scope.setup(app)
    if how == "in a sub-application":
        setup_health(sub := web.Application(), scope)
        app.add_subapp("/internal", sub)
    else:
        setup_health(app, scope, **paths)
    if how == "after":
        scope.setup(app)
    return app


@pytest.mark.parametrize("how", ["before", "after", "by hand", "in a sub-application"])
async def test_all_is_well(dsn: str, serve: Serve, how: str) -> None:
    """However they are installed, the routes say 200, to GET and HEAD, never to be stored, and borrow nothing."""
    scope = poolscope.PoolScope(dsn, acquire="eager")
    async with serve(installed(how, scope)) as served:
        for path in PATHS:
            for method in ("GET", "HEAD"):
                answer = await probe(served, f"/internal{path}", method)
                assert (answer.status, answer.body is None) == (200, method == "HEAD")
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["Content-Type"].startswith("application/json")
                assert not answer.headers.keys() & {"Retry-After", "Connection"}
        assert (await probe(served, "/internal/readyz")).body == saying("serving", None)
        assert (await probe(served, "/internal/startupz")).body == {"status": "started"}
        assert (await probe(served, "/internal/livez")).body.keys() == {"status", "lag"}
        assert scope.stats().borrows == 0


async def test_the_database_is_away(server: EmbeddedPostgres, serve: Serve, audit: Audit) -> None:
    """Away from the start (connect_at_start=False) or later: started, alive, 503 in fixed words until it is back."""
    audit.allow_backends = True
    server.stop()
    try:
        app = App(server.dsn, {"connect_at_start": False, "breaker_failures": 2, "breaker_reset": 0.1}, cache=0.05)
        async with serve(app.web) as served:
            assert [(await probe(served, path)).status for path in PATHS] == [503, 200, 200]
            server.start()
            assert (await becomes(served, 200)).body == saying("serving", None)
            server.stop()
            away = await becomes(served, 503, reason="breaker open")
            assert away.body == saying("serving", "breaker open")
            assert away.headers["Cache-Control"] == "no-store"
            beheaded = await probe(served, method="HEAD")
            assert (beheaded.status, beheaded.body, beheaded.headers["Retry-After"]) == (503, None, "1")
            assert [(await probe(served, path)).status for path in PATHS[1:]] == [200, 200]
            server.start()
            await becomes(served, 200)
    finally:
        server.start()


async def test_a_silent_network(dsn: str, serve: Serve, database: Database) -> None:
    """Nothing answers any more: readiness says so within its limit, each time; back, it needs no request to see it."""
    with wired(database) as wire:
        app = App(wire.dsn, {"minsize": 0, "connect_timeout": 0.3}, cache=0.0, timeout=0.2)
        async with serve(app.web) as served:
            wire.frozen = True
            for _ in range(2):
                async with asyncio.timeout(SOON):
                    answer = await probe(served)
                    assert answer.body["pools"]["db"]["reason"] in {"no answer", "breaker open"}
                    assert answer.headers["Retry-After"] == "1"
                    assert [(await probe(served, path)).status for path in PATHS[1:]] == [200, 200]
            wire.frozen = False
            await becomes(served, 200)


async def test_saturation_is_not_unready(dsn: str, serve: Serve, database: Database) -> None:
    """All connections are held and a queue waits: a thousand probes hear 200, none of them waits, nothing is asked."""
    with wired(database) as wire:
        app = App(wire.dsn, {"acquire_timeout": 60.0})
        async with serve(app.web) as served, ClientSession(connector=TCPConnector(limit=100)) as crowd:
            held = [asyncio.create_task(served.status("/hold")) for _ in range(5)]
            await until(lambda: (app.scope.stats().in_use, app.scope.stats().waiting) == (2, 3))
            asked = len(wire.queries)

            async def status() -> int:
                async with crowd.get(served.url / "readyz") as response:
                    return response.status

            # Behind the queue they would wait for ever: the handlers end after them.
            assert await asyncio.gather(*(status() for _ in range(1000))) == [200] * 1000
            stats = app.scope.stats()
            assert (stats.in_use, stats.waiting, stats.borrows) == (2, 3, 2)
            assert len(wire.queries) == asked
            app.go.set()
            assert await asyncio.gather(*held) == [200] * 5


async def test_all_connections_are_stuck(dsn: str, serve: Serve, database: Database) -> None:
    """Every connection waits for a server that is silent: 503 soon after a statement should have ended."""
    with wired(database) as wire:
        app = App(wire.dsn, {"statement_timeout": 0.1, "connect_timeout": 0.3}, cache=0.05, timeout=0.2)
        async with serve(app.web) as served:
            app.go.set()
            assert await served.status("/hold") == 200
            wire.frozen = True
            stuck = [asyncio.create_task(served.status("/hold")) for _ in range(2)]
            await until(lambda: app.scope.stats().in_use >= 1)
            assert (await becomes(served, 503)).body["pools"]["db"]["reason"] in WORDS
            wire.frozen = False
            await asyncio.gather(*stuck)
            await becomes(served, 200)


@pytest.mark.parametrize("cached", [True, False])
async def test_draining(dsn: str, serve: Serve, cached: bool) -> None:
    """From begin_drain() on readiness is 503, whatever it said just now; the others stay 200; each answer closes."""
    app = App(dsn)
    async with serve(app.web) as served:
        held = asyncio.create_task(served.status("/hold"))
        await until(lambda: app.scope.stats().in_use == 1)
        if cached:
            assert (await probe(served)).status == 200
        app.scope.begin_drain()
        for path, status in zip(PATHS, (503, 200, 200), strict=True):
            for method in ("GET", "HEAD"):
                answer = await probe(served, path, method)
                assert (answer.status, answer.headers["Connection"]) == (status, "close")
                assert ("Retry-After" in answer.headers) is (status == 503)
        assert (await probe(served)).body == saying("draining", "draining")
        app.go.set()
        assert await held == 200


async def test_before_the_start_is_done(dsn: str, serve: Serve, database: Database) -> None:
    """Asked from a port of their own, which is up before: "starting", then ready; startup is 200 from then on."""
    with wired(database) as wire:
        scope = poolscope.PoolScope(wire.dsn)
        admin = web.Application()
        setup_health(admin, scope)

        async def heard() -> list[tuple[int, str | None]]:
            answers = [await probe(served, path) for path in PATHS]
            return [(answer.status, answer.headers.get("Connection")) for answer in answers]

        async with serve(admin) as served:
            for startup in (503, 200):
                scope.setup(app := web.Application())
                runner = web.AppRunner(app)
                wire.hang = True
                start = asyncio.create_task(runner.setup())
                await until(lambda: scope.state == "starting")
                assert await heard() == [(503, None), (200, None), (startup, None)]
                assert (await probe(served)).body == saying("starting", "starting")
                body = {"status": "starting", "pools": saying("starting", "starting")["pools"]}
                assert (await probe(served, "/startupz")).body == (body if startup == 503 else {"status": "started"})
                wire.hang = False
                await start
                assert await heard() == [(200, None), (200, None), (200, None)]
                await runner.cleanup()
                assert await heard() == [(503, "close"), (200, "close"), (200, "close")]
                assert (await probe(served)).body == saying("closed", "closed")


async def test_many_probes_are_one_question(dsn: str, serve: Serve, database: Database) -> None:
    """A hundred that ask at once are one ping, and whoever asks while its answer counts is none."""
    with wired(database) as wire:
        app = App(wire.dsn, cache=60.0, timeout=30.0)
        async with serve(app.web) as served:
            asked = len(wire.queries)
            wire.frozen = True
            many = [asyncio.create_task(probe(served)) for _ in range(100)]
            await until(lambda: len(wire.queries) == asked + 1)
            wire.frozen = False
            assert {answer.status for answer in await asyncio.gather(*many)} == {200}
            assert (await probe(served)).status == 200
            assert len(wire.queries) == asked + 1


async def test_who_leaves_takes_no_answer_away(dsn: str, serve: Serve, database: Database) -> None:
    """The first of two probes leaves and its handler is cancelled: the second gets the answer to the same question."""
    with wired(database) as wire:
        app = App(wire.dsn, timeout=10.0)
        async with serve(app.web, handler_cancellation=True) as served:
            asked = len(wire.queries)
            wire.frozen = True
            _, first = await served.raw(head("/readyz"))
            await until(lambda: len(wire.queries) == asked + 1)
            reader, second = await served.raw(head("/readyz"))
            first.transport.abort()
            await until(lambda: len(served.runner.server.connections) == 1)  # type: ignore[union-attr]
            wire.frozen = False
            assert (await read_answer(reader)).status == 200
            assert len(wire.queries) == asked + 1
            second.close()


async def test_several_scopes(dsn: str, serve: Serve, database: Database) -> None:
    """One of two away: 503, and the answer tells which; on paths of their own each speaks for itself."""
    with wired(database) as wire:
        app = web.Application()
        primary = poolscope.setup(app, dsn)
        replica = poolscope.setup(app, wire.dsn, key="replica", connect_timeout=0.3)
        setup_health(app, primary, replica, cache=0.05, timeout=0.2)
        for scope in (primary, replica):
            path = f"/{scope.config.key}"
            setup_health(app, scope, readiness=path, liveness=None, startup=None, cache=0.05, timeout=0.2)
        async with serve(app) as served:
            assert [await served.status(path) for path in ("/readyz", "/db", "/replica")] == [200] * 3
            wire.frozen = True
            pools = (await becomes(served, 503)).body["pools"]
            assert pools["db"] == {"state": "serving", "reason": None}
            assert pools["replica"]["reason"] in WORDS
            await becomes(served, 503, "/replica")
            assert await served.status("/db") == 200
            wire.frozen = False
            await becomes(served, 200)
            replica.begin_drain()
            for path, status in (("/readyz", 503), ("/startupz", 200), ("/livez", 200)):
                answer = await probe(served, path)
                assert (answer.status, answer.headers["Connection"]) == (status, "close")


class Broken(poolscope.PoolScope):
    """A scope whose check fails in a way that nobody foresaw: with an error, cancelled (as aiopg may be), or never."""

    error: BaseException | None = None

    async def trouble(self) -> str | None:
        if self.error is not None:
            raise self.error
        return await asyncio.Event().wait() and None


@pytest.mark.parametrize("error", [RuntimeError("secret"), asyncio.CancelledError(), None], ids=repr)
async def test_a_question_that_fails(dsn: str, serve: Serve, caplog: pytest.LogCaptureFixture, error: Any) -> None:
    """To the outside it is "no answer", in time and for all who ask; an error is in the log, once."""
    app = web.Application()
    scope = Broken(dsn).setup(app)
    scope.error = error
    setup_health(app, scope, cache=60.0, timeout=0.1)
    async with serve(app) as served, asyncio.timeout(SOON):
        for _ in range(2):
            answer = await probe(served)
            assert (answer.status, answer.body) == (503, saying("serving", "no answer"))
            assert answer.headers["Retry-After"] == "60"
    assert [task.get_name() for task in asyncio.all_tasks() if "poolscope" in task.get_name()] == []
    assert caplog.text.count("RuntimeError: secret") == isinstance(error, Exception)


@pytest.mark.parametrize("how", ["before", "after"])
async def test_the_end_during_a_question(dsn: str, serve: Serve, database: Database, how: str) -> None:
    """A question without an answer holds up no end, and no task or timer is left behind."""
    with wired(database) as wire:
        scope = poolscope.PoolScope(wire.dsn, drain_grace=0.1, drain_timeout=0.2)
        async with serve(installed(how, scope)) as served:
            asked = len(wire.queries)
            wire.frozen = True
            _, writer = await served.raw(head("/internal/readyz"))
            await until(lambda: len(wire.queries) == asked + 1)
            writer.close()
            async with asyncio.timeout(SOON):
                await served.runner.cleanup()
            assert [task.get_name() for task in asyncio.all_tasks() if "poolscope" in task.get_name()] == []
            wire.frozen = False
    pulses = [found for found in gc.get_objects() if isinstance(found, health._Pulse) and hasattr(found, "_timer")]
    assert all(pulse._timer.cancelled() for pulse in pulses)
    assert pulses


async def test_the_lag_of_the_loop(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that stood still is alive when it turns again, and liveness tells for how long it stood, for a while."""
    monkeypatch.setattr(health, "TICK", 0.05)
    monkeypatch.setattr(health, "WINDOW", 0.5)
    app = App(dsn)
    async with serve(app.web) as served:
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)  # before the probe is read
        answer = await probe(served, "/livez")
        assert (answer.status, answer.body["status"]) == (200, "alive")
        assert 0.3 < answer.body["lag"] < 10
        async with asyncio.timeout(DEADLINE):
            while (await probe(served, "/livez")).body["lag"] > 0.3:
                pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"scopes": 0}, "at least one scope"),
        ({"scopes": 2}, "a key of its own, not 'db', 'db'"),
        ({"readiness": "/taken"}, r"setup_health\(readiness='/taken'\): this path is taken"),
        ({"readiness": "/same", "startup": "/same"}, r"setup_health\(startup='/same'\): this path is taken"),
        ({"cache": -1.0}, r"setup_health\(cache=-1.0\)"),
        ({"cache": float("nan")}, r"setup_health\(cache=nan\)"),
        ({"timeout": 0}, r"setup_health\(timeout=0\)"),
        ({"timeout": "1"}, r"setup_health\(timeout='1'\)"),
    ],
)
def test_what_cannot_be_right(arguments: dict[str, Any], said: str) -> None:
    """A mistake is refused at once, with the name of the call and of what is wrong."""
    app = web.Application()
    app.router.add_get("/taken", health._Health.readiness)
    app.router.add_get("/after", health._Health.readiness)  # aiohttp itself looks at the last resource only
    scopes = [poolscope.PoolScope() for _ in range(arguments.pop("scopes", 1))]
    with pytest.raises(poolscope.ConfigError, match=said):
        setup_health(app, *scopes, **arguments)


async def test_routes_left_out(dsn: str, serve: Serve) -> None:
    """None for a path leaves that route out, and what it would have needed."""
    for path, name in zip(PATHS, NAMES, strict=True):
        app = App(dsn, **{name: None})  # type: ignore[arg-type]
        assert len(app.web.cleanup_ctx) == (2 if name == "liveness" else 3)  # the scope's, the question's, the timer's
        async with serve(app.web) as served:
            assert [await served.status(each) for each in PATHS] == [404 if each == path else 200 for each in PATHS]
