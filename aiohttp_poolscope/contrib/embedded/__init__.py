"""A private PostgreSQL server for demos and tests, from a wheel: nothing to install or to configure.

    with EmbeddedPostgres(settings={"max_connections": 50}) as server:
        scope = poolscope.setup(app, server.dsn)

The server lives in a new temporary folder and goes with it: at the end of the `with` block, at the end of the
interpreter, and also when this process is killed with SIGKILL (a small shell waits for that and cleans up).
Any number of servers, users and processes can do this side by side. Not for production: there is no fsync.
"""

from __future__ import annotations

from .programs import EmbeddedPostgresError
from .server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
