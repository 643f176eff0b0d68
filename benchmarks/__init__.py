"""Measured against the ways people do without this package: ``make bench``, ``make bench-quick``."""
