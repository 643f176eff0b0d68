"""The command `doctor`: what it asks a server and an application, how it judges the answers, what a load needs."""

from __future__ import annotations

from .command import CANNOT_TELL, NOT_WELL, WELL

__all__ = ("CANNOT_TELL", "NOT_WELL", "WELL")
