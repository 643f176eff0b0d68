"""The command `top`: pools, live, from a service's page or from its database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from typing import TYPE_CHECKING

from yarl import URL

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.cli.terminal import console, places, show, styled
from aiohttp_poolscope.driver import DatabaseError
from aiohttp_poolscope.errors import ConfigError, PoolScopeError

from .page import Page, PageError
from .server import KEY, Server

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from rich.console import Console

    from .view import Source, View

__all__ = ("add_arguments", "run")

WELL, CANNOT_TELL = 0, 2
DEFAULT = "http://127.0.0.1:8080/_pool"
ROUNDS_ONCE = 5
"""Rounds of questions to a page that is looked at only once."""


class UsageError(Exception):
    """Options that cannot be right."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "target", nargs="?", default=DEFAULT, metavar="URL|DSN",
        help="the page of setup_dashboard, or a database whose sessions are shown (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between looks (%(default)s)")
    parser.add_argument("--once", action="store_true", help="look once, print, and end")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'Name: value'", help="for the page; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="for programs: one document, or without --once one a line")
    parser.epilog = (
        "Exit codes: 0 it was shown (Ctrl-C ends it with 0); 2 nothing could be shown: wrong options, no such page, "
        "no connection. What goes away later is told, and looked for until it is back."
    )


def run(args: argparse.Namespace) -> int:
    """Show pools until Ctrl-C, or once."""
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
    if not args.once and sys.stdout.isatty() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # What a shell without job control starts behind an & ignores Ctrl-C, and so would a view that has no other end.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        asyncio.run(_main(args))
    except KeyboardInterrupt:
        return WELL
    except (UsageError, PageError, PoolScopeError, DatabaseError, OSError, UnicodeError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"top: {str(error).strip() or repr(error)}", file=sys.stderr)
        return CANNOT_TELL
    return WELL


async def _main(args: argparse.Namespace) -> None:
    if not 0.05 <= args.interval <= 3600:  # noqa: PLR2004 - said in the message
        raise UsageError(f"--interval must be between 0.05 and 3600 seconds, not {args.interval:g}")
    async with _source(args) as source:
        view = await source.look()
        if args.once:
            _print(view, again=False, args=args)
        elif (on := console()) is not None and not args.json:
            await _live(source, view, args.interval, on)
        else:
            while True:
                _print(view, again=True, args=args)
                await asyncio.sleep(args.interval)
                view = await source.look()


@contextlib.asynccontextmanager
async def _source(args: argparse.Namespace) -> AsyncIterator[Source]:
    if args.target.lower().startswith(("http://", "https://")):
        yield Page(_page_url(args.target), _headers(args.header), args.interval, ROUNDS_ONCE if args.once else 1)
        return
    if args.header:
        raise UsageError("--header is for a page, and a page begins with http:// or https://")
    try:
        opened = poolscope.open(args.target, key=KEY, minsize=1, maxsize=1, processes=1, rows="dict")
    except ConfigError as error:
        raise UsageError(f"{error} (and a page begins with http:// or https://)") from error
    async with opened as scope:
        yield Server(scope, f"{await scope.fetchval('SELECT current_database()')} at {places(scope.config)}")


def _page_url(text: str) -> URL:
    try:
        url = URL(text)
        named = url.host is not None and url.port is not None
    except ValueError as error:
        raise UsageError("the URL cannot be read: write http://127.0.0.1:8080/_pool") from error
    if not named:
        raise UsageError("the URL has no host: write http://127.0.0.1:8080/_pool")
    if url.user is not None or url.password is not None:
        raise UsageError("the URL has a user or a password in it: use --header 'Authorization: ...'")
    return url.with_query(None).with_fragment(None)


def _headers(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not (name.strip() and colon) or "\n" in line or "\r" in line or not line.isascii():
            raise UsageError("--header must be one line of ASCII, 'Name: value'")
        found[name.strip()] = value.strip()
    return found


def _print(view: View, *, again: bool, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(view.as_dict(), indent=None if again else 1), flush=True)
        return
    show(view.lines(), console())
    if again:
        print(flush=True)


async def _live(source: Source, view: View, interval: float, on: Console) -> None:
    from rich.live import Live  # noqa: PLC0415 - an extra

    with Live(console=on, auto_refresh=False) as live:
        while True:
            text = styled(view.lines())
            text.no_wrap, text.overflow = True, "ellipsis"
            live.update(text, refresh=True)
            await asyncio.sleep(interval)
            view = await source.look()
