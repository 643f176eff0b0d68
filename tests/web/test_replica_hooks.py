"""read_from: what a scope does to its connections, the replica that serves its requests does as well."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from tests.conftest import Serve

DSN = "postgresql://nowhere.invalid/app"
SQL = "DISCARD TEMP"


async def set_tenant(db: Any) -> None:
    await db.execute("SELECT set_config('app.tenant', %s, false)", (db.client.query["tenant"],))


async def other(db: Any) -> None:
    """Does something else."""


def scopes(settings: dict[str, Any], of_replica: dict[str, Any]) -> tuple[poolscope.PoolScope, poolscope.PoolScope]:
    return poolscope.PoolScope(DSN, **settings), poolscope.PoolScope(DSN, key="replica", **of_replica)


@pytest.mark.parametrize(
    ("settings", "of_replica", "named"),
    [
        ({"on_acquire": set_tenant}, {}, "on_acquire=set_tenant"),
        ({"on_acquire": set_tenant}, {"on_acquire": other}, "on_acquire=set_tenant"),
        ({"on_acquire": set_tenant}, {"on_acquire": functools.partial(set_tenant)}, "on_acquire=set_tenant"),
        ({"on_release": other}, {}, "on_release=other"),
        ({"request_tag": "comment"}, {}, "request_tag='comment'"),
        ({"request_tag": "comment"}, {"request_tag": "application_name"}, "request_tag='comment'"),
        ({"reset": "full"}, {"reset": "rollback"}, "reset='full'"),
        ({"reset": "full"}, {"reset": SQL}, "reset='full'"),
        ({"reset": SQL}, {"reset": "full"}, f"reset='{SQL}'"),
        ({"reset": SQL}, {"reset": "rollback"}, f"reset='{SQL}'"),
        ({"reset": "full", "on_acquire": set_tenant}, {"reset": "full"}, "on_acquire=set_tenant"),
    ],
)
def test_a_replica_without_them_is_refused(settings: Any, of_replica: Any, named: str) -> None:
    """The error names the setting and what to write; ``hooks="own"`` is the other way out."""
    scope, replica = scopes(settings, of_replica)
    with pytest.raises(poolscope.ConfigError) as refused:
        scope.read_from(replica)
    assert f"Write {named} in the replica's settings" in str(refused.value)
    assert "hooks='own'" in str(refused.value)
    assert scope._replica is None
    assert not replica._is_replica
    scope.read_from(replica, hooks="own")
    assert scope._replica is replica


@pytest.mark.parametrize(
    ("settings", "of_replica"),
    [
        ({}, {}),
        ({}, {"on_acquire": other, "on_release": other, "request_tag": "comment", "reset": "full"}),
        ({"reset": "rollback"}, {"reset": SQL}),
        ({"reset": SQL}, {"reset": SQL}),
        *[(same, same) for same in [{"on_acquire": set_tenant, "reset": "full", "request_tag": "comment"}]],
    ],
)
def test_one_that_does_as_much_serves(settings: Any, of_replica: Any) -> None:
    """The same hooks, or more of them, and a reset that is no weaker."""
    scope, replica = scopes(settings, of_replica)
    scope.read_from(replica)
    assert scope._replica is replica


def test_another_word_is_refused() -> None:
    """A mistake in ``hooks`` is told at once."""
    scope, replica = scopes({}, {})
    hooks: Any = "none"
    with pytest.raises(poolscope.ConfigError, match="hooks='none'"):
        scope.read_from(replica, hooks=hooks)


async def test_reads_have_their_tenant(dsn: str, serve: Serve) -> None:
    """A read that the replica serves sees what on_acquire has set for it."""
    carried: dict[str, Any] = {"on_acquire": set_tenant, "reset": "full", "maxsize": 1}
    app = web.Application()
    scope = poolscope.setup(app, dsn, **carried)
    replica = poolscope.setup(app, dsn, key="replica", readonly=True, **carried)
    scope.read_from(replica)

    @poolscope.replica
    async def tenant(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval("SELECT current_setting('app.tenant')")))

    app.router.add_get("/", tenant)
    async with serve(app) as served:
        for name in ("a", "b", "a"):
            assert await served.get(params={"tenant": name}) == (200, name)
        assert replica.stats().lent == 3
