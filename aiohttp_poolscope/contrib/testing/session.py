"""The session in which everything of a test happens: its transaction, savepoints in it, and whose turn it is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from aiohttp_poolscope.driver import FAILED
from aiohttp_poolscope.errors import PoolExhausted

if TYPE_CHECKING:
    from aiohttp_poolscope.driver import Link

__all__ = ("BLOCK", "STATEMENT", "Session")

BLOCK: Final = "poolscope_test_block"
STATEMENT: Final = "poolscope_test_statement"

# At a real COMMIT what was deferred is checked, and the next transaction has each constraint as it was declared.
CHECK: Final = """SET CONSTRAINTS ALL IMMEDIATE; DO $poolscope$ DECLARE names text; BEGIN
SELECT string_agg(DISTINCT format('%I.%I', n.nspname, c.conname), ', ') INTO names
FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace WHERE c.condeferred;
IF names IS NOT NULL THEN EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED'; END IF; END $poolscope$"""

CONTROL_LIMIT: Final = 10.0
"""Seconds for one of our own statements: nobody can cancel it, and a network may go silent."""

IN_TURN: Final = (
    "poolscope_rollback: all connections of this test are one, and {who} is inside a transaction on it. "
    "Use that transaction, or leave it first"
)


class Session:
    """A real connection with a transaction. ``user`` has its turn; ``task`` is the one that began a block in it.

    ``left`` is the savepoint that is open on the server.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.user: object = None
        self.task: asyncio.Task[Any] | None = None
        self.left: str | None = None
        self._turn = asyncio.Lock()
        self._cursor = link.raw.cursor()

    async def take_turn(self, user: object, patience: float) -> None:
        """Wait for one's turn, ``patience`` seconds at most, and see that nothing of another's is left open.

        Raises PoolExhausted.
        """
        if self.task is not None and self.task is asyncio.current_task():
            raise PoolExhausted(IN_TURN.format(who="this very task"))
        try:
            async with asyncio.timeout(patience):
                await self._turn.acquire()
        except TimeoutError as error:
            who = "another task" if self.task is None else self.task.get_name()
            raise PoolExhausted(IN_TURN.format(who=who)) from error
        try:
            if self.left is not None and not self.link.closed:
                await self._recover()
        except BaseException:
            self._turn.release()
            raise
        self.user = user

    def yield_turn(self) -> None:
        """The next one, please."""
        self.user = self.task = None
        self._turn.release()

    async def _recover(self) -> None:
        """Its last user has left without an end: a block is undone, a statement if the server has not finished it."""
        await self.link.cancel_and_wait()
        if self.left == STATEMENT and self.link.status != FAILED:
            await self.keep()
        else:
            await self.undo()

    async def savepoint(self, name: str) -> None:
        """What is to come can be undone from now on."""
        self.left = name
        await self.control(f"SAVEPOINT {name}", name)

    async def keep(self) -> None:
        """What has happened since the savepoint is committed, as far as the test can see; or undone, and it raises."""
        try:
            await self.control(f"{CHECK}; RELEASE {self.left}", None)
        except Exception:
            with contextlib.suppress(Exception):
                await self.undo()
            raise

    async def undo(self) -> None:
        """What has happened since the savepoint has not."""
        await self.control(f"ROLLBACK TO {self.left}; RELEASE {self.left}", None)

    async def control(self, sql: str, left: str | None) -> None:
        """Run one of our own statements, after which ``left`` is open.

        To its end, also when the task is cancelled: half of it is no state to be in.
        """
        run = self.link.run(self._cursor, sql, timeout=CONTROL_LIMIT)
        work = asyncio.get_running_loop().create_task(run, name="poolscope_rollback")
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError as error:
                cancelled = error
        work.result()
        self.left = left
        if cancelled is not None:
            raise asyncio.CancelledError(*cancelled.args)

    async def end(self, limit: float) -> None:
        """Roll back, within ``limit`` seconds, and close."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(limit):
                await self.link.cancel_and_wait()
                await self.control("ROLLBACK", None)
        self.link.close()
