"""The page, over real sockets: what it says, and what it never shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.cli.demo.command import _guide
from aiohttp_poolscope.cli.demo.service import make_app
from aiohttp_poolscope.contrib.dashboard import page, sampler, setup_dashboard
from tests.conftest import until
from tests.contrib.dashboard_app import PATHS, SECRET, App, messages, state

if TYPE_CHECKING:
    from tests.conftest import Database, Serve, Served


async def test_headers(dsn: str, serve: Serve) -> None:
    """Every answer forbids scripts from elsewhere and inline, frames, storing and guessing, and tells no referrer."""
    async with serve(App(dsn).web) as served:
        for path in PATHS[1:]:
            async with served.client.get(served.url / f"_pool{path}") as response:
                assert response.status == 200
                policy = response.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert "http" not in policy
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Referrer-Policy"] == "no-referrer"
            async with served.client.post(served.url / f"_pool{path}") as response:
                assert (response.status, response.headers["Allow"]) == (405, "GET")


async def test_all_it_needs_is_beside_it(dsn: str, serve: Serve) -> None:
    """The page names nothing elsewhere, has no inline script or style, and each part it names is served."""
    async with serve(App(dsn).web) as served:
        async with served.client.get(served.url / "_pool") as moved:
            assert str(moved.url) == str(served.url / "_pool/")
            assert moved.history[0].headers["Location"] == "_pool/"
            html = await moved.text()
        named = set(re.findall(r'(?:src|href)="([^"#]+)"', html))
        assert named == set(page.PARTS) - {page.PAGE} | {"state.json"}
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", html)
        for name in named:
            assert await served.status(f"/_pool/{name}") == 200
        script = (await served.get("/_pool/page.js"))[1]
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?://", script)
        licence = (page.STATIC / "uplot.LICENSE").read_text()
        assert "MIT License" in licence
        assert "Leon Sorokin" in licence


async def test_state(dsn: str, serve: Serve) -> None:
    """state.json has the promised shape, and tells who holds what for which request, and who waits."""
    app = App(dsn)
    async with serve(app.web) as served:
        before = await state(served)
        assert before.keys() == {"at", "worker", "scopes"}
        assert before["worker"].keys() == {"pid", "started", "workers"}
        (scope,) = before["scopes"]
        assert scope["key"] == "db"
        assert scope["state"] == "serving"
        assert scope["verdict"] == {"level": "ok", "kind": "healthy", "text": "Healthy", "advice": ""}
        assert scope["now"].keys() == {
            "size", "idle", "in_use", "opening", "repairing", "waiting", "minsize", "maxsize", "breaker",
            "oldest_wait", "oldest_lease",
        }  # fmt: skip
        assert scope["rates"]["errors"].keys() == set(sampler.ERRORS)
        assert (scope["wait"].keys(), scope["lease"].keys()) == ({"p50", "p99"}, {"p50", "p99"})
        assert [slot["state"] for slot in scope["slots"]] == ["idle", "empty"]
        requests = [
            asyncio.create_task(served.status(f"/hold/{name}", headers={"X-Request-ID": f"id-{name}"}))
            for name in ("a", "b", "c")
        ]
        await until(lambda: (app.scope.stats().in_use, app.scope.stats().waiting) == (2, 1))
        (scope,) = (await state(served))["scopes"]
        assert (scope["now"]["in_use"], scope["now"]["waiting"]) == (2, 1)
        assert {(lease["method"], lease["route"]) for lease in scope["leases"]} == {("GET", "/hold/{what}")}
        assert len({lease["request_id"] for lease in scope["leases"]} & {"id-a", "id-b", "id-c"}) == 2
        assert scope["leases"][0].keys() == {"method", "route", "request_id", "task", "held", "where"}
        assert scope["leases"][0]["where"].endswith("in App.hold")
        assert [slot["state"] for slot in scope["slots"]] == ["lent", "lent"]
        assert all(slot["since"] >= 0 for slot in scope["slots"])
        app.go.set()
        assert await asyncio.gather(*requests) == [200, 200, 200]


async def test_it_borrows_nothing(dsn: str, serve: Serve) -> None:
    """Where every other handler borrows, none of its routes does; nor does its stream."""
    app = App(dsn)
    async with serve(app.web) as served:
        for path in PATHS:
            async with served.client.get(served.url / f"_pool{path}") as response:
                assert response.status == 200
        assert app.scope.stats().borrows == 0


async def test_a_connection_keeps_its_cell(dsn: str, serve: Serve) -> None:
    """A cell is the same connection as long as that is open, whatever else comes and goes."""
    app = App(dsn, maxsize=3)
    async with serve(app.web) as served:
        a, b = await app.scope.acquire(), await app.scope.acquire()
        first = (await state(served))["scopes"][0]["slots"]
        assert [slot["state"] for slot in first] == ["lent", "lent", "empty"]
        a.release()
        second = [slot["state"] for slot in (await state(served))["scopes"][0]["slots"]]
        assert sorted(second) == ["empty", "idle", "lent"]
        assert second[2] == "empty"
        place = second.index("lent")
        a = await app.scope.acquire()
        c = await app.scope.acquire()
        third = (await state(served))["scopes"][0]["slots"]
        assert [slot["state"] for slot in third] == ["lent"] * 3
        assert max(third, key=lambda slot: slot["since"]) is third[place]
        for db in (a, b, c):
            db.release()


async def test_several_scopes(dsn: str, serve: Serve) -> None:
    """Each scope has its own entry, samples and verdict; one that is not started says so."""
    app = web.Application()
    scopes = [poolscope.setup(app, dsn, key=key, maxsize=n) for key, n in (("db", 1), ("reports", 3))]
    idle = poolscope.PoolScope(dsn, key="later")
    setup_dashboard(app, *scopes, idle, allow="loopback")
    async with serve(app) as served:
        entries = (await state(served))["scopes"]
        assert [(each["key"], each["state"], each["now"]["maxsize"]) for each in entries] == [
            ("db", "serving", 1), ("reports", "serving", 3), ("later", "starting", 10),
        ]  # fmt: skip
        assert [each["verdict"]["kind"] for each in entries] == ["healthy", "healthy", "starting"]
        async with contextlib.aclosing(messages(served)) as told:
            message = await anext(told)
            assert len(message["samples"]) == 3


@pytest.mark.parametrize("prefix", ["/", "/deep/er/", "/_pool"])
async def test_in_a_sub_application(dsn: str, serve: Serve, prefix: str) -> None:
    """In a sub-application the page is below its prefix, streams, and ends with it."""
    app, sub = web.Application(), web.Application()
    scope = poolscope.setup(app, dsn)
    setup_dashboard(sub, scope, allow="loopback", prefix=prefix)
    app.add_subapp("/internal", sub)
    below = f"/internal{prefix.rstrip('/')}"
    async with serve(app, shutdown_timeout=60) as served:
        assert await served.status(f"{below}/") == 200
        assert await served.status(f"{below}/page.js") == 200
        async with contextlib.aclosing(messages(served, f"{below}/events")) as told:
            assert (await anext(told))["scopes"][0]["key"] == "db"
        assert scope.stats().borrows == 0


async def everything(served: Served) -> str:
    """All that can be read."""
    found = [str((await served.get(f"/_pool{path}"))[1]) for path in PATHS if path != "/events"]
    async with contextlib.aclosing(messages(served)) as told:
        found.append(json.dumps(await anext(told)))
    return "\n".join(found)


async def test_no_secret_is_shown(database: Database, dsn: str, serve: Serve) -> None:
    """No password, query string, path, parameter, literal or driver's text, in whatever happens to a request."""
    database.sql("CREATE TABLE people (email text UNIQUE)")
    database.sql("INSERT INTO people VALUES (%s)", SECRET)
    app = App(dsn, password=SECRET, maxsize=1, slow_threshold=0.0, leak_threshold=0.05, acquire_timeout=0.3)
    async with serve(app.web) as served:
        for sql in (
            "INSERT INTO people VALUES (%s)",
            f"INSERT INTO people VALUES ('{SECRET}') -- %s",
            f"SELECT %s::int /* {SECRET} */",
            f"SELECT $${SECRET}$$, %s FROM nowhere",
        ):
            await served.status("/run", params={"sql": sql, "value": SECRET, "token": SECRET})
        held = asyncio.create_task(served.status(f"/hold/{SECRET}", params={"token": SECRET}))
        await until(lambda: app.scope.stats().in_use == 1)
        assert await served.status(f"/hold/{SECRET}", params={"token": SECRET}) == 503
        await until(lambda: app.scope.stats().leaked == 1)
        shown = await everything(served)
        assert SECRET not in shown
        assert dsn not in shown
        kinds = {event["kind"] for event in (await state(served))["scopes"][0]["events"]}
        assert kinds >= {"error", "slow", "timed_out", "leaked", "opened"}
        app.go.set()
        await held


