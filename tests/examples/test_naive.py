"""The example that is not to be followed: it answers well while all goes well, and loses a connection when not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .test_examples import load

if TYPE_CHECKING:
    import pytest

    from tests.conftest import Serve


async def test_naive(dsn: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers; each body that is no JSON takes a connection with it; after ten of them nothing is answered."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    async with serve(load("naive").make_app(), shutdown_timeout=0.1) as served:
        url = served.url / "notes"
        assert await served.get("/notes") == (200, '{"length": 7}')
        async with served.client.post(url, json={"text": "milk"}) as response:
            assert await response.json() == {"length": 4}
        for _ in range(10):
            async with served.client.post(url, data=b"{") as response:
                assert response.status == 500
        try:
            async with asyncio.timeout(0.5):
                await served.get("/notes")
        except TimeoutError:
            pass
        else:
            raise AssertionError("it still answers: then it is no example of what goes wrong")
