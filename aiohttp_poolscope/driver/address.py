"""Address: one place to connect to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp_poolscope.config.dsn import Host

__all__ = ("DEFAULT_SOCKET", "Target")

DEFAULT_SOCKET = "local socket"


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

    def of(self, host: Host) -> bool:
        """Whether it is one of this host's."""
        return (self.name, self.port) == (host.host or host.hostaddr or DEFAULT_SOCKET, host.port)

    def parameters(self) -> dict[str, str]:
        """As libpq's parameters."""
        found = {"port": str(self.port)}
        if self.name != DEFAULT_SOCKET:
            found["host"] = self.name
        if self.address is not None:
            found["hostaddr"] = self.address
        return found
