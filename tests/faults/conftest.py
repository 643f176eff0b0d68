"""Servers to break, an application to watch meanwhile, and chance that can be repeated (``POOLSCOPE_SEED=...``)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

from .service import SCHEMA, Running, serving

Service = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def seed() -> int:
    """Seed of this test."""
    chosen = int(os.environ.get("POOLSCOPE_SEED") or random.randrange(1 << 32))
    print(f"POOLSCOPE_SEED={chosen}")
    return chosen


@pytest.fixture
def service() -> Service:
    """``async with service(dsn, maxsize=4) as running``: the application of service.py, audited at its end."""
    return serving


@pytest.fixture(scope="package")
def _server() -> Iterator[EmbeddedPostgres]:
    # What was committed must survive a crash, or "nothing is lost" could not be asked. No fsync: it is the processes
    # that crash here, never the machine.
    settings = {"synchronous_commit": True, "max_connections": 40}
    with EmbeddedPostgres(tcp=True, settings=settings) as server:
        yield server


@pytest.fixture
def server(_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """A server to be broken, with the tables of the application. It runs, whatever the test before it has done."""
    _server.start()
    _server.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'faults-%'")
    _server.sql("DROP TABLE IF EXISTS writes, accounts;" + SCHEMA)
    return _server
