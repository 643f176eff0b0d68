"""What happens to a server.

Everything here blocks: from a coroutine, ``await asyncio.to_thread(restart, server)`` and
``async with in_thread(fill_disk(server))``. Else it may wait for what only the coroutine's own loop can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import psycopg2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager

    from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

T = TypeVar("T")

READY = b"database system is ready to accept connections"
PATIENCE = 30.0


def restart(server: EmbeddedPostgres, mode: Literal["fast", "immediate"] = "fast") -> float:
    """Stop the server and start it again; when it was ready. "immediate": its backends just end."""
    server.stop(mode)
    server.start()
    return time.monotonic()


def crash(server: EmbeddedPostgres, *, whole: bool = False) -> float:
    """SIGKILL one backend: the server ends all others and recovers by itself. Returns when it was ready.

    ``whole``: SIGKILL the postmaster instead, and start it again.
    """
    if whole:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server.start()
        return time.monotonic()
    log = server.socket_dir / "log"
    begun = log.stat().st_size
    with contextlib.closing(psycopg2.connect(server.dsn)) as victim:
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while READY not in log.read_bytes()[begun:]:
            assert time.monotonic() < end, "the server does not recover"
            time.sleep(0.002)
        return time.monotonic()


def kill_backends(dsn: str, *, application_name: str, state: str | None = None) -> int:
    """Terminate backends by their application_name (LIKE) and state, "idle" or "active"; how many there were.

    When this returns they have ended, and their sockets are closed: whoever comes later can know.
    """
    with contextlib.closing(psycopg2.connect(dsn)) as killer, killer.cursor() as cursor:
        cursor.execute(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND application_name LIKE %s AND (%s IS NULL OR state = %s)",
            (application_name, state, state),
        )
        killed = [pid for pid, _ in cursor.fetchall()]
    end = time.monotonic() + PATIENCE
    while any(_lives(pid) for pid in killed):
        assert time.monotonic() < end, killed
        time.sleep(0.002)
    return len(killed)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.asynccontextmanager
async def in_thread(block: AbstractContextManager[T]) -> AsyncIterator[T]:
    """A block that blocks, entered and left in a thread."""
    value = await asyncio.to_thread(block.__enter__)
    try:
        yield value
    finally:
        await asyncio.to_thread(block.__exit__, None, None, None)


class Filler:
    """Connections that do nothing but take a slot."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._held: list[Any] = []

    def __enter__(self) -> Self:
        self.fill()
        return self

    def __exit__(self, *_: object) -> None:
        self.empty()

    def empty(self) -> None:
        """Give them all back."""
        while self._held:
            self._held.pop().close()

    def fill(self) -> int:
        """Take every slot that is free by now; how many these were."""
        before = len(self._held)
        while True:
            try:
                self._held.append(psycopg2.connect(self._dsn, application_name="filler"))
            except psycopg2.OperationalError as refusal:
                if "too many clients" not in str(refusal):
                    raise
                return len(self._held) - before


def fill_slots(dsn: str) -> Filler:
    """``with fill_slots(dsn) as filler``: the server has no connection left to give, not even to its superuser."""
    return Filler(dsn)


@contextlib.contextmanager
def fill_disk(server: EmbeddedPostgres) -> Iterator[None]:
    """No row more fits into the table ``writes``: a file system of its own that is full, or else a device that is.

    Either way it is the kernel that says ENOSPC, and the server that says SQLSTATE 53100.
    """
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(_mounted(server))
        except (OSError, subprocess.CalledProcessError):  # only root may mount, and not in every container
            stack.enter_context(_full_device(server))
        else:
            stack.enter_context(_full_disk(server, disk))
        yield


@contextlib.contextmanager
def _full_disk(server: EmbeddedPostgres, disk: Path) -> Iterator[None]:
    server.sql(f"CREATE TABLESPACE tiny LOCATION '{disk}'; ALTER TABLE writes SET TABLESPACE tiny")
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        server.sql(USE_UP)
        yield
    finally:
        ballast.unlink()
        server.sql("ALTER TABLE writes SET TABLESPACE pg_default; DROP TABLESPACE tiny")


@contextlib.contextmanager
def _mounted(server: EmbeddedPostgres) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="disk-", dir=server.socket_dir) as folder:
        disk = Path(folder)
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            server._programs.give(disk)
            yield disk
        finally:
            subprocess.run(["umount", "-l", disk], check=True)  # a backend may have it open a little longer


USE_UP = """
DO $$ DECLARE number int := 0; BEGIN
    LOOP
        number := number - 1;
        BEGIN
            INSERT INTO writes VALUES (number);
        EXCEPTION WHEN disk_full THEN
            EXIT;
        END;
    END LOOP;
END $$
"""
"""What is left of the table's last page, filled with rows that nobody asked for."""


@contextlib.contextmanager
def _full_device(server: EmbeddedPostgres) -> Iterator[None]:
    server.sql(
        "CREATE FUNCTION full_device() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN COPY (SELECT 1) TO '/dev/full'; RETURN NEW; END $$;"
        "CREATE TRIGGER full_device BEFORE INSERT ON writes FOR EACH ROW EXECUTE FUNCTION full_device()"
    )
    try:
        yield
    finally:
        server.sql("DROP FUNCTION full_device CASCADE")
