"""What the candidates share: names of routes, what they answer, and one connection for each client socket."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiohttp import web
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from .work import ACCOUNTS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Candidate = Callable[[str, dict[str, Any]], web.Application]

DB = web.RequestKey("db", Any)
"""What a request works with, where no library has its own place for it."""


def offer(app: web.Application, *handlers: Handler) -> web.Application:
    """Add a route for each handler, named as it is."""
    for handler in handlers:
        app.router.add_get(f"/{handler.__name__}", handler)
    return app


def answer(rows: Iterable[Sequence[Any]]) -> web.Response:
    """The rows of /rows as JSON: the same work, whatever the driver's rows are made of."""
    return web.json_response([{"id": id_, "name": name, "price": float(price)} for id_, name, price in rows])


def two_accounts() -> list[int]:
    """Accounts of a transfer; in order, or two transfers could wait for each other."""
    return sorted(random.sample(range(ACCOUNTS), 2))


async def nothing(request: web.Request) -> web.Response:
    return web.Response(text="nothing")


class OnePerSocket:
    """Connections that are opened before anybody comes; a client's socket keeps the one it got first.

    There are twice as many as needed: when a crowd of clients leaves, handlers still work for them when the next comes.
    """

    def __init__(self, connections: Iterable[Any]) -> None:
        self._free = list(connections)
        self._taken: dict[Any, Any] = {}

    def of(self, request: web.Request) -> Any:
        """The connection of the request's client."""
        connection = self._taken.get(request.transport)
        return self._take(request.transport) if connection is None else connection

    def _take(self, transport: Any) -> Any:
        for gone in [each for each in self._taken if each.is_closing()]:
            self._free.append(self._taken.pop(gone))
        for connection in self._free:
            if connection.raw.info.transaction_status == TRANSACTION_STATUS_IDLE:
                self._free.remove(connection)
                self._taken[transport] = connection
                return connection
        raise RuntimeError(f"one connection for each client: there are {len(self._taken)} clients already")
