"""Somebody who does in a terminal what a page says, and compares what they see with what it shows.

The steps are those of tests/kit/documents.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kit import curl
from tests.kit.documents import ALONE, ROOT, TERMINAL
from tests.kit.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.documents import Block

PLUGIN = "aiohttp_poolscope.contrib.pytest_plugin"
PATIENCE = 60.0
"""Seconds that anything may take: the machine may be busy with other tests."""

ACTIVATE = ". .venv/bin/activate"
COMMAND = 'aiohttp-poolscope() { python -m aiohttp_poolscope "$@"; }'
"""What the installation puts beside the interpreter; where tests run from a clone it need not be there."""
DSN = re.compile(r"postgresql://localhost/app")
RUN = re.compile(r"(?:-> (?P<code>\d+) ?)?(?:with (?P<options>.+))?")
START = re.compile(r"(?P<name>\w+) until (?P<ready>[^:]+)(?:: (?P<command>.+))?")
SHAPE = re.compile(r"(?P<part>part)? ?(?:but for (?P<optional>.+))?")
UNWANTED = re.compile(
    r"PYTEST|VIRTUAL_ENV|PYTHONPATH|DATABASE_URL|DB_|WEB_CONCURRENCY|POOLSCOPE|MAKE|MFLAGS"
    r"|(PORT|ARGS|JOBS|VENV|PYTHON)$"
)
"""Variables of this process that a reader does not have."""
UNITS = {"ms", "s", "µs", "kB", "MB"}


@dataclass(frozen=True)
class Step:
    """What the reader does next."""

    kind: str
    what: str
    body: str


def steps(parts: list[Block]) -> list[Step]:
    """What a page tells to do in a terminal, in order."""
    found = []
    for part in parts:
        if part.steps and part.kinds <= (TERMINAL if part.language else ALONE):
            kind, _, what = part.steps[0].partition(" ")
            found.append(Step(kind, what, part.body))
    return found


def matches(shown: str, wanted: str) -> bool:
    return re.fullmatch(".*?".join(map(re.escape, wanted.strip().split("…"))), shown.strip(), re.DOTALL) is not None


def shapes(text: str) -> list[str]:
    """The words of each line, without figures, their units, and what has a figure in it: names, times, addresses."""
    lines = []
    for line in text.splitlines():
        words = [word for word in line.split() if re.search(r"[^\W\d_]", word) and not re.search(r"\d", word)]
        lines.append(" ".join(word for word in words if word.strip(",.;:()") not in UNITS))
    return [line for line in lines if line]


def plugged() -> dict[str, str]:
    """A variable for what an installed package does by itself: pytest has the plugin."""
    installed = any(each.value == PLUGIN for each in metadata.entry_points(group="pytest11"))
    return {} if installed else {"PYTEST_PLUGINS": PLUGIN}


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

    ``dsn``: the database that the reader has in place of the page's, also in ``DATABASE_URL``.
    ``from_nothing``: with a virtual environment and a network, too; else the reader has what the tests run with.
    """

    home: Path
    dsn: str = ""
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
        path.write_text(self.here(step.body))

    def do_append(self, step: Step) -> None:
        path = self.folder / step.what
        path.write_text(f"{path.read_text()}\n\n{self.here(step.body)}")

    def do_run(self, step: Step) -> None:
        how = RUN.fullmatch(step.what)
        assert how is not None, f"unknown directive: run {step.what}"
        commands = f"{step.body.rstrip()} {how['options'] or ''}"
        self.printed = self.command(self.shell(commands), self.folder, int(how["code"] or 0))

    def do_output(self, step: Step) -> None:
        assert matches(self.printed, step.body), f"it is:\n{self.printed}\nand not:\n{step.body}"

    def do_shape(self, step: Step) -> None:
        how = SHAPE.fullmatch(step.what)
        assert how is not None, f"unknown directive: shape {step.what}"
        wanted, printed = shapes(step.body), shapes(self.printed)
        if how["optional"]:
            [optional] = shapes(how["optional"])
            wanted = [line for line in wanted if line in printed or not line.startswith(optional)]
        found = iter(printed)  # `in` goes on where it was: the same order
        alike = all(line in found for line in wanted) if how["part"] else wanted == printed
        assert wanted, "nothing is compared"
        assert alike, f"it is:\n{self.printed}\nand not as:\n{step.body}"

    def do_start(self, step: Step) -> None:
        how = START.fullmatch(step.what)
        assert how is not None, f"unknown directive: start {step.what}"
        assert bool(how["command"]) != bool(step.body), "a block, or a command"
        log = self.home / f"{how['name']}.log"
        command = self.shell(how["command"] or step.body)
        terminal = Terminal(command, self.folder, self.environment, how["ready"], log)
        self.terminals[how["name"]] = terminal
        terminal.start()

    def do_restart(self, step: Step) -> None:
        self.do_stop(step)
        self.terminals[step.what].start()

    def do_stop(self, step: Step) -> None:
        self.terminals[step.what].stop()

    def do_kill(self, step: Step) -> None:
        self.terminals.pop(step.what).kill()

    def do_log(self, step: Step) -> None:
        shown = self.terminals[step.what].shown.splitlines()
        for line in step.body.splitlines():
            assert any(matches(each, line) for each in shown), f"no line like {line!r} in:\n{shown}"

    def shell(self, commands: str) -> list[str]:
        """How a terminal runs these: in the environment of the page, with what it has exported before."""
        lines = [line for line in self.here(commands).splitlines() if line != ACTIVATE]
        self.exports += [line for line in lines if line.startswith("export ")]
        begin = [ACTIVATE] if self.from_nothing else [COMMAND]
        return ["bash", "-euc", "\n".join([*begin, *self.exports, *lines])]

    @property
    def environment(self) -> dict[str, str]:
        unwanted = re.compile(
            "PYTEST|VIRTUAL_ENV|PYTHONPATH|DATABASE_URL|DB_|WEB_CONCURRENCY|POOLSCOPE|PORT$|MAKE|MFLAGS|ARGS$"
        )
        found = {name: value for name, value in os.environ.items() if not unwanted.match(name)}
        found["PATH"] = curl.on_path(self.home)
        found |= {"COLUMNS": "80", "PYTHONUNBUFFERED": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"}
        if self.dsn:
            found["DATABASE_URL"] = self.dsn
        if not self.from_nothing:
            found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found["PATH"]])
            found["PYTHONPATH"] = str(ROOT)
            found |= plugged()
        return found

    def command(self, command: list[str], folder: Path, code: int = 0) -> str:
        """Run it to its end, and see that nothing of it runs on."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        run = subprocess.Popen(command, cwd=folder, env=self.environment, start_new_session=True, **pipes)
        try:
            printed, complained = run.communicate(timeout=5 * PATIENCE if self.from_nothing else PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        assert run.returncode == code, f"exit code {run.returncode}:\n{printed}{complained}"
        return printed

    def here(self, text: str) -> str:
        """With the port, and the database, that this reader has."""
        text = text.replace("8080", str(self.port))
        return DSN.sub(lambda _: self.dsn, text) if self.dsn else text


def follow_all(reader: Reader, parts: list[Block]) -> None:
    """Do all that a page says."""
    try:
        for step in steps(parts):
            try:
                reader.follow(step)
            except Exception as error:
                error.add_note(f"at: {step.kind} {step.what}\n{step.body}")
                raise
        for name, terminal in reader.terminals.items():
            assert terminal.process is not None
            assert terminal.process.poll() == 0, f"{name} still runs"
    finally:
        for terminal in reader.terminals.values():
            terminal.kill()
