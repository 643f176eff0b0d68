"""examples/README.md lists what is there, and its command for a database works."""

from __future__ import annotations

import importlib.metadata
import os
import re
import select
import subprocess
import sys

import psycopg2
import pytest

from .test_examples import EXAMPLES, START_LIMIT

README = (EXAMPLES / "README.md").read_text()


def test_every_example_is_listed() -> None:
    """Each file and folder once, and none that is not there."""
    listed = re.findall(r"\[([\w./]+)\]\(", README)
    there = {path.name + "/" * path.is_dir() for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__/"}
    assert sorted(listed) == sorted(there)
    for name, target in re.findall(r"\[([\w./]+)\]\(([^)]+)\)", README):
        assert (EXAMPLES / target).exists()
        assert name.rstrip("/") == target


def test_each_says_how_it_is_run() -> None:
    """The head of every program has the command with which it is run, by its right name."""
    for path in EXAMPLES.glob("*.py"):
        head = path.read_text().split('"""')[1]
        assert re.search(rf"(python|gunicorn -c) examples/({re.escape(path.name)}|gunicorn\.conf\.py)", head), path.name


def test_the_database_of_the_readme() -> None:
    """The command prints the URL of a server that answers, until its input ends."""
    command = re.search(r"python -c '([^']+)'", README)
    assert command is not None
    process = subprocess.Popen(
        [sys.executable, "-c", command[1]],
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], START_LIMIT)[0]
        url = process.stdout.readline().strip()
        with psycopg2.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 42")
            assert cursor.fetchone() == (42,)
        connection.close()
        process.communicate("\n", timeout=START_LIMIT)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(url)


def test_what_it_says_of_aiopg() -> None:
    """aiopg's own support for SQLAlchemy does not import beside the version that is installed here."""
    assert int(importlib.metadata.version("sqlalchemy").partition(".")[0]) >= 2
    asked = subprocess.run([sys.executable, "-c", "import aiopg.sa"], capture_output=True, text=True, check=False)
    assert asked.returncode == 1
    assert "ImportError" in asked.stderr
