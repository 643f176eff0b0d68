"""Two exports: one that fits into memory and pins nothing, one that does not fit and streams.

DATABASE_URL=postgresql://localhost/app python examples/streaming_export.py
curl --limit-rate 10k http://127.0.0.1:8080/small.csv
curl http://127.0.0.1:8080/large.csv | tail -1
"""

import os
import sys

from aiohttp import web

import aiohttp_poolscope as poolscope

SCOPE = web.AppKey("scope", poolscope.PoolScope)
BATCH = 1000


async def small(request: web.Request) -> web.StreamResponse:
    """All rows at once; then the connection goes back, however slowly the client reads."""
    db = request["db"]
    rows = await db.fetch("SELECT n, md5(n::text) FROM generate_series(1, 100000) AS n")
    db.release()
    response = web.StreamResponse(headers={"Content-Type": "text/csv"})
    await response.prepare(request)
    for start in range(0, len(rows), BATCH):
        await response.write(csv(rows[start : start + BATCH]))
    return response


async def large(request: web.Request) -> web.StreamResponse:
    """Never more than a batch in memory; the connection is kept until the last one has been read from it."""
    db = request["db"]
    response = web.StreamResponse(headers={"Content-Type": "text/csv"})
    await response.prepare(request)
    batch = []
    async with db.stream("SELECT n, md5(n::text) FROM generate_series(1, 300000) AS n", size=BATCH) as rows:
        async for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                await response.write(csv(batch))
                batch.clear()
    db.release()  # before the last bytes, for which a slow client may take its time
    await response.write(csv(batch))
    return response


def csv(rows: list[tuple[int, str]]) -> bytes:
    return "".join(f"{number},{text}\n" for number, text in rows).encode()


def make_app(dsn: str) -> web.Application:
    app = web.Application()
    app[SCOPE] = poolscope.setup(app, dsn)
    app.add_routes([web.get("/small.csv", small), web.get("/large.csv", large)])
    return app


if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL") or sys.exit("set DATABASE_URL, for example to postgresql://localhost/app")
    web.run_app(make_app(url), host="127.0.0.1", port=8080)
