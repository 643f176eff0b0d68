"""Request: its name in logs, in events and on the server; and whether its client has left."""

from __future__ import annotations

import random
import re
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

__all__ = ("answer_begun", "client_gone", "comment_for", "path_of", "request_id", "route_of")

VALID_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
"""What is taken for a request id: visible ASCII only, so that it can break no log line, and not a whole header."""

TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_MADE: Final = web.RequestKey("poolscope.request_id", str)


def client_gone(request: web.Request) -> bool:
    """Whether the client has left: its transport is gone, or about to be."""
    transport = request.transport
    return transport is None or transport.is_closing() is True  # a mocked one says anything


def answer_begun(request: web.Request) -> bool:
    """Whether a part of an answer has been sent already."""
    sent: object = request.writer.output_size
    return isinstance(sent, int) and sent > 0  # a mocked writer has anything


def request_id(request: web.Request) -> str:
    """What the request is called: its ``X-Request-ID``, if that is 1 to 128 visible ASCII characters.

    Otherwise an id is made, of 16 hexadecimal digits, the same each time this request is asked about.
    """
    given = request.headers.get("X-Request-ID")
    if given is not None and VALID_ID.fullmatch(given):
        return given
    made: str | None = request.get(_MADE)
    if made is None:
        # It has to be different, not hard to guess.
        made = request[_MADE] = f"{random.getrandbits(64):016x}"
    return made


def path_of(request: web.Request) -> str:
    """The path as the client sent it, in ASCII: decoded, it could break a log line."""
    # aiohttp's parser in Python lets through what the one in C does not.
    return request.rel_url.raw_path.encode("ascii", "backslashreplace").decode()


def route_of(route: Any) -> str | None:
    """A route as it was registered, such as ``/users/{id}``."""
    canonical = getattr(getattr(route, "resource", None), "canonical", None)
    return canonical if isinstance(canonical, str) else None  # a mocked one has anything


def comment_for(request: web.Request | None, route: Any) -> str:
    """An SQL comment that names the request, as sqlcommenter writes it; empty outside of requests.

    All that comes from the client is percent-encoded: no character of it can end the comment, or a quote in it.
    """
    if request is None:
        return ""
    told = {"request_id": request_id(request), "route": route_of(route)}
    parent = request.headers.get("traceparent")
    if parent is not None and TRACEPARENT.fullmatch(parent):
        told["traceparent"] = parent
    pairs = ",".join(f"{name}='{quote(value, safe='')}'" for name, value in told.items() if value is not None)
    return f" /*{pairs}*/"
