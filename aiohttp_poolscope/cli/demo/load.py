"""The demo's patient clients, and the bookkeeping of what becomes of every request."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientSession, WSMsgType

from .database import ACCOUNTS

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ("Customers", "Progress", "Tallies", "Tally", "crowd")

_HOT = 50
"""Accounts that a third of all transfers go through, so that there are locks to wait for."""
_MESSAGES = 10
"""Messages on one websocket."""
_SHOW_EVERY = 0.1
_TOO_MUCH = 0.02
"""The share of transfers of more than there can be."""
_PAUSE = 0.1
"""Seconds, at most, between two things that a client does beside those who leave."""


@dataclass
class Tally:
    """What became of the requests of one kind. ``lost``: the client stayed, and got no answer, or half of one."""

    sent: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    aborted: int = 0
    lost: int = 0


class Tallies(dict[str, Tally]):
    """Tallies by what they are shown as."""

    def __missing__(self, name: str) -> Tally:
        tally = self[name] = Tally()
        return tally


class Progress:
    """One line that says how far it is: on a terminal all the time, elsewhere at the end."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._shown = 0.0
        self._terminal = sys.stdout.isatty()

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now, last = time.monotonic(), self._done == self._total
        if last or (self._terminal and now - self._shown > _SHOW_EVERY):
            self._shown = now
            back = "\r" if self._terminal else ""
            end = "\n" if last else ""
            print(f"{back}  {self._what}: {self._done:,} of {self._total:,}", end=end, flush=True)


async def crowd(visits: Iterable[Callable[[], Awaitable[None]]], size: int, progress: Progress) -> None:
    """Make all visits, ``size`` of them at a time."""
    coming = iter(visits)

    async def client() -> None:
        for visit in coming:
            await visit()
            progress.step()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(size):
            tasks.create_task(client())


class Customers:
    """Clients that wait for their answers."""

    def __init__(self, session: ClientSession, url: str, chance: random.Random, tallies: Tallies) -> None:
        self._session = session
        self._url = url
        self._chance = chance
        self._tallies = tallies
        self.receipts: list[int] = []
        """Numbers of the transfers they were told of."""

    def visits(self, number: int) -> list[Callable[[], Awaitable[None]]]:
        """So many visits, of all kinds, in a random order."""
        kinds = (self.account, self.transfer, self.websocket, self.export)
        return self._chance.choices(kinds, weights=(63, 32, 4, 1), k=number)

    def pair(self) -> tuple[int, int]:
        """Two accounts."""
        limit = _HOT if self._chance.random() < 1 / 3 else ACCOUNTS
        payer, payee = self._chance.sample(range(1, limit + 1), 2)
        return payer, payee

    async def account(self, label: str = "GET /accounts/{id}") -> None:
        """Look at an account."""
        await self._visit(label, "GET", f"/accounts/{self._chance.randint(1, ACCOUNTS)}")

    async def transfer(self, label: str = "POST /transfer") -> None:
        """Pay; now and then more than there can be."""
        payer, payee = self.pair()
        amount = 10**8 if self._chance.random() < _TOO_MUCH else self._chance.randint(1, 50)
        answer = await self._visit(label, "POST", "/transfer", {"from": payer, "to": payee, "amount": amount})
        if answer is not None:
            self.receipts.append(json.loads(answer)["transfer"])

    async def export(self) -> None:
        """Read all accounts; each must be there."""
        await self._visit("GET /export", "GET", "/export", lines=ACCOUNTS + 1)

    async def websocket(self) -> None:
        """A conversation."""
        tally = self._tallies["GET /ws, messages"]
        try:
            async with self._session.ws_connect(f"{self._url}/ws") as socket:
                for _ in range(_MESSAGES):
                    tally.sent += 1
                    await socket.send_str(str(self._chance.randint(1, ACCOUNTS)))
                    message = await socket.receive(timeout=10)
                    if message.type is not WSMsgType.TEXT:
                        tally.lost += 1
                        return
                    answer = message.json()
                    tally.answered[answer.get("error", "balance")] += 1
        except (ClientError, OSError, TimeoutError):
            tally.lost += 1

    async def keep_coming(self, until: asyncio.Event) -> None:
        """Look at accounts and pay, beside others who are not as patient."""
        while not until.is_set():
            await self.account("GET /accounts/{id}, by clients that stay")
            await self.transfer("POST /transfer, by clients that stay")
            await asyncio.sleep(self._chance.uniform(0, _PAUSE))

    async def _visit(
        self, label: str, method: str, path: str, form: dict[str, int] | None = None, lines: int = 1
    ) -> bytes | None:
        """The body, if all went well."""
        tally = self._tallies[label]
        tally.sent += 1
        try:
            async with self._session.request(method, self._url + path, data=form) as response:
                body = await response.read()
        except (ClientError, OSError, TimeoutError):
            tally.lost += 1
            return None
        if response.ok and body.count(b"\n") < lines:
            tally.lost += 1
            return None
        tally.answered[str(response.status)] += 1
        return body if response.ok else None
