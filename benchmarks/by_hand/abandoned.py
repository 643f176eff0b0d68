"""What an abandoned request goes on to cost the database: when its query ends there, and whether its connection stays.

    python -m benchmarks.by_hand.abandoned          a table, in about two minutes
    python -m benchmarks.by_hand.abandoned --json   every single run

The client of a GET leaves while its query runs, in each way in which a service can be set up for that. The PostgreSQL
is real and its own, the service is a process, and the end of a query is seen from outside, in pg_stat_activity.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import socket
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import psycopg2
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SECONDS = 3.0
"""How long each query takes if nobody ends it."""

SETTLED = 0.5
"""Seconds after the last end, in which a service that closes a connection has closed it."""

LIMIT = 30.0
"""Seconds after which something is wrong here."""

SCHEMA = """
CREATE TABLE inserted (id int);
CREATE TABLE committed (id int);
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON committed DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION dawdle();
"""

QUERIES = {
    "sleep": f"SELECT pg_sleep({SECONDS})",
    "processor": "DO $$ BEGIN WHILE clock_timestamp() < statement_timestamp() + "
    f"interval '{SECONDS} s' LOOP END LOOP; END $$",
    "INSERT": f"INSERT INTO inserted SELECT 1 FROM pg_sleep({SECONDS})",
    "COMMIT": "COMMIT",
}
"""As pg_stat_activity shows them. The COMMIT has a deferred trigger to run."""

NAMES = {"sleep": "pg_sleep", "processor": "on the processor", "INSERT": "INSERT", "COMMIT": "COMMIT"}

WRITTEN = {"INSERT": "inserted", "COMMIT": "committed"}


@dataclass(frozen=True)
class Mode:
    """How the service is set up, and how it is left."""

    settings: dict[str, Any]
    handler_cancellation: bool = False
    killed: bool = False


MODES = {
    "default": Mode({}),
    "cancel_abandoned": Mode({"cancel_abandoned": True}),
    "handler_cancellation": Mode({}, handler_cancellation=True),
    "cancel_abandoned, abandon_interval=None": Mode({"cancel_abandoned": True, "abandon_interval": None}),
    "handler_cancellation, abandon_interval=None": Mode({"abandon_interval": None}, handler_cancellation=True),
    "service killed": Mode({}, killed=True),
    "service killed, abandon_interval=None": Mode({"abandon_interval": None}, killed=True),
}


@dataclass(frozen=True)
class Run:
    """One query that was abandoned: seconds until it ended on the server, and what was left."""

    ended: float
    kept: bool
    written: bool | None


async def query(request: web.Request) -> web.Response:
    """One of QUERIES."""
    db, name = request["db"], request.match_info["name"]
    if name == "COMMIT":
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO committed VALUES (1)")
    else:
        await db.execute(QUERIES[name])
    return web.Response()


def serve(name: str, dsn: str, port: int) -> None:
    """What the service's process does."""
    mode, size = MODES[name], len(QUERIES)
    app = web.Application()
    poolscope.setup(app, dsn, minsize=size, maxsize=size, **mode.settings)
    app.router.add_get("/{name}", query)
    web.run_app(
        app, host="127.0.0.1", port=port, print=None, access_log=None, handler_cancellation=mode.handler_cancellation
    )


@contextlib.asynccontextmanager
async def service(name: str, dsn: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The service in a process of its own, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", name, dsn, str(port))
    try:
        await until(lambda: answers(port), "the service's start")
        yield process, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; how it came true."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {LIMIT:g} s")
        await asyncio.sleep(0.005)
    return value


