"""The command `aiohttp-poolscope`; a sub-command is a module here, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_COMMANDS = {
    "demo": "a small service with a PostgreSQL of its own, to see the pool at work",
    "doctor": "a check of what a load needs against what a server has",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="aiohttp-poolscope", description="Request-scoped aiopg connections.")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"Run {summary}.")
        if arguments[:1] == [name]:
            module = importlib.import_module(f".{name}", __name__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)
