"""Settings: their defaults, ranges and spellings; where they are written; and libpq's own."""

from .settings import SETTINGS, Hook, Password, PoolConfig, Source

__all__ = ("SETTINGS", "Hook", "Password", "PoolConfig", "Source")
