"""The doctor's look at an application: scopes, the order of middlewares, cleanup contexts, and the time for its end."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.cli import main
from aiohttp_poolscope.cli.doctor import CANNOT_TELL, NOT_WELL, WELL
from aiohttp_poolscope.cli.doctor.app import Found, judge_app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aiohttp_poolscope.cli.doctor.finding import Finding

DSN = "postgresql://localhost/app"


def judged(app: web.Application, *, graceful: float = 300.0, shutdown: float | None = None) -> dict[str, Finding]:
    """The gravest finding of each name; by default there is all the time in the world for the end."""
    order = ("ok", "info", "warning", "error")
    findings: dict[str, Finding] = {}
    for finding in judge_app(Found(app, None), graceful_timeout=graceful, shutdown_timeout=shutdown):
        known = findings.get(finding.name)
        if known is None or order.index(finding.severity) > order.index(known.severity):
            findings[finding.name] = finding
    return findings


@web.middleware
async def errors(request: web.Request, handler: Any) -> web.StreamResponse:
    return await handler(request)


@web.middleware
async def auth(request: web.Request, handler: Any) -> web.StreamResponse:
    request["user"] = await request["db"].fetchval("SELECT 1")
    return await handler(request)


class Auth:
    @web.middleware
    async def __call__(self, request: web.Request, handler: Any) -> web.StreamResponse:
        return await handler(request) if await request["db"].fetchval("SELECT true") else web.Response(status=401)


def test_setup_is_well() -> None:
    """An error middleware outside and one that uses the connection inside: nothing to say but the order."""
    app = web.Application(middlewares=[errors])
    poolscope.setup(app, DSN)
    app.middlewares.append(auth)
    findings = judged(app)
    assert {finding.severity for finding in findings.values()} == {"ok"}
    assert findings["middleware order"].what == "errors > [db] > auth > handler"


@pytest.mark.parametrize("middleware", [auth, Auth()])
def test_a_middleware_that_uses_the_connection_too_early(middleware: Any) -> None:
    """One that stands before the scope and has the key in its code would get a KeyError: an error that names it."""
    app = web.Application(middlewares=[middleware])
    poolscope.setup(app, DSN)
    found = judged(app)["middleware order"]
    assert found.severity == "error"
    assert "uth" in found.what
    assert "scope.middleware before" in found.change


def test_the_pair_by_hand_half_done() -> None:
    """A middleware without its cleanup context is an error; a context without a middleware may be meant."""
    scope = poolscope.PoolScope(DSN)
    half = judged(web.Application(middlewares=[scope.middleware]))["cleanup context"]
    assert (half.severity, half.change.startswith("app.cleanup_ctx.append(")) == ("error", True)
    app = web.Application()
    app.cleanup_ctx.append(scope.cleanup_ctx)
    findings = judged(app)
    assert (findings["middleware"].severity, findings["cleanup context"].severity) == ("info", "ok")


def test_twice_is_once_too_often() -> None:
    """A scope that is set up and also in middlewares=[...]: a warning for each of the two."""
    scope = poolscope.PoolScope(DSN)
    app = web.Application(middlewares=[scope.middleware])
    app.cleanup_ctx.append(scope.cleanup_ctx)
    scope.setup(app)
    findings = judged(app)
    assert (findings["middleware"].severity, findings["cleanup context"].severity) == ("warning", "warning")


def test_two_scopes_with_one_key() -> None:
    """The inner one would hide the other: an error. With keys of their own both are listed."""
    app = web.Application()
    poolscope.setup(app, DSN)
    poolscope.setup(app, DSN)
    assert judged(app)["scopes"].severity == "error"
    app = web.Application()
    poolscope.setup(app, DSN)
    poolscope.setup(app, DSN, key="reports")
    assert judged(app)["scopes"].what == "'db', 'reports'"


def test_a_scope_of_a_sub_application_is_found() -> None:
    """Scopes are looked for in sub-applications as well, also in those of those; none at all is an error."""
    inner, middle, app = web.Application(), web.Application(), web.Application()
    poolscope.setup(inner, DSN)
    middle.add_subapp("/inner", inner)
    app.add_subapp("/middle", middle)
    assert judged(app)["middleware order"].what == "[db] > handler of /middle/inner"
    assert judged(web.Application())["scopes"].severity == "error"


@pytest.mark.parametrize(
    ("graceful", "shutdown", "severity"),
    [(30.0, None, "info"), (30.0, 12.0, "warning"), (30.0, 11.9, "ok"), (127.0, None, "ok"), (10.0, 1.0, "warning")],
)
def test_the_rule_of_the_end(graceful: float, shutdown: float | None, severity: str) -> None:
    """2 * shutdown_timeout + drain_grace + 1 must be less than graceful_timeout, and so must drain_timeout + 3."""
    app = web.Application()
    poolscope.setup(app, DSN, drain_grace=5.0, drain_timeout=10.0)
    assert judged(app, graceful=graceful, shutdown=shutdown)["shutdown"].severity == severity


MODULE = """
import os
from aiohttp import web
import aiohttp_poolscope as poolscope

