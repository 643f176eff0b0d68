"""What one writes by hand with aiopg, and what `aiohttp-poolscope stress` is for: this one loses its connections.

DATABASE_URL=postgresql://localhost/app python examples/naive.py
aiohttp-poolscope stress http://127.0.0.1:8080/notes --method POST --data '{"text": "milk"}'

Whatever raises between `acquire` and `release` keeps the connection for ever: a body that is no JSON, a client that
leaves in the middle of it, and with `handler_cancellation=True` a client that leaves at any moment. Ten of these, and
every request waits for a connection that never comes.
"""

import os
import sys
from collections.abc import AsyncIterator

import aiopg
from aiohttp import web

POOL = web.AppKey("pool", aiopg.Pool)


async def hold_pool(app: web.Application) -> AsyncIterator[None]:
    app[POOL] = await aiopg.create_pool(os.environ["DATABASE_URL"], maxsize=10)
    yield
    app[POOL].terminate()  # not close(): that would wait for what was lost
    await app[POOL].wait_closed()


async def check_note(request: web.Request) -> web.Response:
    connection = await request.app[POOL].acquire()
    cursor = await connection.cursor()
    note = await request.json() if request.can_read_body else {"text": "nothing"}
    await cursor.execute("SELECT pg_sleep(0.005), length(%s)", (note["text"],))
    _, length = await cursor.fetchone()
    request.app[POOL].release(connection)  # with no try/finally around all of it
    return web.json_response({"length": length})


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(hold_pool)
    app.add_routes([web.get("/notes", check_note), web.post("/notes", check_note)])
    return app


if __name__ == "__main__":
    if not os.environ.get("DATABASE_URL"):
        sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(), host="127.0.0.1", port=8080)
