"""What a run of the benchmark leaves behind: one JSON file, from which everything else is made."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp_poolscope
from benchmarks.study import Goal, Ratio, Sample

LIBRARIES = (
    "aiohttp",
    "aiopg",
    "psycopg2-binary",
    "asyncpg",
    "psycopg",
    "psycopg-pool",
    "SQLAlchemy",
    "aiohttp-sqlalchemy",
    "uvloop",
)


@dataclass
class Results:
    """Every sample of a run, the goals it was held against, and where it ran."""

    samples: list[Sample]
    goals: list[Goal]
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Rounds, seed, quick or not, which studies."""

    notes: dict[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")

    def ratios(self) -> dict[Goal, Ratio]:
        """What was measured of each goal; a goal without samples is left out."""
        found = {goal: goal.ratio(self.samples) for goal in self.goals}
        return {goal: ratio for goal, ratio in found.items() if ratio is not None}

    def write(self, path: Path) -> None:
        """Keep it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """What ``write`` has kept."""
        found = json.loads(path.read_text())
        samples = [Sample(**each) for each in found.pop("samples")]
        goals = [Goal(**each) for each in found.pop("goals")]
        return cls(samples, goals, **found)


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "load before": f"{os.getloadavg()[0]:.1f}",
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "model": model(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def model() -> str:
    """The processor, as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(**others: str) -> dict[str, str]:
    """Of Python, of the libraries that are installed, and of ``others``."""
    found = {"aiohttp-poolscope": aiohttp_poolscope.__version__, "Python": platform.python_version(), **others}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
