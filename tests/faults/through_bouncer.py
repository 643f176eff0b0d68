"""``pytest -p tests.faults.through_bouncer tests/pool``: with PgBouncer between every pool and the server.

The DSN that the tests are given goes through a PgBouncer in transaction mode, and says ``pgbouncer=true``; so does the
wire of ``wired(database)``. What they look at from outside (``Database``) still goes straight to the server. Behind
each test the audit asks PgBouncer instead: no client is left, and no server connection is in use.
"""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Audit, Database
    from tests.kit.bouncer import PgBouncer

SERVERS = 3
"""Server connections for each database: fewer than the clients of most of the tests."""

EXCEPT = {
    "looks for the pool's connections in the server: there are PgBouncer's, which come later and stay longer": (
        "tests/pool/test_hooks.py::test_a_hook_that_releases",
        "tests/pool/test_hooks.py::test_on_connect_that_recovers",
        "tests/pool/test_hooks.py::test_on_release_that_raises",
        "tests/pool/test_hooks_edges.py::test_on_acquire_that_hangs",
        "tests/pool/test_hooks_edges.py::test_on_connect_that_leaves_something_open[statement]",
        "tests/pool/test_hooks_edges.py::test_on_connect_that_leaves_something_open[awaited]",
        "tests/pool/test_pool.py::test_expire",
        "tests/pool/test_pool.py::test_idle_timeout",
        "tests/pool/test_pool.py::test_keepalive",
        "tests/pool/test_pool.py::test_max_lifetime_on_return",
        "tests/pool/test_pool.py::test_max_lifetime_while_idle",
        "tests/pool/test_pool.py::test_minsize_is_refilled",
        "tests/pool/test_pool.py::test_warm_before_the_first_request",
        "tests/pool/test_edges.py::test_expire_while_a_connection_is_being_opened",
        "tests/pool/test_edges.py::test_expire_while_a_connection_is_handed_over",
        "tests/pool/test_faults.py::test_a_frozen_idle_connection_reaches_nobody",
        "tests/pool/test_faults.py::test_handed_over_and_dead",
        "tests/connection/test_statements.py::test_a_server_that_does_not_answer",
    ),
    "an idle connection does not end with its backend: PgBouncer keeps it, and takes another backend": (
        "tests/web/test_responses.py::test_database_unavailable_when_the_connection_dies[between statements]",
        "tests/connection/test_cursor.py::test_cursor_on_a_dead_connection",
        "tests/pool/test_edges.py::test_a_dead_lease_does_not_stop_the_housekeeper",
        "tests/pool/test_faults.py::test_a_descriptor_that_is_a_strangers_at_once",
        "tests/pool/test_faults.py::test_dead_idle_connections_reach_nobody",
        "tests/connection/test_statements.py::test_a_connection_that_dies",
    ),
    "the statement goes on in the server when its connection is closed: there is no abandon_interval": (
        "tests/web/test_middleware_streaming.py::test_a_statement_left_running_in_a_task_ends_with_its_request",
    ),
    "asks the driver for the backend's pid, which PgBouncer makes up": (
        "tests/web/test_responses.py::test_a_cancelled_statement_of_the_raw_driver",
        "tests/web/test_middleware_streaming.py::test_an_error_in_the_middle_of_an_answer_cuts_it_off[on raw]",
        "tests/connection/test_statements.py::test_ended_by_the_server[by_operator]",
        "tests/connection/test_statements.py::test_ended_inside_a_task_group[by_operator]",
        "tests/connection/test_statements.py::test_ended_inside_asyncio_timeout[by_operator]",
        "tests/connection/test_statements.py::test_ended_inside_gather[by_operator]",
    ),
    "leaves something in the session": (
        "tests/load/test_abort_storm.py::test_a_storm_of_aborted_requests_leaves_nothing_behind[full]",
        "tests/load/test_cancellation_fuzz.py::test_tasks_cancelled_at_random_moments_lose_nothing[full]",
        "tests/connection/test_connection.py::test_a_full_reset_keeps_the_settings",
        "tests/connection/test_connection.py::test_reset",
        "tests/connection/test_connection.py::test_reset_by_sql_of_ones_own",
        "tests/pool/test_hooks.py::test_on_acquire_comes_first",
        "tests/pool/test_hooks.py::test_on_acquire_that_raises",
        "tests/connection/test_statements.py::test_ended_by_the_server[by_statement_timeout]",
        "tests/connection/test_statements.py::test_ended_inside_a_task_group[by_statement_timeout]",
        "tests/connection/test_statements.py::test_ended_inside_asyncio_timeout[by_statement_timeout]",
        "tests/connection/test_statements.py::test_ended_inside_gather[by_statement_timeout]",
    ),
    "is about pgbouncer=False": ("tests/connection/test_statements.py::test_the_pools_statement_timeout[False]",),
    "the statement is cancelled a second earlier than without PgBouncer, which is another message": (
        "tests/connection/test_statements.py::test_a_silent_network",
    ),
}
"""Tests that cannot hold through PgBouncer, by the reason. In brackets: with this parameter."""


