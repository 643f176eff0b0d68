"""Metrics for Prometheus: what ``scope.stats()`` says, read when Prometheus asks and at no other time.

    scope = poolscope.setup(app, dsn)
    setup_metrics(app, scope)

Where OpenTelemetry has a name for it the name is OpenTelemetry's, as its translation to Prometheus spells it; the rest
begins with ``poolscope_``. docs/prometheus.md has all of them, alert rules and a dashboard. It needs the package
prometheus-client.
"""

from __future__ import annotations

from .collector import PoolScopeCollector
from .metrics import METRICS as METRICS
from .metrics import OUTCOMES as OUTCOMES
from .metrics import STATES as STATES
from .route import setup_metrics

__all__ = ("PoolScopeCollector", "setup_metrics")
