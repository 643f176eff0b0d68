"""Targets: which address to try next, and how.

libpq would do all of this itself, but in asynchronous mode it hangs as soon as it has to change sockets (several
hosts, a wanted role, TLS with a fall-back), and it resolves names while the event loop stands still. So it is only
ever given one numeric address and one TLS mode.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from .errors import DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from .config import PoolConfig
    from .driver import Link
    from .dsn import Host

    Connect = Callable[["Target", str], Awaitable[Link]]

__all__ = ("Target", "Targets")

TLS_ATTEMPTS: Mapping[str, tuple[str, ...]] = {"prefer": ("require", "disable"), "allow": ("disable", "require")}
"""libpq's two modes that may need a second connection, as the modes to try one after the other."""


@dataclass(frozen=True, slots=True)
class Target:
    """One numeric address or socket directory. ``name`` is the host as configured: certificates are checked for it."""

    name: str
    address: str | None
    port: int

    @property
    def local(self) -> bool:
        """Whether it is a Unix socket: no name to resolve, no TLS."""
        return self.address is None

    def __str__(self) -> str:
        if self.name.startswith(("/", "@", "[")) or self.local or self.name == self.address:
            return f"{self.name}:{self.port}"
        return f"{self.name}:{self.port} ({self.address})"

    def parameters(self) -> dict[str, str]:
        """As libpq's parameters."""
        found = {"port": str(self.port)}
        if self.name != DEFAULT_SOCKET:
            found["host"] = self.name
        if self.address is not None:
            found["hostaddr"] = self.address
        return found


DEFAULT_SOCKET = "local socket"

ROLES: Mapping[str, tuple[bool | None, ...]] = {
    "any": (None,),
    "primary": (False,),
    "standby": (True,),
    "prefer-standby": (True, None),
}
"""Whether the server has to be a standby, in the order of preference; None: whatever it is."""


class Targets:
    """The hosts of one pool, in the order to try them: the one that answered last comes first."""

    def __init__(self, config: PoolConfig) -> None:
        self._hosts = list(config.hosts)
        self._role = config.target
        self._timeout = config.connect_timeout
        params = config.params
        self._what = f"database {params.get('dbname', '(default)')!r} as user {params.get('user', '(default)')!r}"
        self._sslmode = config.params.get("sslmode", "prefer")
        self._modes: dict[Target, str] = {}

    async def open(self, connect: Connect) -> Link:
        """Connect to the first host that answers and has the wanted role.

        Each host gets ``connect_timeout`` seconds. Raises DatabaseUnavailable with what every one of them said.
        """
        said: list[str] = []
        cause: Exception | None = None
        for standby in ROLES[self._role]:
            for host in tuple(self._hosts):
                try:
                    async with asyncio.timeout(self._timeout):
                        return await self._open_host(connect, host, standby)
                except TimeoutError as error:
                    cause = error
                    said.append(f"{_name(host)}: no answer within {self._timeout:g} s (connect_timeout)")
                except (OSError, DatabaseUnavailable) as error:
                    cause = error
                    said.append(f"{_name(host)}: {error}")
        raise DatabaseUnavailable(f"cannot connect to {self._what}: {'; '.join(dict.fromkeys(said))}") from cause

    async def _open_host(self, connect: Connect, host: Host, standby: bool | None) -> Link:
        problem: Exception = OSError("the name has no address")
        for target in await self._resolve(host):
            tls_problem: Exception | None = None
            for mode in self._tls_modes(target):
                try:
                    link = await connect(target, mode)
                except (OSError, DatabaseUnavailable) as error:
                    # What the first mode said counts, unless it only said that there is no TLS here.
                    problem = error if tls_problem is None or "SSL" in str(tls_problem) else tls_problem
                    tls_problem = error
                    continue
                if await _plays(link, standby):
                    self._worked(host, target, mode)
                    return link
                problem = DatabaseUnavailable(f"is not a {'standby' if standby else 'primary'}")
                break
        raise problem

    async def _resolve(self, host: Host) -> list[Target]:
        """The addresses of one host. Raises OSError when the name cannot be resolved."""
        if host.hostaddr is not None:
            return [Target(host.host or host.hostaddr, host.hostaddr, host.port)]
        if host.host is None:
            return [Target(DEFAULT_SOCKET, None, host.port)]
        if host.host.startswith(("/", "@")):
            return [Target(host.host, None, host.port)]
        if _is_numeric(host.host):
            return [Target(host.host, host.host, host.port)]
        found = await asyncio.get_running_loop().getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)
        return [Target(host.host, address, host.port) for address in addresses]

    def _tls_modes(self, target: Target) -> Iterator[str]:
        """The TLS modes to try with a target, the one that worked last first."""
        if target.local:
            yield "disable"
            return
        modes = TLS_ATTEMPTS.get(self._sslmode, (self._sslmode,))
        known = self._modes.get(target)
        if known is not None:
            yield known
        yield from (mode for mode in modes if mode != known)

    def _worked(self, host: Host, target: Target, mode: str) -> None:
        """Remember what answered."""
        self._modes[target] = mode
        if self._hosts[0] is not host:
            self._hosts.remove(host)
            self._hosts.insert(0, host)


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _plays(link: Link, standby: bool | None) -> bool:
    """Whether the server has the wanted role; if not, the link is closed."""
    if standby is None:
        return True
    try:
        fits = await link.is_standby() is standby
    except BaseException:
        link.close()
        raise
    if not fits:
        link.close()
    return fits


def _name(host: Host) -> str:
    return f"{host.host or host.hostaddr or DEFAULT_SOCKET}:{host.port}"
