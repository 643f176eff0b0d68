"""The command `aiohttp-poolscope`; a sub-command is a folder here, imported only when it is asked for."""

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


CANNOT_TELL, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started it: a socket would get its number
            setattr(sys, name, open(os.open(os.devnull, os.O_WRONLY), "w", closefd=False))  # noqa: SIM115
    try:
        status = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        _say_no_more()
        return 0
    except OSError as error:  # a full disk, say: what has to do with databases and services, commands say themselves
        _say_no_more()
        print(f"aiohttp-poolscope: {error}", file=sys.stderr)
        return CANNOT_TELL
    except KeyboardInterrupt:  # while it still read its modules
        return INTERRUPTED
    return status


def _say_no_more() -> None:
    """What is still in the buffer would be written, and fail again, when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
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
            module = importlib.import_module(f".{name}.command", __name__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)
