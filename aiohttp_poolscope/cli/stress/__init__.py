"""The command `stress`: clients that leave a service at any moment, and a verdict on what it answers afterwards."""

from __future__ import annotations

from .command import CANNOT_TELL, HEALTHY, INTERRUPTED, SICK

__all__ = ("CANNOT_TELL", "HEALTHY", "INTERRUPTED", "SICK")
