"""The command as a whole: its help, its exit codes, and that it imports no more than it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.cli import _COMMANDS, main

from .programs import REPOSITORY, environment, run

MANUAL = REPOSITORY / "docs" / "command-line.md"


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `--help` prints."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` has all commands, each with what it does; `--version` is the package's."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, summary in _COMMANDS.items():
        assert f"{name} {summary}" in said
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"aiohttp-poolscope {poolscope.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["doctor", "--nonsense"], ["top", "a", "b"]])
def test_wrong_usage_is_exit_code_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is not understood is said on stderr, with the usage."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: aiohttp-poolscope" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["doctor", "stress", "top"])
def test_help_has_the_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command says what its exit codes mean."""
    assert re.search(r"Exit codes: 0 .*; 2 ", " ".join(help_of(name, capsys).split()))


@pytest.mark.parametrize("name", ["doctor", "stress", "top"])
def test_the_manual_has_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/command-line.md has each option of `--help` in the command's chapter, and none that is not there."""
    options = set(re.findall(r"--[a-z][a-z-]+", help_of(name, capsys))) - {"--help"}
    chapter = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    assert chapter is not None
    written = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", chapter[1]))
    assert options - written == set()
    assert {each for each in written - options if each not in OF_OTHERS} == set()


OF_OTHERS = {"--workers", "--worker-class", "--help"}
"""gunicorn's, and everybody's."""


@pytest.mark.parametrize("name", ["doctor", "stress", "top"])
def test_a_command_imports_no_other(name: str) -> None:
    """The modules of other commands, and rich, are not imported for the help of one; what they share may be."""
    program = (
        "import sys\nfrom aiohttp_poolscope.cli import main\n"
        f"try: main(['{name}', '--help'])\nexcept SystemExit: pass\n"
        "print(*(m for m in sys.modules if m.startswith('aiohttp_poolscope.cli.') or m == 'rich'), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    imported = {module.removeprefix("aiohttp_poolscope.cli.") for module in done.stderr.split()}
    assert {module for module in imported if module.split(".")[0] != name} <= {"arrivals", "terminal"}
    assert name in imported


def test_it_runs_as_a_module_and_as_a_command() -> None:
    """`python -m aiohttp_poolscope` is the same as the installed command."""
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"aiohttp-poolscope {poolscope.__version__}\n")


WITHOUT_RICH = """
import sys
sys.modules["rich"] = None
sys.stdout.isatty = lambda: True
from aiohttp_poolscope.cli import main
sys.exit(main(["doctor", "--max-connections", "100", "--rate", "10", "--lease", "0.01"]))
"""


def test_without_rich_it_is_plain_text() -> None:
    """rich is an extra: without it a terminal gets what a file gets."""
    program = [sys.executable, "-W", "error", "-c", WITHOUT_RICH]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("It fits.\n")
