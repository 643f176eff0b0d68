"""The command `top`: two sources, the page of a service and a database, and one view of both."""

from __future__ import annotations

from .command import CANNOT_TELL, WELL

__all__ = ("CANNOT_TELL", "WELL")
