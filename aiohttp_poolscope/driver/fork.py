"""Fork: a child process lets go of the sockets of its parent's connections.

A forked child, of a ProcessPoolExecutor say, has them open as well. Were the parent killed, the server would not hear
of it: its sessions, transactions and locks would live for as long as the child.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

__all__ = ("let_go_in_children",)

_connections: weakref.WeakSet[Any] = weakref.WeakSet()


def let_go_in_children(raw: Any) -> None:
    """From now on a child that is forked has nothing of this psycopg2 connection."""
    _connections.add(raw)


def _let_go() -> None:
    # Not closed: whoever in the child still holds the connection would close the number, which is another's by then.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for raw in tuple(_connections):
        if not raw.closed:
            os.dup2(nowhere, raw.fileno(), inheritable=False)
    os.close(nowhere)


os.register_at_fork(after_in_child=_let_go)