def make_app():
    app = web.Application()
    poolscope.setup(app, os.environ["APP_DSN"], maxsize=7, processes=2)
    poolscope.setup(app, os.environ["APP_DSN"], key="reports", statement_timeout=None)
    return app

def make_for_aiohttp(argv):
    return make_app()

async def make_async():
    return make_app()

async def make_runner():
    return web.AppRunner(make_app(), shutdown_timeout=10)

app = make_app()
number = 42

def broken():
    raise RuntimeError("no such file: settings.toml")

def talkative():
    print("reading settings")
    return make_app()

def indiscreet():
    raise RuntimeError("cannot use postgresql://me:hunter2@db/app, nor password=hunter2")
"""


@pytest.fixture
def module(tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A module with applications in the current folder: call it with what to look at, and options."""
    (tmp_path / "served.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("APP_DSN", dsn)
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    monkeypatch.delitem(sys.modules, "served", raising=False)
    return lambda name, *options: main(["doctor", "--app", f"served:{name}", *options])


@pytest.mark.parametrize("name", ["app", "make_app", "make_for_aiohttp", "make_async", "make_runner", "talkative"])
def test_what_may_be_named(module: Callable[..., int], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An application, a runner, or a function that makes one; each scope's server is looked at, as the scope would."""
    status = module(name, "--json")
    said = json.loads(capsys.readouterr().out)
    assert [(server["scope"], server["processes"]) for server in said["servers"]] == [("db", 2), ("reports", 1)]
    assert said["servers"][0]["maxsize"]["suggested"] == 7
    assert status == NOT_WELL  # reports has no statement_timeout
    shutdown = [finding["severity"] for finding in said["app"] if finding["name"] == "shutdown"]
    assert shutdown == ["ok" if name == "make_runner" else "info"]


def test_a_dsn_beside_it_is_looked_at_instead(
    module: Callable[..., int], dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a DSN the application is judged, and the server is the DSN's; with enough time for the end all is well."""
    assert module("app", "--shutdown-timeout", "5", dsn) == WELL
    text = capsys.readouterr().out
    assert text.startswith("Application\n")
    assert text.endswith("All is well.\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("served:nothing", "has no attribute 'nothing'"),
        ("served:number", "must be, or return, an Application or AppRunner"),
        ("served:indiscreet", "postgresql://me:***@db/app, nor password=***"),
        ("served:broken", "RuntimeError: no such file: settings.toml"),
        ("nowhere_at_all:app", "No module named 'nowhere_at_all'"),
        ("served", "module:name"),
        (":app", "module:name"),
        ("postgresql://me:hunter2@db/app", "'postgresql://me:***@db/app'"),
        ("password=hunter2", "module:name"),
    ],
)
def test_what_cannot_be_loaded(
    module: Callable[..., int], name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and why, without a traceback."""
    assert main(["doctor", "--app", name]) == CANNOT_TELL
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("doctor: --app ")
    assert said in err
    assert "hunter2" not in err
