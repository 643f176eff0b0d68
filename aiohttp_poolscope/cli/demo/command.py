"""The command `demo`: a small bank with a PostgreSQL of its own, to see the pool at work."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

from aiohttp_poolscope.cli.terminal import places
from aiohttp_poolscope.config import PoolConfig
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres, EmbeddedPostgresError
from aiohttp_poolscope.driver import DatabaseError, sqlstate
from aiohttp_poolscope.errors import PoolScopeError

from .database import ACCOUNTS, SCHEMA, bank
from .once import once
from .service import GUIDE, STATEMENT_TIMEOUT, make_app, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("add_arguments", "run")

_SPARE = 10
"""Connections of the server beside the service's: for observers, and for whoever looks in with psql."""
_INTERRUPTED = 130
_DUPLICATE_SCHEMA = "42P06"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=_number(0, 65535), default=8080, help="a free one if it is taken (%(default)s)")
    parser.add_argument("--maxsize", type=_number(1, 200), default=10, help="connections at most (%(default)s)")
    parser.add_argument("--once", action="store_true", help="put it under load, check that all is well, and end")
    parser.add_argument(
        "--aborts", type=_number(1, 1_000_000), default=5_000, metavar="N",
        help="with --once: clients that leave before their answer, after half as many that stay (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="with --once: of everything random (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the demo: 0 at Ctrl-C and SIGTERM; with ``--once``, 0 if everything was as it must be."""
    logging.basicConfig(level=logging.WARNING, format="  log: %(message)s")
    with Ending() as ending:
        try:
            with _database(args.maxsize) as dsn:
                try:
                    return asyncio.run(_main(dsn, args, ending))
                finally:
                    ending.expected = True
        except (KeyboardInterrupt, asyncio.CancelledError):
            if args.once:
                print("\nInterrupted: nothing is proved.", file=sys.stderr)
                return _INTERRUPTED
            return 0
        except (EmbeddedPostgresError, PoolScopeError, DatabaseError, OSError) as error:
            print(f"demo: {_explain(error)}", file=sys.stderr)
            return 1


class Ending:
    """The first SIGINT or SIGTERM ends the demo; later ones must not tear its ending apart.

    (`make` passes a SIGTERM on, so that its whole process group being sent one makes two.)
    """

    def __init__(self) -> None:
        self.expected = False
        self._before: dict[signal.Signals, Any] = {}
        self._act: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def calls(self, act: Callable[[], object]) -> None:
        """From now on call ``act`` in the running loop, instead of raising KeyboardInterrupt."""
        loop = asyncio.get_running_loop()
        self._act = lambda: loop.call_soon_threadsafe(act)

    def _receive(self, *_: object) -> None:
        if self.expected:
            return
        self.expected = True
        if self._act is None:
            raise KeyboardInterrupt
        self._act()


async def _main(dsn: str, args: argparse.Namespace, ending: Ending) -> int:
    task = asyncio.current_task()
    if task is not None:
        ending.calls(task.cancel)
    async with bank(dsn):
        print(f"{ACCOUNTS:,} accounts are open. At most {args.maxsize} connections.")
        if args.once:
            return 0 if await once(dsn, args) else 1
        return await _serve(dsn, args, ending)


async def _serve(dsn: str, args: argparse.Namespace, ending: Ending) -> int:
    stop = asyncio.Event()
    ending.calls(stop.set)
    app = make_app(dsn, maxsize=args.maxsize)
    async with serving(app, args.host, args.port) as port:
        if port != args.port != 0:
            print(f"Port {args.port} is taken; {port} is free.")
        app[GUIDE].extend(_guide(f"http://{args.host}:{port}"))
        print("", *app[GUIDE], sep="\n", flush=True)
        await stop.wait()
        print("\nStopping...", flush=True)
    return 0


def _guide(url: str) -> list[str]:
    return [
        f"The bank is at {url}/ and Ctrl-C closes it.",
        f"See its pool at work: {url}/_pool/ in a browser on this machine.",
        "",
        "In a second terminal:",
        "",
        f"  curl {url}/accounts/42",
        f"  curl -d from=42 -d to=7 -d amount=100 {url}/transfer",
        f"  curl '{url}/report?seconds=10'",
        f"  curl -s {url}/export | head -5",
        f"  curl {url}/healthz",
        f"  seq 50 | xargs -P 50 -I @ curl -s -m 0.2 '{url}/report?seconds=1&n=@'; curl {url}/pool",
        "",
        "What to look at:",
        f"  - The report is too slow: a 504 after {STATEMENT_TIMEOUT:g} s, not a dropped connection.",
        "  - The last line sends 50 clients that leave after 0.2 s. /pool then shows who was being served",
        '    ("leases", by route) and who had left the queue ("client_gone"); a second later "in_use" is 0.',
        "  - Try it with a /transfer, or a thousand. /healthz answers at once, before and after.",
        "  - A websocket on /ws answers account ids with balances, and holds no connection in between.",
        "",
        "`aiohttp-poolscope demo --once` (or `make demo ARGS=--once`) does all of this by itself, thousands of times,",
        "and checks what is left.",
    ]


@contextlib.contextmanager
def _database(maxsize: int) -> Iterator[str]:
    given = os.environ.get("DATABASE_URL")
    if given:
        where = places(PoolConfig.build(given))
        print(f"DATABASE_URL is set: using {where}, in a schema of its own, {SCHEMA}, dropped at the end.")
        yield given
        return
    print("Starting a PostgreSQL of its own (set DATABASE_URL to use another)...", flush=True)
    with EmbeddedPostgres(settings={"max_connections": maxsize + _SPARE}) as server:
        print(f"PostgreSQL {server.version} runs in {server.socket_dir}, which goes away with it.", flush=True)
        yield server.dsn
    print("PostgreSQL is stopped, its folder is gone.")


def _explain(error: BaseException) -> str:
    if sqlstate(error) == _DUPLICATE_SCHEMA:
        return (
            f"the database has a schema {SCHEMA} already: another demo runs on it, or one was killed. "
            f"If nobody needs it: DROP SCHEMA {SCHEMA} CASCADE"
        )
    return str(error).strip() or repr(error)


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return number
