"""The asynchronous shell around the gate: lends, takes back, opens, restores, sweeps and ends."""

from .pool import Pool

__all__ = ("Pool",)
