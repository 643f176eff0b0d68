"""Tenants in one table, kept apart by row-level security: who asks is set on the connection before it is lent.

DATABASE_URL=postgresql://localhost/app python examples/multi_tenant.py    (as a role that may make a role and a table)
curl -H 'Authorization: Bearer token-of-ann' -d text=hello http://127.0.0.1:8080/
curl -H 'Authorization: Bearer token-of-bob' http://127.0.0.1:8080/    (nothing: that one was Ann's)
"""

import contextvars
import os
import sys
from typing import Any

import psycopg2
from aiohttp import web
from aiohttp.typedefs import Handler

import aiohttp_poolscope as poolscope

SCOPE = web.AppKey("scope", poolscope.PoolScope)
ROLE = "poolscope_tenants"
TOKENS = {"Bearer token-of-ann": "ann", "Bearer token-of-bob": "bob"}

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="")
"""Tasks that a handler starts inherit it. Empty where nobody has set it, and then the policy shows nothing."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS poolscope_messages (
    tenant text NOT NULL DEFAULT current_setting('app.tenant'),
    text text NOT NULL
);
ALTER TABLE poolscope_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE poolscope_messages FORCE ROW LEVEL SECURITY; -- for its owner as well, unless that is a superuser
DROP POLICY IF EXISTS own ON poolscope_messages;
CREATE POLICY own ON poolscope_messages USING (tenant = NULLIF(current_setting('app.tenant', true), ''));
GRANT SELECT, INSERT, DELETE ON poolscope_messages TO poolscope_tenants;
"""


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outside of the pool's middleware: who asks is known before a connection is borrowed."""
    tenant = TOKENS.get(request.headers.get("Authorization", ""))
    if tenant is None:
        raise web.HTTPUnauthorized
    TENANT.set(tenant)  # in this request's context: each has a task of its own, also on a connection that is kept
    return await handler(request)


async def set_tenant(db: poolscope.ScopedConnection) -> None:
    """on_acquire: at each borrow, of a request or beside it. If it fails, the connection is closed, not lent.

    (Behind PgBouncer it has to be set_config(..., true) in a transaction: pgbouncer/service.py.)
    """
    await db.execute("SELECT set_config('app.tenant', %s, false)", (TENANT.get(),))


async def refuse_the_mighty(db: poolscope.ScopedConnection) -> None:
    """on_connect: policies do not bind superusers and roles with BYPASSRLS, and nothing would tell."""
    if await db.fetchval("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"):
        raise poolscope.ConfigError("row-level security does not bind this role: connect as another one")


async def messages(request: web.Request) -> web.Response:
    rows = await request["db"].fetch("SELECT tenant, text FROM poolscope_messages ORDER BY text")  # no WHERE to forget
    return web.json_response([tuple(row) for row in rows])


async def add(request: web.Request) -> web.Response:
    form = await request.post()
    await request["db"].execute("INSERT INTO poolscope_messages (text) VALUES (%s)", (form["text"],))
    return web.Response(status=201)


def migrate(dsn: str, password: str | None = None) -> None:
    """Before the service starts, and as another role: the owner of the table."""
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,))
        how = "ALTER" if cursor.fetchone() else "CREATE"
        cursor.execute(f"{how} ROLE {ROLE} LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD %s", (password,))
        cursor.execute(SCHEMA)
    connection.close()


def make_app(dsn: str, **settings: Any) -> web.Application:
    app = web.Application(middlewares=[authenticate])
    # set_tenant alone keeps the rows apart. "full" also forgets what else a session can hold: temporary tables, locks,
    # LISTEN, a search_path. It costs two round trips behind each request: this one, and on_connect once more.
    keeping = {"on_connect": refuse_the_mighty, "on_acquire": set_tenant, "reset": "full"}
    app[SCOPE] = poolscope.setup(app, dsn, **keeping | settings)
    app.add_routes([web.get("/", messages), web.post("/", add)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    secret = os.environ.get("TENANTS_PASSWORD")
    migrate(url, secret)
    web.run_app(make_app(url, user=ROLE, password=secret), host="127.0.0.1", port=8080)
