"""A database for the tests of one process, on a server that is there or on an embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ("WorkerDatabase", "elsewhere", "worker_database")

T = TypeVar("T")

VARIABLE = "POOLSCOPE_TEST_DSN"


@dataclass(frozen=True)
class WorkerDatabase:
    """What ``poolscope_postgres`` is: a database for one test process.

    ``dsn``: its URL, for ``poolscope.setup(app, poolscope_postgres.dsn)``. ``name``: the database.
    """

    dsn: str = field(repr=False)  # it may have a password, and pytest shows fixtures where a test fails
    name: str

    def sql(self, statement: str, params: Any = None) -> list[tuple[Any, ...]]:
        """Run SQL in it and commit, on a connection of its own; the rows of the last statement, if it has any.

        It blocks: for fixtures that make the tables, and for looking at what was committed. Raises
        DatabaseUnavailable, or whatever psycopg2 raises.
        """
        return elsewhere(lambda: _run(self.dsn, statement, params))


def elsewhere(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end in a thread with an event loop of its own: one may be running in this thread."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(work()))
        except BaseException as error:  # noqa: BLE001  it is raised where it was asked for
            failed.append(error)

    thread = threading.Thread(target=run, name="poolscope tests")
    thread.start()
    thread.join()
    if failed:
        raise failed.pop()
    return found.pop()


async def _run(dsn: str, statement: str, params: Any = None) -> list[tuple[Any, ...]]:
    config = PoolConfig.build(dsn, statement_timeout=None, idle_in_transaction_timeout=None)
    driver = Driver(config, "poolscope tests")
    link = await driver.open()
    try:
        cursor = link.cursor()
        await link.run(cursor, statement, params)
        return link.read_all(cursor) if cursor.description else []
    finally:
        link.close()
        await driver.close(1.0)


@contextlib.contextmanager
def worker_database() -> Iterator[WorkerDatabase]:
    """A new database, dropped at the end: on the server of ``POOLSCOPE_TEST_DSN``, else on an embedded one."""
    given = os.environ.get(VARIABLE)
    if given:
        with _database(given) as database:
            yield database
        return
    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres  # noqa: PLC0415  not needed where there is a server

    with EmbeddedPostgres() as server, _database(server.dsn) as database:
        yield database


@contextlib.contextmanager
def _database(dsn: str) -> Iterator[WorkerDatabase]:
    worker = re.sub(r"\W", "", os.environ.get("PYTEST_XDIST_WORKER", "main")).lower()
    # Others may use the same server: processes on other machines, in containers, with the same number.
    name = f"poolscope_{worker}_{os.getpid()}_{secrets.token_hex(3)}"
    elsewhere(lambda: _run(dsn, f"CREATE DATABASE {name}"))
    try:
        yield WorkerDatabase(_with_database(dsn, name), name)
    finally:
        elsewhere(lambda: _drop(dsn, name))


async def _drop(dsn: str, name: str) -> None:
    # What a test has left connected must not keep it. (FORCE is not known before PostgreSQL 13.)
    await _run(dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await _run(dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    await _run(dsn, f"DROP DATABASE IF EXISTS {name}")


def _with_database(dsn: str, name: str) -> str:
    address, mark, query = dsn.partition("?")
    scheme, slashes, hosts = address.partition("://")
    if not slashes:
        return f"{dsn} dbname={name}"  # libpq's other form, in which the last one counts
    query = "&".join(part for part in query.split("&") if part and not part.startswith("dbname="))
    return f"{scheme}://{hosts.partition('/')[0]}/{name}" + (f"?{query}" if mark and query else "")
