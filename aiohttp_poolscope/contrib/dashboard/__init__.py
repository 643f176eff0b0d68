"""A page that shows how the pools are: now, in the last fifteen minutes, and who holds what.

    scope = poolscope.setup(app, dsn)
    setup_dashboard(app, scope, allow="loopback")

It is at /_pool/, and /_pool/state.json has the same as JSON. It works without internet, borrows nothing and asks
nothing of the database. docs/dashboard.md says what is on it, and what never is.
"""

from __future__ import annotations

from .page import setup_dashboard

__all__ = ("setup_dashboard",)
