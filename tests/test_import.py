"""What an import costs."""

from __future__ import annotations

import subprocess
import sys

LISTING = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def loaded(statement: str) -> set[str]:
    """The top-level modules in a fresh interpreter after ``statement``."""
    run = subprocess.run([sys.executable, "-c", f"{statement}; {LISTING}"], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_import_pulls_in_no_extra() -> None:
    """Beyond aiohttp, aiopg and yarl, importing the package loads the standard library and itself, nothing else."""
    extra = loaded("import aiohttp.web, aiopg, yarl, aiohttp_poolscope") - loaded("import aiohttp.web, aiopg, yarl")
    assert extra - set(sys.stdlib_module_names) == {"aiohttp_poolscope"}


def test_the_import_loads_only_the_core() -> None:
    """Integrations and the command line are loaded by those who import them."""
    found = subprocess.run(
        [sys.executable, "-c", "import sys, aiohttp_poolscope; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "aiohttp_poolscope.web.scope" in found
    assert [name for name in found if name.startswith(("aiohttp_poolscope.contrib", "aiohttp_poolscope.cli"))] == []
