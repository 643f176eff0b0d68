"""The command `stress`: the hunt for leaks in an HTTP service, whoever wrote it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

from yarl import URL

from aiohttp_poolscope.cli.terminal import console, show
from aiohttp_poolscope.driver import DatabaseError
from aiohttp_poolscope.errors import PoolScopeError

from .client import Client
from .phases import Phases
from .show import Progress, as_dict, as_lines
from .verdict import Seen, judge, not_testable
from .watch import watching

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from .watch import Watch

__all__ = ("add_arguments", "run")

HEALTHY, SICK, CANNOT_TELL, INTERRUPTED = 0, 1, 2, 130
SHARE_NORMAL, SHARE_SLOW = 0.3, 0.4
"""Of the duration: the load before and after; the slow clients."""

SHORTEST = 1.0
"""Seconds for any of them."""


class NotTestableError(Exception):
    """Nothing can be said of this service; the message says why, and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("url", metavar="URL", help="of a request that uses the database, and is answered with 200")
    parser.add_argument("--method", default="GET", help="(%(default)s)")
    parser.add_argument(
        "--data", metavar="TEXT", help="the body of each request; of that of a slow client, half is sent"
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="'Name: value'", help="one more; may be repeated"
    )
    for name, kind, metavar, default, text in (
        ("--abort", float, "SHARE", 0.9, "the share of the clients that leave, in that phase (%(default)s)"),
        ("--rate", float, "R", 50.0, "requests per second, 1000 at most (%(default)s)"),
        (
            "--duration",
            float,
            "SECONDS",
            10.0,
            "how long clients leave, 600 at most; all takes twice as long (%(default)s)",
        ),
        ("--slow", int, "N", 30, "slow clients at once, 300 at most (%(default)s)"),
        ("--pause", float, "SECONDS", 3.0, "before it is asked whether it still answers (%(default)s)"),
        ("--patience", float, "SECONDS", 5.0, "how long a client that stays waits (%(default)s)"),
        ("--seed", int, "N", 1, "of everything random (%(default)s)"),
    ):
        parser.add_argument(name, type=kind, metavar=metavar, default=default, help=text)
    parser.add_argument(
        "--dsn", help="of the service's database: its sessions are watched from a connection of our own"
    )
    parser.add_argument(
        "--i-own-this-host", action="store_true", help="needed for any host but this machine's own loopback"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.epilog = (
        "Exit codes: 0 healthy; 1 sick; 2 could not test: wrong options, nobody listens, or it does not answer well "
        "under normal load either; 130 interrupted. A POST with --data is really done, by clients that stay."
    )


def run(args: argparse.Namespace) -> int:
    """Put a service under stress: 0 if it is healthy, 1 if it is sick, 2 if that cannot be said."""
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
    try:
        url = _checked(args)
        return asyncio.run(_main(url, args))
    except KeyboardInterrupt:
        print("\nstress: interrupted, nothing is proved", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # of our own output: those of clients are told as what became of them
        raise
    except (NotTestableError, PoolScopeError, DatabaseError, OSError, UnicodeError) as error:
        print(f"stress: {str(error).strip() or repr(error)}", file=sys.stderr)
        return CANNOT_TELL


def _checked(args: argparse.Namespace) -> URL:
    for name, least, most in (
        ("abort", 0, 1), ("rate", 0.1, 1000), ("duration", 0.1, 600), ("slow", 0, 300), ("pause", 0, 600),
        ("patience", 0.1, 600),
    ):  # fmt: skip
        if not least <= getattr(args, name) <= most:
            raise NotTestableError(f"--{name} must be between {least} and {most}, not {getattr(args, name)}")
    for line in (*args.header, args.method):
        if "\r" in line or "\n" in line or not line.isascii():
            raise NotTestableError("--header and --method must be one line of ASCII each")
    if any(":" not in line for line in args.header):
        raise NotTestableError("--header must be 'Name: value'")
    if not args.method.isalpha():
        raise NotTestableError(f"--method must be a word such as GET or POST, not {args.method!r}")
    if args.dsn is not None and not args.dsn.strip():
        raise NotTestableError(
            "--dsn is empty: is the variable set that it comes from? Without --dsn nothing is watched"
        )
    url = _url(args.url)
    _must_be_ours(url, owned=args.i_own_this_host)
    return url


def _url(text: str) -> URL:
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError as error:
        raise NotTestableError("the URL cannot be read: write http://127.0.0.1:8080/path") from error
    if url.scheme not in ("http", "https") or not host or not port:
        raise NotTestableError("the URL must begin with http:// or https:// and name a host")
    if url.user is not None or url.password is not None:
        raise NotTestableError("the URL has a user or a password in it: use --header 'Authorization: ...'")
    return url


def _must_be_ours(url: URL, *, owned: bool) -> None:
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotTestableError(f"{url.host} has no address: {error.strerror}") from error
    except UnicodeError as error:
        raise NotTestableError(f"{url.host} is no name of a host") from error
    addresses = sorted({str(each[4][0]) for each in found})
    if not owned and not all(ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        raise NotTestableError(
            f"{url.host} ({', '.join(addresses)}) is not this machine's loopback: stress only what is yours, and "
            "say so with --i-own-this-host"
        )


async def _main(url: URL, args: argparse.Namespace) -> int:
    on = console()
    progress = Progress(on, quiet=args.json)
    client = Client(url, args.method.upper(), args.header, args.data, args.patience)
    phases = Phases(client, random.Random(args.seed), args.rate, progress.tell)  # noqa: S311 - to be repeated
    if not args.json:
        print(
            f"{args.method.upper()} {url.with_query(None)}, {args.rate:g} requests per second. Seed {args.seed}.",
            flush=True,
        )
    async with contextlib.AsyncExitStack() as stack:
        watch = await stack.enter_async_context(watching(args.dsn)) if args.dsn else None
        with progress.shown():
            seen = await _stressed(phases, args, progress, watch)
    verdict = judge(seen)
    if args.json:
        print(json.dumps(as_dict(seen, verdict, args.seed), indent=1))
    else:
        show(as_lines(seen, verdict), on)
    return SICK if verdict.sick else HEALTHY


async def _stressed(phases: Phases, args: argparse.Namespace, progress: Progress, watch: Watch | None) -> Seen:
    normal, slow = max(SHORTEST, SHARE_NORMAL * args.duration), max(SHORTEST, SHARE_SLOW * args.duration)
    with progress.phase(f"Normal load, {normal:g} s"):
        before = await phases.normal("before", normal)
    if (problem := not_testable(before)) is not None:
        raise NotTestableError(problem)
    usual = before.quantile(0.5) or 0.0
    async with _looking(watch):
        with progress.phase(f"{args.abort:.0%} of the clients leave, {args.duration:g} s"):
            leaving, staying = await phases.aborted(args.duration, args.abort, usual)
        with progress.phase(f"{args.slow} slow clients at once, {slow:g} s"):
            slowly, beside = await phases.slow(slow, args.slow)
        if watch is not None:
            await watch.all_gone()
        with progress.phase(f"A pause, {args.pause:g} s"):
            await asyncio.sleep(args.pause)
        if watch is not None:
            await watch.look_for_leftovers()
        with progress.phase(f"Normal load again, {normal:g} s"):
            after = await phases.normal("after", normal)
    return Seen(
        before=before,
        leaving=leaving,
        staying=staying,
        slow=slowly,
        staying_beside_slow=beside,
        after=after,
        watch=watch,
    )


@contextlib.asynccontextmanager
async def _looking(watch: Watch | None) -> AsyncIterator[None]:
    """Look at the server again and again meanwhile. Raises what a look has raised: then nothing can be said."""
    if watch is None:
        yield
        return
    looking = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait((looking,))
    if not looking.cancelled():
        await looking
    await watch.look()
