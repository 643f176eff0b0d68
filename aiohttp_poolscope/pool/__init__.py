"""The asynchronous shell around the gate: lends, takes back, opens, restores, sweeps and ends."""

from .holders import leases
from .lifecycle import Lifecycle, lifecycles, observing, supplying
from .pool import Pool

__all__ = ("Lifecycle", "Pool", "leases", "lifecycles", "observing", "supplying")