async def test_the_reason_of_an_outage_is_not_shown(serve: Serve) -> None:
    """Hosts, ports, users, databases and the driver's words stay in the log."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        dsn = f"postgresql://someone:{SECRET}@127.0.0.1:{port}/some_database"
        app = App(dsn, connect_at_start=False, breaker_failures=2, breaker_reset=0.05)
        async with serve(app.web) as served:
            await until(lambda: app.scope.stats().breaker != "closed")
            assert await served.status("/hold/x") == 503
            (scope,) = (await state(served))["scopes"]
            assert scope["verdict"]["kind"] == "away"
            assert {event["kind"] for event in scope["events"]} >= {"connect_failed", "breaker_opened", "failed"}
            shown = await everything(served)
            for word in (
                SECRET,
                str(port),
                "someone",
                "some_database",
                "refused the",
                "psycopg2",
                "Connection refused",
            ):
                assert word not in shown, word


async def test_hostile_names_stay_text(dsn: str, serve: Serve) -> None:
    """A request id made of markup is a JSON string of a type that no browser takes for a page."""
    app = App(dsn)
    hostile = "</script><img/src=x/onerror=alert(1)>\"'&"
    async with serve(app.web) as served:
        held = asyncio.create_task(served.status("/hold/x", headers={"X-Request-ID": hostile}))
        await until(lambda: app.scope.stats().in_use == 1)
        async with served.client.get(served.url / "_pool/state.json") as response:
            assert response.content_type == "application/json"
            assert (await response.json())["scopes"][0]["leases"][0]["request_id"] == hostile
        async with contextlib.aclosing(messages(served)) as told:
            assert (await anext(told))["scopes"][0]["leases"][0]["request_id"] == hostile
        app.go.set()
        await held


async def test_the_demo_has_it(dsn: str, serve: Serve) -> None:
    """The demo's service has the page where its guide says, for this machine only."""
    async with serve(make_app(dsn)) as served:
        assert (await state(served))["scopes"][0]["key"] == "db"
        assert await served.status("/_pool/", headers={"X-Forwarded-For": "127.0.0.1"}) == 404
    assert any("http://x/_pool/" in line for line in _guide("http://x"))
