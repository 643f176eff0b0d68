"""A server under constant load, and what has become of every single request when it is over.

Three fates that are not answers are told apart. *Lost*: an application had begun with the request. *Unseen*: bytes
were sent, and no application has seen them: on a connection that was idle when the server closed it, or not yet
accepted. *Refused*: no connection. Only the first cannot be mended by sending it again.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.kit.load import DROPPED, NOT_CONNECTED
from tests.kit.processes import wait_for

from .traffic import Traffic, traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Server

RATE = 20.0
"""Requests a second of each kind of client: little enough for a machine that is busy with other things."""


class Load(NamedTuple):
    """Clients that keep their connections, and clients with a new one for each request."""

    kept: Traffic
    new: Traffic


@contextlib.contextmanager
def loaded(server: Server, paths: dict[str, float]) -> Iterator[Load]:
    """Answers before the block; and after it, when all is as it should be again."""
    with traffic(server, paths, rate=RATE) as kept, traffic(server, paths, rate=RATE, kept=False) as new:
        wait_for(lambda: all(run.statuses()[200] > RATE for run in (kept, new)), "some answers")
        yield Load(kept, new)
        wait_for(lambda: quiet(kept) and quiet(new), "answers after the restart")


def quiet(run: Traffic) -> bool:
    """Whether all of the last second had its 200."""
    late = [result.status for result in run.results if result.at > time.monotonic() - 1]
    return len(late) > 5 and set(late) == {200}


def check(run: Load, *servers: Server) -> None:
    """Nothing is lost, nothing is refused, and what nobody has seen is answered when it is sent again."""
    for clients in run:
        seen = clients.statuses()
        unseen = clients.unseen(*servers)
        print(
            f"sent {len(clients.results)}, 200: {seen[200]}, 503: {seen[503]}, refused {seen[NOT_CONNECTED]}, "
            f"unseen {len(unseen)} ({sum(each.used for each in unseen)} on a used connection), "
            f"lost {len(clients.lost(*servers))}"
        )
        assert clients.lost(*servers) == []
        assert set(seen) <= {200, 503, DROPPED}, seen
        assert clients.unanswered() == []


def check_unnoticed(run: Load) -> None:
    """Every request of every client has its 200 at the first try."""
    for clients in run:
        failed = [result for result in clients.results if result.status != 200]
        assert failed == [], failed
