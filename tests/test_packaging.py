"""What is packed, and what those read who have not installed or set everything. `.ci/packages` tries the packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aiohttp_poolscope.contrib.extras import BRINGS, extra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXAMPLES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "examples").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)

WITHOUT = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == sys.argv[1] else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""
"""The package that the first argument names is not installed."""

ASKING = """
try:
    {}
except ModuleNotFoundError as error:
    print(error.name, repr(error.__cause__))
    raise
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_sdist_is_the_whole_repository() -> None:
    """Each file and folder that git has at the root is packed: the tests in the sdist need them all."""
    always = {"pyproject.toml", ".gitignore"}  # hatchling packs them unasked
    packed = {*PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"], *always}
    there = {path.name for path in ROOT.iterdir()}
    if (ROOT / ".git").exists():  # it is no sdist, where git knows nothing
        git = ["git", "-c", "safe.directory=*", "ls-files"]  # a clone may be somebody else's
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert packed == {line.partition("/")[0] for line in listed.splitlines()}
    assert packed <= there


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("prometheus", "import aiohttp_poolscope.contrib.prometheus"),
        ("opentelemetry", "import aiohttp_poolscope.contrib.opentelemetry"),
        ("demo", "from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres; EmbeddedPostgres()"),
    ],
)
def test_a_missing_extra_says_how_it_is_installed(name: str, use: str) -> None:
    """The error is a ModuleNotFoundError that ends in the line to install it; its cause is the original."""
    package = BRINGS[name]
    done = run("-W", "error", "-c", WITHOUT + ASKING.format(use), package)
    cause = f"No module named {package!r}"
    assert done.stdout == f'{package} ModuleNotFoundError("{cause}")\n'
    install = f'pip install "aiohttp-poolscope[{name}]"'
    said = done.stderr.splitlines()[-1].partition(": ")[2]
    assert said == f"the extra {name!r} is not installed ({cause}): {install}"


@pytest.mark.parametrize("name", BRINGS)
def test_a_missing_extra_is_one_that_there_is(name: str) -> None:
    """What the error tells to install is an extra of pyproject.toml, and brings the package that was missing."""
    [brought] = PROJECT["project"]["optional-dependencies"][name]
    assert re.split(r"[<>=\[]", brought)[0].replace("-", "_").removesuffix("_api") == BRINGS[name]


@pytest.mark.parametrize(
    ("statement", "cause"),
    [
        ("import prometheus_client.later", ModuleNotFoundError),
        ("from prometheus_client import Later", ImportError),
    ],
)
def test_an_old_package_is_told_like_a_missing_one(statement: str, cause: type[ImportError]) -> None:
    """What it does not have yet is a reason to install what the extra asks for."""
    install = r'pip install "aiohttp-poolscope\[prometheus\]"'
    with pytest.raises(ModuleNotFoundError, match=install) as raised, extra("prometheus"):
        exec(statement)
    assert type(raised.value.__cause__) is cause


@pytest.mark.parametrize(
    "statement", ["import no_such_package", "from aiohttp import no_such_name", "import yarl.none"]
)
def test_another_error_stays_as_it_is(statement: str) -> None:
    """A package that is missing beneath the extra's own is not mended by installing the extra."""
    with pytest.raises(ImportError) as raised, extra("prometheus"):
        exec(statement)
    assert "pip install" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    "arguments", [*((name,) for name in EXAMPLES), ("-m", "gunicorn", "-c", "examples/gunicorn.conf.py")], ids=" ".join
)
def test_an_example_without_a_database_says_what_to_set(arguments: tuple[str, ...]) -> None:
    """Without DATABASE_URL each example ends with one line that says what to set, and with exit code 1."""
    done = run("-W", "error", *arguments)
    errors = [line for line in done.stderr.splitlines() if " [INFO] " not in line]
    assert (done.returncode, done.stdout) == (1, "")
    assert errors == ["set DATABASE_URL, for example to postgresql://localhost/app"]
