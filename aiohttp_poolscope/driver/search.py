"""Search: which address to try next, and how.

libpq would do all of this itself, but in asynchronous mode it hangs as soon as it has to change sockets (several
hosts, a wanted role, TLS with a fall-back), and it resolves names while the event loop stands still. So it is only
ever given one numeric address and one TLS mode.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from aiohttp_poolscope.clock import SYSTEM
from aiohttp_poolscope.errors import DatabaseUnavailable

from .address import DEFAULT_SOCKET, Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from aiohttp_poolscope.clock import Clock
    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.config.dsn import Host

    from .link import Link

    Connect = Callable[["Target", str], Awaitable[Link]]

__all__ = ("Search",)

TLS_ATTEMPTS: Mapping[str, tuple[str, ...]] = {"prefer": ("require", "disable"), "allow": ("disable", "require")}
"""libpq's two modes that may need a second connection, as the modes to try one after the other."""


ROLES: Mapping[str, bool | None] = {"any": None, "primary": False, "standby": True, "prefer-standby": True}
"""Whether the server that is looked for is a standby; None: whatever it is."""

IN_VAIN = 10.0
"""Seconds for which a search that met no server of the preferred role is not repeated by other connects."""


class _Round:
    """What one search is for, and the server of the other role that it has met and would make do with."""

    def __init__(self, standby: bool | None, failures: int, *, lenient: bool, hasty: bool) -> None:
        self._standby = standby
        self._lenient = lenient
        self._hasty = hasty
        self.failures = failures
        self.spare: Link | None = None

    async def takes(self, link: Link) -> bool:
        """Whether it is found. A link that is not wanted is closed, or kept as the spare one."""
        try:
            link.role = self._standby
            link.role_matches = self._standby is None or await link.is_standby() is self._standby
        except BaseException:
            link.close()
            raise
        if link.role_matches or self._hasty:
            return True
        if self._lenient and self.spare is None:
            self.spare = link
        else:
            link.close()
        return False

    def missed(self) -> str:
        """What a host is not."""
        return f"is not a {'standby' if self._standby else 'primary'}"

    def close(self) -> None:
        """The spare one is not needed."""
        if self.spare is not None:
            self.spare.close()


class Search:
    """The hosts of one pool, in the order to try them: the one that answered last comes first."""

    def __init__(self, config: PoolConfig, clock: Clock = SYSTEM) -> None:
        self._hosts = list(config.hosts)
        self._role = config.target
        self._now = clock.monotonic
        self._timeout = config.connect_timeout
        params = config.params
        self._what = f"database {params.get('dbname', '(default)')!r} as user {params.get('user', '(default)')!r}"
        self._sslmode = config.params.get("sslmode", "prefer")
        self._modes: dict[Target, str] = {}
        self._in_vain_until = float("-inf")
        self._failures = 0

    async def open(self, connect: Connect, *, lenient: bool = True) -> Link:
        """Connect to the first host that answers and has the wanted role.

        Each host gets ``connect_timeout`` seconds. With "prefer-standby" a primary will do, unless ``lenient`` is
        False, when no standby answers or none has a moment ago. Raises DatabaseUnavailable with what every host said.
        """
        lenient = lenient and self._role == "prefer-standby"
        hasty = lenient and self._now() < self._in_vain_until
        search = _Round(ROLES[self._role], self._failures, lenient=lenient, hasty=hasty)
        try:
            return await self._first(connect, search)
        except DatabaseUnavailable:
            self._in_vain_until = self._now() + IN_VAIN  # the pool looks for the role more often than that
            if search.spare is None:
                raise
            found, search.spare = search.spare, None
            self._worked(found, search)
            return found
        finally:
            search.close()

    async def again(self, connect: Connect, target: Target) -> Link:
        """One more connection to where there is one."""
        return await connect(target, next(self._tls_modes(target)))

    async def _first(self, connect: Connect, search: _Round) -> Link:
        said: list[str] = []
        cause: Exception | None = None
        for host in tuple(self._hosts):
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._open_host(connect, host, search)
            except TimeoutError as error:
                cause = error
                said.append(f"{_name(host)}: no answer within {self._timeout:g} s (connect_timeout)")
            except (OSError, DatabaseUnavailable) as error:
                cause = error
                said.append(f"{_name(host)}: {error}")
        raise DatabaseUnavailable(f"cannot connect to {self._what}: {'; '.join(dict.fromkeys(said))}") from cause

    async def _open_host(self, connect: Connect, host: Host, search: _Round) -> Link:
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
                self._modes[target] = mode
                if await search.takes(link):
                    self._worked(link, search)
                    return link
                problem = DatabaseUnavailable(search.missed())
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
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # no name by IDNA's rules: an empty part, one that is too long
            raise OSError(f"{host.host!r} is no name of a host") from error
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

    def _worked(self, link: Link, search: _Round) -> None:
        """Try its host first from now on, unless one has failed since the search began: it may be this one."""
        if search.failures == self._failures:
            self._hosts.sort(key=lambda host: not link.target.of(host))
        if link.role_matches:
            self._in_vain_until = float("-inf")

    def failed(self, target: Target) -> None:
        """Try its host last from now on."""
        self._failures += 1
        self._hosts.sort(key=target.of)


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _name(host: Host) -> str:
    return f"{host.host or host.hostaddr or DEFAULT_SOCKET}:{host.port}"
