"""examples/migrate.py: a script with a pool and without a server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.kit.documents import ROOT

from .test_examples import load

if TYPE_CHECKING:
    from tests.conftest import Database

pytestmark = pytest.mark.one_loop

SCRIPT = ROOT / "examples" / "migrate.py"


def run(dsn: str) -> subprocess.CompletedProcess[str]:
    """The script, as its first lines say."""
    return subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_as_a_program(dsn: str, database: Database) -> None:
    """It applies each migration once, says which, and leaves no session behind."""
    first, second = run(dsn), run(dsn)
    assert (first.returncode, first.stdout) == (0, "0001 accounts\n0002 first account\n"), first.stderr
    assert (second.returncode, second.stdout) == (0, "nothing to apply\n"), second.stderr
    assert database.sql("SELECT * FROM migrated_accounts") == [(1, 100)]
    assert database.backends() == []


def test_without_a_database() -> None:
    """A database that is away ends it with a sentence."""
    away = run("postgresql://nobody@127.0.0.1:1/app")
    assert away.returncode == 1
    assert away.stderr.startswith("cannot connect to database 'app' as user 'nobody': 127.0.0.1:1: Connection refused")
    assert "Traceback" not in away.stderr


async def test_two_at_once(dsn: str, database: Database) -> None:
    """Two that start at once apply each migration once."""
    example = load("migrate")
    database.sql("CREATE TABLE migrations (name text PRIMARY KEY)")
    applied = await asyncio.gather(example.migrate(dsn), example.migrate(dsn))
    assert sorted(name for names in applied for name in names) == sorted(example.MIGRATIONS)
