"""Fixtures for the tests of services that use the package. docs/testing.md describes them.

pytest loads this module wherever the package is installed: nothing is imported, and nothing happens, before a test
asks for one of the fixtures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from .testing.audit import Audit
    from .testing.database import WorkerDatabase
    from .testing.faults import Faults
    from .testing.rollback import Rollback

AUDIT = pytest.StashKey["Audit"]()


@pytest.fixture(scope="session")
def poolscope_postgres() -> Iterator[WorkerDatabase]:
    """A PostgreSQL database for this test process: ``poolscope_postgres.dsn``; needs the extra ``demo``.

    ``POOLSCOPE_TEST_DSN`` names another server than the embedded one. The database is dropped at the end.
    """
    from .embedded import EmbeddedPostgresError  # noqa: PLC0415  see the module
    from .testing.database import worker_database  # noqa: PLC0415

    database = worker_database()
    try:
        found = database.__enter__()
    except EmbeddedPostgresError as error:
        pytest.fail(f"poolscope_postgres: {error}; or name a server in POOLSCOPE_TEST_DSN", pytrace=False)
    try:
        yield found
    finally:
        database.__exit__(None, None, None)


@pytest.fixture
def poolscope_rollback() -> Iterator[Rollback]:
    """``poolscope_rollback(scope)``: all that the test does in ``scope`` is one transaction, rolled back at its end.

    Before the application starts; with one that runs: ``async with poolscope_rollback.running(scope):``.
    """
    from .testing.rollback import Rollback  # noqa: PLC0415

    with Rollback().armed() as rollback:
        yield rollback


@pytest.fixture
def poolscope_faults() -> Faults:
    """``async with poolscope_faults.exhausted(scope):`` and its like: what goes wrong, on purpose and for real."""
    from .testing.faults import Faults  # noqa: PLC0415

    return Faults()


@pytest.fixture
def poolscope_audit(request: pytest.FixtureRequest) -> Audit:
    """The test fails if it has left a connection in use, a transaction open or a task behind.

    For a whole file: ``pytestmark = pytest.mark.usefixtures("poolscope_audit")``.
    """
    audit: Audit = request.node.stash[AUDIT]
    return audit


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Before the first fixture of a test that is audited until after the last one, pools are noted."""
    if "poolscope_audit" not in getattr(item, "fixturenames", ()):
        return (yield)
    from .testing.audit import Audit  # noqa: PLC0415

    with Audit().listening() as audit:
        item.stash[AUDIT] = audit
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that has passed is looked at before its fixtures end: what they would clear away still shows."""
    result = yield
    if (audit := _audit_of(item)) is not None:
        audit.look()
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> None:
    """And again after the last of its own fixtures, before those that it shares: what is first here ends last."""
    audit = _audit_of(request.node)
    if audit is not None and not audit.scheduled:
        audit.scheduled = True
        request.node.addfinalizer(audit.finish)


@pytest.hookimpl
def pytest_fixture_post_finalizer(request: pytest.FixtureRequest) -> None:
    """An application that a fixture has ended: its loop rests for a moment, and what is left in it shows."""
    audit = _audit_of(request.node)
    if audit is not None:
        audit.note_tasks()


def _audit_of(node: Any) -> Audit | None:
    return node.stash.get(AUDIT, None) if isinstance(node, pytest.Item) else None
