"""Two servers, one the streaming standby of the other. Everything here blocks: from a coroutine, in a thread."""

from __future__ import annotations

import atexit
import shutil
import time
from typing import TYPE_CHECKING, Self

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

from .service import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.wire import Wire

PATIENCE = 30.0
"""Seconds within which two servers agree."""

# What was committed must survive a crash, or "nothing is lost" could not be asked; and what a standby has not yet
# read of it must still be there when it comes back.
SETTINGS = {"synchronous_commit": True, "wal_keep_size": "256MB", "max_connections": 40}

BEHIND = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(max(replay_lsn), '0/0')) FROM pg_stat_replication"


class Server(EmbeddedPostgres):
    """A server that can be made from another one, and follow it."""

    def __init__(self, upstream: Server | None = None) -> None:
        super().__init__(tcp=True, settings=SETTINGS)
        self._upstream = upstream
        if upstream is not None:
            self.password = upstream.password  # it is in the data that is copied

    @property
    def in_recovery(self) -> bool:
        """Whether it runs as a standby."""
        return self.sql("SELECT pg_is_in_recovery()") == "t"

    def copy(self, upstream: Server) -> None:
        """Take the data of ``upstream``, by pg_basebackup, to start as its standby."""
        shutil.rmtree(self._data, ignore_errors=True)
        source = ("-h", str(upstream.socket_dir), "-p", str(upstream.port), "-U", "postgres")
        options = ("--checkpoint=fast", "--wal-method=stream", "--no-sync")
        self._programs.run("pg_basebackup", "-D", str(self._data), *source, *options, cwd=self._home, as_server=True)
        self.become_standby(upstream)

    def become_standby(self, upstream: Server) -> None:
        """Start as a standby of ``upstream`` the next time, with the data it has."""
        signal = self._data / "standby.signal"
        signal.touch()
        self._programs.give(signal)
        address = f"host=127.0.0.1 port={upstream.port} user=postgres password={upstream.password}"
        # The file with the last word: the other one is the upstream's where it was copied.
        (self._data / "postgresql.auto.conf").write_text(
            f"unix_socket_directories = '{self.socket_dir}'\n"
            f"primary_conninfo = '{address}'\n"
            "wal_retrieve_retry_interval = '50ms'\n"
        )

    def _create(self) -> None:
        if self._upstream is None:
            super()._create()
            return
        self._folder = self._make_folder()
        atexit.register(self.close)
        self._watch()
        if self._programs.root:
            self._programs.bring_within_reach(self._home / "programs")
        self.copy(self._upstream)


class Pair:
    """``with Pair() as pair``: a primary and its streaming standby, with the tables of the application.

    ``servers`` are always the same two, in the same order; ``primary`` and ``standby`` are what they are now.
    """

    def __init__(self) -> None:
        self.primary = Server()
        self.standby = Server(self.primary)
        self.servers = (self.primary, self.standby)

    def __enter__(self) -> Self:
        try:
            self.primary.start()
            self.primary.sql(SCHEMA)
            self.standby.start()
            self.catch_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pair: primary {self.primary}, standby {self.standby}>"

    def close(self) -> None:
        """Stop both and delete their data."""
        for server in self.servers:
            server.close()

    def dsn(self, *, first: Server | None = None, **query: str) -> str:
        """URL with both hosts, ``first`` first: ``pair.dsn(target="primary")``."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in sorted(self.servers, key=lambda it: it is not first))
        said = "&".join(f"{name}={value}" for name, value in query.items())
        return f"postgresql://postgres:{self.primary.password}@{hosts}/postgres" + (f"?{said}" if said else "")

    @property
    def direct(self) -> str:
        """URL of whichever is the primary, as libpq itself finds it: to look past a pool."""
        return self.dsn(target_session_attrs="primary")

    def promote(self) -> float:
        """Make the standby the primary; when it was. The other one, which must not run, is the standby from now on."""
        assert not self.primary.running, "two primaries"
        assert self.standby.sql("SELECT pg_promote()") == "t"
        promoted = time.monotonic()
        self.primary, self.standby = self.standby, self.primary
        return promoted

    def rejoin(self, *, copied: bool = True) -> float:
        """Let the old primary come back as a standby of the new one; when it was level with it.

        Its data is copied anew, unless ``copied`` is False: that will do where it was stopped in order, and all it
        had was on the standby.
        """
        self.standby.stop()
        if copied:
            self.standby.copy(self.primary)
        else:
            self.standby.become_standby(self.primary)
        self.standby.start()
        return self.catch_up()

    def switch_over(self) -> float:
        """Let the two change places in order; when they had."""
        self.primary.stop()
        self.promote()
        return self.rejoin(copied=False)

    def catch_up(self) -> float:
        """Wait until the standby has all that the primary has; when it had."""
        self._until(lambda: self.primary.sql(BEHIND) == "0", "catch up")
        return time.monotonic()

    def synchronous(self) -> None:
        """From now on a COMMIT is answered only when the standby has it, too: a failover loses none.

        That holds for the primary of this moment.
        """
        self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf()")
        state = "SELECT sync_state FROM pg_stat_replication"
        self._until(lambda: self.primary.sql(state) == "sync", "become synchronous")

    def mend(self) -> None:
        """Whatever a test has left: a primary again and its standby, level, asynchronous, the tables as new."""
        self.primary.start()
        self.primary.sql("ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()")
        self.standby.start()
        if not self.standby.in_recovery or self.primary.sql("SELECT count(*) FROM pg_stat_replication") != "1":
            self.rejoin()
        self.primary.sql("DROP TABLE IF EXISTS writes, accounts;" + SCHEMA)
        self.catch_up()

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"the standby does not {what}; its log says:\n{self.standby.log[-2000:]}"
            time.sleep(0.005)


def through(*wires: Wire) -> str:
    """A DSN whose hosts are the wires, in this order."""
    hosts = ",".join(f"127.0.0.1:{wire.port}" for wire in wires)
    return wires[0].dsn.replace(f"127.0.0.1:{wires[0].port}", hosts)
