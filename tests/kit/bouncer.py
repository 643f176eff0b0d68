"""PgBouncer in front of a server: a real process, with a configuration of its own in a folder that goes with it."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from aiohttp_poolscope.contrib.embedded.programs import _account
from aiohttp_poolscope.contrib.embedded.server import _free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
"""None where it is not installed."""

WANTED = "needs the system package pgbouncer"

needed = [pytest.mark.system, pytest.mark.skipif(PROGRAM is None, reason=WANTED)]
"""Marks of what runs it."""

PATIENCE = 10.0

CONSOLE = "pgbouncer"
"""The database that is PgBouncer's own console."""

DEFAULTS: dict[str, Any] = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "trust",
    "default_pool_size": 3,
    "server_login_retry": 0.2,
    "stats_period": 3600,
}
"""A few server connections for many clients; and a server that is away is asked again soon, not after 15 s."""

# As for the embedded server: the read returns when this process ends, however it ends.
_WATCHDOG = """
read -r _
pid=$(cat "$1/pid" 2>/dev/null)
if [ -n "$pid" ] && grep -sqaF -- "$1/" "/proc/$pid/cmdline"; then
    kill -KILL "$pid"
fi
rm -rf "$1"
"""


class PgBouncer:
    """``with PgBouncer(server, default_pool_size=2) as bouncer``: reach the server by ``bouncer.dsn``.

    ``server`` is an EmbeddedPostgres or a URL; every database of it can be reached (``dsn_for``). The user and the
    password are the server's. ``settings`` are those of pgbouncer.ini. Everything here blocks.
    """

    def __init__(self, server: EmbeddedPostgres | str, pool_mode: str = "transaction", **settings: Any) -> None:
        address = parse_dsn(server.dsn if isinstance(server, EmbeddedPostgres) else server)
        self.server = {name: address[name] for name in ("host", "port") if name in address}
        self.user = address.get("user", "postgres")
        self.password = address.get("password", "")
        self.database = address.get("dbname", "postgres")
        self.settings = {**DEFAULTS, "pool_mode": pool_mode, **settings}
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "pgbouncer-watchdog", self._folder],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        atexit.register(self.close)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        """The server's own database, by this way."""
        return self.dsn_for(self.database)

    def dsn_for(self, database: str) -> str:
        """Any database of the server, by this way."""
        user = quote(self.user, safe="") + (f":{quote(self.password, safe='')}" if self.password else "")
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written to its log."""
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, at the same address as before. Returns when it answers."""
        assert PROGRAM is not None, WANTED
        self._configure()
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, self._folder / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **_account(),  # it refuses to run as root
            )
        end = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once, with every connection in both directions. The address stays."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)  # SIGTERM waits for clients since 1.23
            process.wait(PATIENCE)

    def restart(self) -> None:
        """As a package upgrade would."""
        self.stop()
        self.start()

    def reload(self, **settings: Any) -> None:
        """Change settings and have them read (RELOAD)."""
        self.settings |= settings
        self._configure()
        self.console("RELOAD")

    def close(self) -> None:
        """Stop it and delete its folder. Harmless when repeated."""
        self.stop()
        atexit.unregister(self.close)
        if self._watchdog.poll() is None:
            self._watchdog.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def console(self, command: str) -> list[dict[str, Any]]:
        """A command of the console, such as ``SHOW POOLS`` or ``PAUSE``; its rows."""
        with contextlib.closing(psycopg2.connect(self.dsn_for(CONSOLE), connect_timeout=5)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(command)
                names = [column.name for column in cursor.description or ()]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()] if names else []

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Another program: its cursor. Each statement commits."""
        with contextlib.closing(psycopg2.connect(self.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor

    def clients(self, database: str | None = None) -> list[dict[str, Any]]:
        """The connections it has from clients, the console left out."""
        return self._shown("SHOW CLIENTS", database)

    def servers(self, database: str | None = None) -> list[dict[str, Any]]:
        """The connections it has to the server."""
        return self._shown("SHOW SERVERS", database)

    def waiting(self) -> int:
        """How many clients wait for a server connection."""
        return sum(pool["cl_waiting"] for pool in self.console("SHOW POOLS"))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No statement reaches the server until the block ends (PAUSE, RESUME)."""
        self.console("PAUSE")
        try:
            yield
        finally:
            self.console("RESUME")

    def _answers(self) -> bool:
        try:
            self.console("SHOW VERSION")
        except psycopg2.OperationalError:
            return False
        return True

    def _shown(self, command: str, database: str | None) -> list[dict[str, Any]]:
        rows = [row for row in self.console(command) if row["database"] != CONSOLE]
        return [row for row in rows if database in (None, row["database"])]

    def _configure(self) -> None:
        users = self._folder / "users"
        server = " ".join(f"{name}='{value}'" for name, value in self.server.items())
        settings = {
            **self.settings,
            "listen_port": self.port,
            "auth_file": users,
            "admin_users": self.user,
            "pidfile": self._folder / "pid",
        }
        lines = ["[databases]", f"* = {server}", "[pgbouncer]", *(f"{name} = {settings[name]}" for name in settings)]
        (self._folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        users.write_text(f'"{self.user}" "{self.password}"\n')
        account = _account()
        if account:
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, account["user"], account["group"])
