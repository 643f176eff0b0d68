"""Runs of pytest inside a test, with the plugin as those who install the package have it."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "aiohttp_poolscope.contrib.pytest_plugin"

SERVICE = """
import asyncio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
import aiohttp_poolscope as poolscope

SCOPE = web.AppKey("scope", poolscope.PoolScope)
kept = []

async def count(request):
    return web.json_response(await request["db"].fetchval("SELECT count(*) FROM things"))

async def add(request):
    await request["db"].execute("INSERT INTO things DEFAULT VALUES")
    return web.Response(status=201)

def make_app(dsn, **settings):
    app = web.Application()
    app.router.add_get("/", count)
    app.router.add_post("/", add)
    app[SCOPE] = poolscope.setup(app, dsn, **settings)
    return app

@pytest.fixture(scope="session")
def dsn(poolscope_postgres):
    poolscope_postgres.sql("CREATE TABLE things (id integer GENERATED ALWAYS AS IDENTITY)")
    return poolscope_postgres.dsn
"""
"""What inner tests begin with: a service that counts things."""


@dataclass
class Inner:
    """Inner runs on the server of the outer one: to start an embedded one takes longer than most of these tests."""

    pytester: pytest.Pytester
    monkeypatch: pytest.MonkeyPatch
    server_dsn: str | None

    def run(self, tests: str, *arguments: str, mode: str = "auto") -> pytest.RunResult:
        """Run a file of tests in a process of its own, with warnings as errors."""
        self.pytester.makepyfile(tests)
        loops = "asyncio_default_fixture_loop_scope=function"
        asyncio = f"asyncio_mode={mode}\n{loops}" if mode else ""
        self.pytester.makeini(f"[pytest]\nfilterwarnings=error\n{asyncio}\n")
        self.monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the outer run
        if self.server_dsn is None:
            self.monkeypatch.delenv("POOLSCOPE_TEST_DSN", raising=False)
        else:
            self.monkeypatch.setenv("POOLSCOPE_TEST_DSN", self.server_dsn)
        return self.pytester.runpytest_subprocess(*loading(), "-p", "no:cacheprovider", *arguments, timeout=120)


def loading() -> list[str]:
    """How pytest comes to load the plugin where the package is not installed but only on the path."""
    installed = any(entry.value == PLUGIN for entry in importlib.metadata.entry_points(group="pytest11"))
    return [] if installed else ["-p", PLUGIN]
