"""Access: who may see the page."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, Literal

from aiohttp import HttpVersion11, hdrs, web

from aiohttp_poolscope import ConfigError

__all__ = ("Allow", "Gatekeeper", "gatekeeper")

Allow = Callable[[web.Request], bool | Awaitable[bool]] | Literal["loopback"]
Gatekeeper = Callable[[web.Request], Awaitable[bool]]

FORWARDED: Final = re.compile(
    r".*forwarded.*|via|.*(?:real|client|connecting|remote|external)-?(?:ip|addr).*|cf-.*|x-envoy-.*|x-amzn-trace-id",
    re.IGNORECASE,
)
"""Names of headers by which a proxy says whom it speaks for. Then the peer is the proxy, not who asks."""

HOST: Final = re.compile(r"(?:(?P<name>[^:\[\]@/]+)|\[(?P<v6>[^\[\]@/]+)\])(?::[0-9]{1,5})?")

WHAT_TO_WRITE = (
    'allow="loopback" admits this machine only; a function of the request, also async, decides for itself: '
    "allow=lambda request: request.get('user') in ADMINS"
)


def gatekeeper(allow: Any) -> Gatekeeper:
    """What decides about a request; ConfigError for what cannot."""
    if allow == "loopback":
        return _from_here
    if isinstance(allow, (str, bool)) or not callable(allow):
        raise ConfigError(f"setup_dashboard(allow={allow!r}): who may see the page? {WHAT_TO_WRITE}")

    async def ask(request: web.Request) -> bool:
        answer = allow(request)
        # An async function's coroutine is true before it has decided anything.
        return bool(await answer if inspect.isawaitable(answer) else answer)

    return ask


async def _from_here(request: web.Request) -> bool:
    """A peer on this machine, that speaks for itself, and knows us by a name of this machine.

    The last one is against DNS rebinding: a page from elsewhere, whose name leads to 127.0.0.1 by now, runs in a
    browser here, but its requests name its own host. HTTP/1.0 is what older versions of nginx speak to a server, and
    then they send neither who asks nor which name was asked for. Newer ones cannot be told from a person here.
    """
    # Not request.remote: other middlewares may have set it, to what a header says.
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return (
        isinstance(peer, tuple)
        and _is_loopback(str(peer[0]))
        and request.version >= HttpVersion11
        and not any(FORWARDED.fullmatch(name) for name in request.headers)
        and _names_this_machine(request.headers.getall(hdrs.HOST, []))
    )


def _names_this_machine(hosts: list[str]) -> bool:
    found = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if found is None:
        return False
    name = found["name"] or found["v6"]
    return name.lower() == "localhost" or _is_loopback(name)


def _is_loopback(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:  # a name, or the path of a Unix socket
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
