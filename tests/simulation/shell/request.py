"""A modelled request: what the middleware, and what it calls, use of aiohttp's, and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Request",)


class Transport:
    """The client's connection."""

    def __init__(self) -> None:
        self.closing = False

    def is_closing(self) -> bool:
        """Whether it ends."""
        return self.closing


class Resource:
    """A route's path."""

    canonical = "/visit"


class Route:
    """A route."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.resource = Resource()
        self.handler = handler


class MatchInfo:
    """What the router has found."""

    http_exception = None

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler
        self.route = Route(handler)


class Content:
    """The request's body."""

    def __init__(self, *, complete: bool) -> None:
        self._complete = complete

    def is_eof(self) -> bool:
        """Whether it is here."""
        return self._complete


class Writer:
    """The answer's way."""

    output_size = 0


class Request(dict[Any, Any]):
    """One request. It is a mapping, as aiohttp's is."""

    def __init__(self, tag: str, method: str, handler: Callable[..., Any], *, complete: bool = True) -> None:
        super().__init__()
        self.tag = tag
        self.method = method
        self.match_info = MatchInfo(handler)
        self.content = Content(complete=complete)
        self.headers = {"X-Request-ID": tag}
        self.rel_url = URL("/visit")
        self.writer = Writer()
        self.transport: Transport | None = Transport()

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def lose_client(self) -> None:
        """aiohttp's connection_lost()."""
        self.transport = None
