"""docs/tutorial.md is done as a reader would do it: files are written, commands run, output compared.

A comment above a block says what a reader does with it::

    <!-- test: file service.py -->

    file NAME                 write the block into the file
    append NAME               add it to the end of the file
    install                   the commands that set up: see ``Reader.install``
    run                       run the commands in a terminal
    output                    what the last ``run`` printed; ``…`` stands for anything
    start NAME until TEXT     run the commands in a terminal of their own, until they print this
    restart NAME, stop NAME   Ctrl-C there, which must end it with exit code 0; and start it again
    log NAME                  lines that this terminal has shown
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
PLUGIN = "aiohttp_poolscope.contrib.pytest_plugin"
PATIENCE = 60.0
"""Seconds that anything may take: the machine may be busy with other tests."""

STEP = re.compile(r"^<!-- test: (?P<how>.*?) -->\n(?:```\w+\n(?P<body>.*?)^```$)?", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```\w+$", re.MULTILINE)
ACTIVATE = ". .venv/bin/activate"


@dataclass(frozen=True)
class Step:
    """What the reader does next."""

    kind: str
    what: str
    body: str


def steps(text: str) -> list[Step]:
    """What a page tells to do, in order."""
    found = []
    for match in STEP.finditer(text):
        kind, _, what = match["how"].partition(" ")
        found.append(Step(kind, what, match["body"] or ""))
    return found


def matches(shown: str, wanted: str) -> bool:
    return re.fullmatch(".*?".join(map(re.escape, wanted.strip().split("…"))), shown.strip(), re.DOTALL) is not None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Terminal:
    """A program that runs in a terminal of its own, and what it has shown."""

    command: list[str]
    folder: Path
    environment: dict[str, str]
    ready: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def shown(self) -> str:
        return self.log.read_text()

    def start(self) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + PATIENCE
        while self.ready not in self.shown:
            assert self.process.poll() is None, f"it has ended:\n{self.shown}"
            assert time.monotonic() < end, f"it does not say {self.ready!r}:\n{self.shown}"
            time.sleep(0.02)

    def stop(self) -> None:
        """Ctrl-C, which the terminal sends to all in the foreground."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(PATIENCE)
        assert code == 0, f"exit code {code}:\n{self.shown}"

    def kill(self) -> None:
        """Whatever has happened, nothing of it runs on."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Reader:
    """Somebody with a folder, a free port in place of 8080, and patience.

    ``from_nothing``: with a virtual environment and a network, too; else the reader has what the tests run with.
    """

    home: Path
    from_nothing: bool = False
    exports: list[str] = field(default_factory=list)
    terminals: dict[str, Terminal] = field(default_factory=dict)
    printed: str = ""
    port: int = field(default_factory=free_port)

    @property
    def folder(self) -> Path:
        return self.home / "seats"

    def follow(self, step: Step) -> None:
        """Do what one block, or one comment, says."""
        do: Callable[[Step], None] | None = getattr(self, f"do_{step.kind}", None)
        assert do is not None, f"unknown directive: {step.kind}"
        do(step)

    def do_install(self, step: Step) -> None:
        """Run the commands; without a network, see that what they would install is what the tests run with."""
        if self.from_nothing:
            (self.home / "aiohttp_poolscope").symlink_to(ROOT)
            self.printed = self.command(["bash", "-euc", step.body], self.home)
            return
        self.folder.mkdir()
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        [line] = [line for line in step.body.splitlines() if " pip install " in line]
        package, *needed = shlex.split(line.partition(" pip install ")[2])
        wanted = re.fullmatch(r"\.\./aiohttp_poolscope\[([\w,]+)\]", package)
        assert wanted, f"not this package: {package}"
        for extra in wanted[1].split(","):
            needed += [re.split(r"[<>=~\[]", each)[0] for each in extras[extra]]
        for name in needed:
            assert metadata.version(name), f"{name} is not installed"

    def do_file(self, step: Step) -> None:
        path = self.folder / step.what
        assert not path.exists(), f"{step.what} is there already"
        path.write_text(self.at_port(step.body))

    def do_append(self, step: Step) -> None:
        path = self.folder / step.what
        path.write_text(f"{path.read_text()}\n\n{self.at_port(step.body)}")

    def do_run(self, step: Step) -> None:
        self.printed = self.command(self.shell(step.body), self.folder)

    def do_output(self, step: Step) -> None:
        assert matches(self.printed, step.body), f"it is:\n{self.printed}\nand not:\n{step.body}"

    def do_start(self, step: Step) -> None:
        name, _, ready = step.what.partition(" until ")
        log = self.home / f"{name}.log"
        terminal = Terminal(self.shell(step.body), self.folder, self.environment, ready, log)
        self.terminals[name] = terminal
        terminal.start()

    def do_restart(self, step: Step) -> None:
        self.do_stop(step)
        self.terminals[step.what].start()

    def do_stop(self, step: Step) -> None:
        self.terminals[step.what].stop()

    def do_log(self, step: Step) -> None:
        shown = self.terminals[step.what].shown.splitlines()
        for line in step.body.splitlines():
            assert any(matches(each, line) for each in shown), f"no line like {line!r} in:\n{shown}"

    def shell(self, commands: str) -> list[str]:
        """How a terminal runs these: in the environment of the page, with what it has exported before."""
        lines = [line for line in self.at_port(commands).splitlines() if line != ACTIVATE]
        self.exports += [line for line in lines if line.startswith("export ")]
        begin = [ACTIVATE] if self.from_nothing else []
        return ["bash", "-euc", "\n".join([*begin, *self.exports, *lines])]

    @property
    def environment(self) -> dict[str, str]:
        unwanted = re.compile("PYTEST|VIRTUAL_ENV|PYTHONPATH|DATABASE_URL|DB_|WEB_CONCURRENCY|POOLSCOPE")
        found = {name: value for name, value in os.environ.items() if not unwanted.match(name)}
        found |= {"COLUMNS": "80", "PYTHONUNBUFFERED": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"}
        if not self.from_nothing:
            found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found["PATH"]])
            found["PYTHONPATH"] = str(ROOT)
            if not any(each.value == PLUGIN for each in metadata.entry_points(group="pytest11")):
                found["PYTEST_PLUGINS"] = PLUGIN  # what an installed package does by itself
        return found

    def command(self, command: list[str], folder: Path) -> str:
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 5 * PATIENCE}
        run = subprocess.run(command, cwd=folder, env=self.environment, check=False, **options)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def at_port(self, text: str) -> str:
        return text.replace("8080", str(self.port))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    found = Reader(tmp_path)
    yield found
    for terminal in found.terminals.values():
        terminal.kill()


def follow_all(reader: Reader, text: str) -> None:
    for step in steps(text):
        try:
            reader.follow(step)
        except Exception as error:
            error.add_note(f"at: {step.kind} {step.what}\n{step.body}")
            raise
    for name, terminal in reader.terminals.items():
        assert terminal.process is not None
        assert terminal.process.poll() == 0, f"{name} still runs"


def test_every_block_is_done() -> None:
    """No block of the tutorial is left out."""
    text = TUTORIAL.read_text()
    assert sum(bool(step.body) for step in steps(text)) == len(FENCE.findall(text)) > 0


def test_the_tutorial_works(reader: Reader) -> None:
    """Whoever does what the tutorial says sees what it shows."""
    follow_all(reader, TUTORIAL.read_text())


@pytest.mark.system  # it asks a package index, and builds the package
def test_the_tutorial_works_from_nothing(reader: Reader) -> None:
    """It needs nothing but Python, curl and the clone: also in a virtual environment made as it says."""
    reader.from_nothing = True
    follow_all(reader, TUTORIAL.read_text())


WRONG = {
    "other output": ("<!-- test: run -->\n```sh\necho one\n```\n<!-- test: output -->\n```text\ntwo\n```\n", "it is:"),
    "a command fails": ("<!-- test: run -->\n```sh\nfalse\necho one\n```\n", "at: run"),
    "no such directive": ("<!-- test: guess -->\n", "unknown directive: guess"),
    "a file twice": ("<!-- test: file a -->\n```text\na\n```\n" * 2, "a is there already"),
    "it ends at once": ("<!-- test: start it until up -->\n```sh\necho down\n```\n", "it has ended"),
    "it ends badly": (
        "<!-- test: start it until up -->\n```sh\ntrap 'exit 3' INT; echo up; sleep 60\n```\n<!-- test: stop it -->\n",
        "exit code 3",
    ),
    "it is left running": (
        "<!-- test: start it until up -->\n```sh\necho up; sleep 60\n```\n",
        "still runs",
    ),
    "no such line": (
        "<!-- test: start it until up -->\n```sh\necho up; sleep 60\n```\n<!-- test: log it -->\n```text\n…down\n```\n",
        "no line like '…down'",
    ),
}


@pytest.mark.parametrize(("page", "complaint"), WRONG.values(), ids=WRONG)
def test_the_checks_can_fail(reader: Reader, page: str, complaint: str) -> None:
    """A page that does not work is found out."""
    reader.folder.mkdir()
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        follow_all(reader, page)
