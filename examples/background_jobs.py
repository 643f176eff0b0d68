"""Jobs that outlive their requests, in aiojobs' scheduler: the end waits for them, and what is not done is not lost.

DATABASE_URL=postgresql://localhost/app python examples/background_jobs.py    (makes a table; needs aiojobs)
curl -d to=ann@example.org http://127.0.0.1:8080/
curl http://127.0.0.1:8080/                           (press Ctrl-C in between: those that run are waited for)
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiojobs
from aiohttp import web

import aiohttp_poolscope as poolscope

DURATION = 2.0
"""Seconds that it takes to send one."""

GRACE = 10.0
"""Seconds that the end waits for jobs. The pool's drain comes after that: count it in gunicorn's graceful_timeout."""

SCOPE = web.AppKey("scope", poolscope.PoolScope)
JOBS = web.AppKey("jobs", aiojobs.Scheduler)
logger = logging.getLogger(__name__)


async def send(scope: poolscope.PoolScope, number: int) -> None:
    """A job. It borrows for each statement, not for the time it takes to send. If it is cancelled or fails in between,
    the mail is sent by the next process: once more, perhaps, but never not at all.
    """
    to = await scope.fetchval("SELECT recipient FROM poolscope_mails WHERE id = %s", (number,))
    await asyncio.sleep(DURATION)
    await scope.execute("UPDATE poolscope_mails SET sent = now() WHERE id = %s", (number,))
    logger.info("sent mail %d to %s", number, to)


async def add(request: web.Request) -> web.Response:
    form, app = await request.post(), request.app
    sql = "INSERT INTO poolscope_mails (recipient) VALUES (%s) RETURNING id"
    number = await request["db"].fetchval(sql, (form["to"],))
    if not app[JOBS].closed:  # else it is left to the next process
        await app[JOBS].spawn(send(app[SCOPE], number))
    return web.json_response({"id": number}, status=202)


async def count(request: web.Request) -> web.Response:
    [total, sent] = await request["db"].fetchrow("SELECT count(*), count(sent) FROM poolscope_mails")
    return web.json_response({"total": total, "sent": sent})


async def resume(app: web.Application) -> AsyncIterator[None]:
    """What an earlier process has left. Several at once would have to agree on whose it is (FOR UPDATE SKIP LOCKED)."""
    await app[SCOPE].execute(
        "CREATE TABLE IF NOT EXISTS poolscope_mails (id serial PRIMARY KEY, recipient text NOT NULL, sent timestamptz)"
    )
    for (number,) in await app[SCOPE].fetch("SELECT id FROM poolscope_mails WHERE sent IS NULL ORDER BY id"):
        await app[JOBS].spawn(send(app[SCOPE], number))
    yield


async def end(app: web.Application) -> None:
    """No new jobs, and time for those there are. Who is not done by then is cancelled, and stays in the table."""
    await app[JOBS].wait_and_close(timeout=GRACE)


def failed(_: aiojobs.Scheduler, context: dict[str, Any]) -> None:
    logger.error("a job failed: %r", context.get("exception"))


def make_app(dsn: str, **settings: Any) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn, **settings)
    app[JOBS] = aiojobs.Scheduler(limit=5, exception_handler=failed)
    app.cleanup_ctx.append(resume)  # after the pool's: it can use the pool
    # First in on_shutdown, where the pool's drain begins. In a cleanup context (that of aiojobs.aiohttp.setup, say) it
    # would be too late: a job that holds no connection when the drain begins finds the pool closed when it wants one.
    app.on_shutdown.insert(0, end)
    app.add_routes([web.get("/", count), web.post("/", add)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
