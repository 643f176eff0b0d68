"""gunicorn -c examples/gunicorn.conf.py"""

import os
import sys
from pathlib import Path

wsgi_app = "gunicorn_app:make_runner"
pythonpath = str(Path(__file__).parent)
worker_class = "aiohttp.GunicornWebWorker"
bind = os.environ.get("BIND", "127.0.0.1:8080")

# The pool reads this as well: it warns at start when workers * maxsize is more than the server has to give.
workers = int(os.environ.setdefault("WEB_CONCURRENCY", "2"))

# LINGER + 2 * SHUTDOWN_TIMEOUT + DRAIN_GRACE + 1 s < both, else workers are killed before their pool is closed.
graceful_timeout = 20  # counts when all of gunicorn ends
timeout = 30  # counts when a worker is replaced (SIGHUP, max_requests): while it ends it has no heartbeat


def on_starting(_: object) -> None:
    """Before there are workers: one that ends for want of a setting is started again, and again."""
    if not os.environ.get("DATABASE_URL"):
        sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
