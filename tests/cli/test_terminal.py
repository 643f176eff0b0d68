"""What commands print, whatever they print it to."""

from __future__ import annotations

import pytest

from aiohttp_poolscope.cli.terminal import places
from aiohttp_poolscope.config import PoolConfig


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:hunter2@a.example,b.example:6432/app", "a.example:5432, b.example:6432"),
        ("hostaddr=127.0.0.1 port=6432", "127.0.0.1:6432"),
        ("host=/run/postgresql", "/run/postgresql:5432"),
        ("dbname=app", "the local socket:5432"),
    ],
)
def test_the_places_of_a_pool(monkeypatch: pytest.MonkeyPatch, dsn: str, shown: str) -> None:
    """Every host by its name, else its address, else as what libpq takes then; and nothing that is secret."""
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert places(PoolConfig.build(dsn)) == shown
