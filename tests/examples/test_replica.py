"""The example of a replica does what it says with a primary and a real standby. (It runs as a script elsewhere.)"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession, CookieJar, DummyCookieJar

from tests.faults.replication import Pair

from .test_examples import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

pytestmark = pytest.mark.usefixtures("poolscope_audit")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


async def test_read_replica(pair: Pair, serve: Serve) -> None:
    """Everybody reads from the standby, the author of a note from the primary, and all without a standby."""
    pair.mend()
    pair.primary.sql("DROP TABLE IF EXISTS poolscope_notes")
    async with serve(load("read_replica").make_app(pair.dsn())) as served:

        async def ask(client: ClientSession, method: str, **form: Any) -> Any:
            async with client.request(method, served.url, data=form or None) as response:
                assert response.ok, await response.text()
                return await response.json() if method == "GET" else None

        async with (
            ClientSession(cookie_jar=CookieJar(unsafe=True)) as author,
            ClientSession(cookie_jar=DummyCookieJar()) as reader,
        ):
            await ask(author, "POST", text="hello")
            assert await ask(author, "GET") == {"from": "primary", "notes": ["hello"]}
            await asyncio.to_thread(pair.catch_up)
            assert await ask(reader, "GET") == {"from": "standby", "notes": ["hello"]}
            await asyncio.to_thread(pair.standby.stop)
            assert await ask(reader, "GET") == {"from": "primary", "notes": ["hello"]}