class Through:
    """The one PgBouncer of a run."""

    bouncer: PgBouncer
    statements = 0


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{Through.statements} statements went through PgBouncer")


def end() -> None:
    """Count what went through it, and close it."""
    Through.statements = sum(row["total_query_count"] for row in Through.bouncer.console("SHOW STATS"))
    Through.bouncer.close()


def pytest_configure(config: pytest.Config) -> None:
    from tests import conftest
    from tests.kit import wire
    from tests.load import watch

    init, dsn, check = wire.Wire.__init__, wire.Wire.dsn, conftest.Audit.check

    def through(self: Any, info: Any, *args: Any, **options: Any) -> None:
        if info.dbname == conftest.DATABASE:
            known = {"user": info.user, "password": info.password, "dbname": info.dbname}
            info = SimpleNamespace(host="127.0.0.1", port=Through.bouncer.port, **known)
        init(self, info, *args, **options)

    def checked(self: Audit, database: Database | None) -> None:
        allowed, self.allow_backends = self.allow_backends, True
        check(self, database)
        if self.runs and database is not None:
            ask_bouncer(database, clients_may_stay=allowed)

    watch.Watch.look_at_server = lambda self: None  # type: ignore[method-assign]  # its connections are PgBouncer's
    wire.Wire.__init__ = through  # type: ignore[method-assign]
    wire.Wire.dsn = property(lambda self: f"{dsn.fget(self)}&pgbouncer=true")  # type: ignore[assignment,misc,attr-defined]
    conftest.Audit.check = checked  # type: ignore[method-assign]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {name: reason for reason, names in EXCEPT.items() for name in names}
    found = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        parameters = getattr(item, "callspec", None)
        parts = re.split("-|, ", parameters.id) if parameters else ()
        for name in (test, *(f"{test}[{part}]" for part in parts)):
            if name in reasons:
                found.add(name)
                item.add_marker(pytest.mark.skip(reason=f"through PgBouncer: {reasons[name]}"))
    files = {item.nodeid.partition("::")[0] for item in items}
    unknown = [name for name in reasons.keys() - found if name.partition("::")[0] in files]
    if unknown:
        raise pytest.UsageError(f"through_bouncer.EXCEPT names what does not exist: {sorted(unknown)}")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    value = yield
    if fixturedef.argname == "_database":
        from tests.conftest import DATABASE
        from tests.kit.bouncer import PgBouncer

        Through.bouncer = PgBouncer(value.dsn, default_pool_size=SERVERS)
        Through.bouncer.start()
        fixturedef.addfinalizer(end)
        warm(Through.bouncer, DATABASE)
        value.dsn = Through.bouncer.dsn_for(DATABASE) + "&pgbouncer=true"
    return value


def ask_bouncer(database: Database, *, clients_may_stay: bool) -> None:
    """No client is left and no server connection in use; then let the next test begin with new ones."""
    bouncer, end = Through.bouncer, time.monotonic() + 5.0
    while True:
        clients = [] if clients_may_stay else bouncer.clients()
        busy = [server for server in bouncer.servers() if server["state"] not in ("idle", "used")]
        if not clients and not busy:
            break
        assert time.monotonic() < end, f"left in PgBouncer: {clients} {busy}"
        time.sleep(0.01)
    database.kill()
    while bouncer.servers():
        assert time.monotonic() < end, f"left in PgBouncer: {bouncer.servers()}"
        time.sleep(0.002)
    warm(bouncer, database.connection.info.dbname)


def warm(bouncer: PgBouncer, database: str) -> None:
    """Have one server connection ready. A statement that has to wait for one cannot be cancelled meanwhile."""
    connection = psycopg2.connect(bouncer.dsn_for(database))
    connection.autocommit = True  # closed inside a transaction it would take the server connection with it
    connection.cursor().execute("SELECT 1")
    connection.close()
