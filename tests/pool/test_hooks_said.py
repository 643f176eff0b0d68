"""What the log says of hooks that fail by their own mistake: the traceback, once, with the hook's name."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import logs
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Database

    Hook = Callable[[poolscope.ScopedConnection], Awaitable[object]]


def tracebacks(caplog: Any) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "aiohttp_poolscope" and record.exc_info]


async def wrong_name(db: poolscope.ScopedConnection) -> None:
    db.fetchvalue("SELECT 1")  # type: ignore[attr-defined]


async def raises(db: poolscope.ScopedConnection) -> None:
    raise ZeroDivisionError


async def two_at_once(db: poolscope.ScopedConnection) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(db.execute("SELECT pg_sleep(0.05)"))
        tasks.create_task(db.execute("SELECT pg_sleep(0.05)"))


async def busy(db: poolscope.ScopedConnection) -> None:
    other = asyncio.create_task(db.execute("SELECT pg_sleep(0.05)"))
    await asyncio.sleep(0)
    try:
        await db.execute("SELECT 1")
    finally:
        await other


async def left_open(db: poolscope.ScopedConnection) -> None:
    await db.execute("BEGIN")


async def not_adapted(db: poolscope.ScopedConnection) -> None:
    await db.execute("SELECT %s", (object(),))


async def no_table(db: poolscope.ScopedConnection) -> None:
    await db.execute("SELECT * FROM nowhere")


async def too_slow(db: poolscope.ScopedConnection) -> None:
    await db.execute("SELECT pg_sleep(60)", timeout=0.01)


async def vault_too_slow(db: poolscope.ScopedConnection) -> None:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("hook", "mistake"),
    [
        (wrong_name, True),
        (raises, True),
        (two_at_once, True),
        (busy, True),
        (left_open, True),
        (not_adapted, True),
        (no_table, False),
        (too_slow, False),
        (vault_too_slow, False),
    ],
)
async def test_on_connect(
    make_scope: Any,
    database: Database,
    caplog: Any,
    monkeypatch: pytest.MonkeyPatch,
    *,
    hook: Hook,
    mistake: bool,
) -> None:
    """While it fails it is told once, however often it is tried; when it has worked and fails again, again."""
    monkeypatch.setattr(logs, "QUIET", 0)
    broken = False

    async def on_connect(db: poolscope.ScopedConnection) -> None:
        if broken:
            await hook(db)

    async with make_scope(maxsize=1, on_connect=on_connect, breaker_reset=0.05, acquire_timeout=10) as scope:
        for times in (1, 2):
            broken = True
            caplog.clear()
            failed = scope.stats().connect_failed
            database.kill()
            scope.expire()
            waiting = asyncio.create_task(scope.fetchval("SELECT 1"))
            await until(lambda since=failed: scope.stats().connect_failed >= since + 3, "the attempts")
            with pytest.raises(poolscope.DatabaseUnavailable) as caught:
                await waiting
            said = tracebacks(caplog)
            assert len(said) == mistake
            for record in said:
                assert record.levelno == logging.ERROR
                assert ".on_connect failed" in record.getMessage()
                assert hook is left_open or f"in {hook.__name__}\n" in caplog.text
            if hook is vault_too_slow:
                assert "not done within" not in str(caught.value)
            broken = False
            await until(lambda: scope.stats().breaker == "closed", f"the end of it, {times}")
            assert await scope.fetchval("SELECT 1") == 1


async def test_at_the_start(make_scope: Any, caplog: Any) -> None:
    """The start fails, with the mistake as the cause, and the log names the hook."""
    with pytest.raises(poolscope.DatabaseUnavailable, match="the hook raises failed: ZeroDivisionError") as caught:
        async with make_scope(on_connect=raises):
            pass
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert [record.getMessage() for record in tracebacks(caplog)] == ["pool 'db': the hook raises failed"]


async def test_on_release(make_scope: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake at each return is one traceback a second, which counts the others."""
    async with make_scope(maxsize=1, on_release=raises) as scope:
        for count, quiet in ((20, 3600), (1, 0)):
            monkeypatch.setattr(logs, "QUIET", quiet)
            for _ in range(count):
                assert await scope.fetchval("SELECT 1") == 1
                await until(lambda: scope.stats().repairing == 0)
    first, second = [record.getMessage() for record in tracebacks(caplog)]
    assert first == "pool 'db': the hook raises failed"
    assert second == "pool 'db': the hook raises failed (and 19 more since the last such line)"