class Server:
    """PostgreSQL, seen from outside."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection = psycopg2.connect(dsn)
        self._connection.autocommit = True
        self.sql(SCHEMA.format(seconds=SECONDS))

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement; its rows, if it has any."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def running(self) -> dict[str, int]:
        """Which of QUERIES run now, and their backends."""
        rows = self.sql("SELECT query, pid FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()")
        return {name: pid for name, sql in QUERIES.items() for query, pid in rows if query == sql}

    def backends(self) -> set[int]:
        """Every client of the server but this one."""
        rows = self.sql(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return {pid for (pid,) in rows}

    def close(self) -> None:
        """Leave it."""
        self._connection.close()


async def ending(server: Server, query: str, since: float) -> float:
    """Seconds until this one of QUERIES runs no more."""
    await until(lambda: query not in server.running(), f"the end of {query}")
    return time.monotonic() - since


async def abandon(server: Server, mode: str, rng: random.Random) -> dict[str, Run]:
    """Leave all of QUERIES at once while they run, and watch what becomes of them."""
    server.sql("TRUNCATE inserted, committed")
    async with service(mode, server.dsn) as (process, port):
        await asyncio.sleep(rng.random())  # the pool looks for clients that have left once a second
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in QUERIES]
        for client, name in zip(clients, QUERIES, strict=True):
            client.sendall(f"GET /{name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        pids = await until(lambda: len(found := server.running()) == len(QUERIES) and found, "the queries' start")
        left = time.monotonic()
        if MODES[mode].killed:
            process.kill()
        for client in clients:
            client.close()
        ended = dict(
            zip(QUERIES, await asyncio.gather(*(ending(server, query, left) for query in QUERIES)), strict=True)
        )
        await asyncio.sleep(SETTLED)
        kept = server.backends()
        written = {query: bool(server.sql(f"SELECT 1 FROM {table} LIMIT 1")) for query, table in WRITTEN.items()}
    await until(lambda: not server.backends(), "the service's end")
    return {name: Run(round(ended[name], 3), pids[name] in kept, written.get(name)) for name in QUERIES}


async def measure(names: list[str], rounds: int, seed: int) -> dict[str, list[dict[str, Run]]]:
    """Every mode, ``rounds`` times, in turns."""
    runs: dict[str, list[dict[str, Run]]] = {name: [] for name in names}
    with EmbeddedPostgres() as postgres:
        server = Server(postgres.dsn)
        for number in range(rounds):
            for name in names:
                if sys.stderr.isatty():
                    print(f"round {number + 1} of {rounds}: {name}".ljust(70), end="\r", file=sys.stderr)
                runs[name].append(await abandon(server, name, random.Random(f"{seed} {number} {name}")))
        server.close()
        if sys.stderr.isatty():
            print(" " * 70, end="\r", file=sys.stderr)
    return runs


def in_words(runs: list[Run]) -> str:
    """One cell of the table."""
    ended, kept = [run.ended for run in runs], {run.kept for run in runs}
    words = [f"{statistics.median(ended):.2f} s (at most {max(ended):.2f})"]
    words.append({(True,): "kept", (False,): "closed"}.get(tuple(kept), "kept or closed"))
    if runs[0].written is not None:
        words.append(f"written {sum(bool(run.written) for run in runs)} of {len(runs)}")
    return ", ".join(words)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure what becomes of a query whose client has left.")
    parser.add_argument("modes", nargs="*", metavar="mode", help=f"{'; '.join(MODES)} (all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often (5)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments at which requests come (1)")
    parser.add_argument("--json", action="store_true", help="print every run as JSON")
    options = parser.parse_args()
    if unknown := set(options.modes) - MODES.keys():
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    found = asyncio.run(measure(options.modes or list(MODES), options.rounds, options.seed))
    if options.json:
        every = {name: [{query: asdict(run) for query, run in each.items()} for each in found[name]] for name in found}
        print(json.dumps(every, indent=2))
        return
    print(f"A query of {SECONDS:g} s ended on the server after the client (or the service) had gone; its connection\n")
    for name, runs in found.items():
        print(name)
        for each, words in NAMES.items():
            print(f"    {words:18}{in_words([run[each] for run in runs])}")
    print(f"\nPython {platform.python_version()}; {platform.machine()}, {os.cpu_count()} processors")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
