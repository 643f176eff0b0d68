"""The command `aiohttp-poolscope`; a sub-command is a module here, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING

from aiohttp_poolscope import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_COMMANDS = {
    "demo": "a small service with a PostgreSQL of its own, to see the pool at work",
    "doctor": "a check of a server and an application, and of what a load needs",
    "stress": "the hunt for leaks in an HTTP service: clients that leave, and what it answers afterwards",
    "top": "a live view of pools: who holds a connection, who waits",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="aiohttp-poolscope",
        description="Request-scoped aiopg connections.",
        epilog="Each command says its options and exit codes with --help.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"Run {summary}.")
        if arguments[:1] == [name]:
            module = importlib.import_module(f".{name}", __name__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
