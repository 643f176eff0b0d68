"""A forked child keeps nothing of its parent's connections alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import BUSY
from tests.kit.processes import alive, wait_for

if TYPE_CHECKING:
    from tests.conftest import Database

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]

PROGRAM = textwrap.dedent(
    """
    import asyncio, multiprocessing, os, sys, time
    from concurrent.futures import ProcessPoolExecutor
    import aiohttp_poolscope as poolscope

    def child(seconds):
        print(os.getpid(), flush=True)
        time.sleep(seconds)

    async def main():
        async with poolscope.open(sys.argv[1], minsize=3, application_name="forking", abandon_interval=1.0) as scope:
            async with scope.transaction() as tx:
                await tx.execute("LOCK TABLE locked")
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as children:
                    working = asyncio.get_running_loop().run_in_executor(children, child, float(sys.argv[2]))
                    if sys.argv[3:]:
                        await working
                        await tx.execute("INSERT INTO locked VALUES (1)")
                    else:
                        await asyncio.sleep(60)

    asyncio.run(main())
    """
)


def test_a_killed_parent_of_a_living_child(dsn: str, database: Database) -> None:
    """SIGKILL of a process ends its sessions, transactions and locks, although a forked child of it lives on."""
    database.sql("CREATE TABLE locked (n int)")
    with subprocess.Popen([sys.executable, "-c", PROGRAM, dsn, "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert len(database.backends()) >= 1
            process.kill()
            killed = time.monotonic()
            wait_for(lambda: not database.backends(), "the end of the sessions")
            assert time.monotonic() - killed < 1.0 + 1.0 + BUSY
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)
    database.sql("BEGIN; LOCK TABLE locked NOWAIT; COMMIT")


def test_a_child_that_ends_disturbs_nobody(dsn: str, database: Database) -> None:
    """The parent's transaction goes on after its child has ended."""
    database.sql("CREATE TABLE locked (n int)")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, dsn, "0.1", "wait"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert database.sql("SELECT n FROM locked") == [(1,)]
