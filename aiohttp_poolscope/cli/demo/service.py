"""The demo's service: a small bank, as one would write it with request-scoped connections.

As a program it takes its settings from the first line of its standard input, as JSON, prints its address, and ends
at SIGTERM, at SIGINT, or when that input is closed: it cannot outlive whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import re
import signal
import sys
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from aiohttp import WSCloseCode, WSMsgType, web

from aiohttp_poolscope.contrib.dashboard import setup_dashboard
from aiohttp_poolscope.errors import DatabaseUnavailable, PoolScopeError
from aiohttp_poolscope.stats import HistogramSnapshot
from aiohttp_poolscope.web import PoolScope
from aiohttp_poolscope.web.marks import lazy, no_connection

from .database import BRANCHES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp_poolscope.connection import Transaction

__all__ = ("GUIDE", "STATEMENT_TIMEOUT", "make_app", "serving")

STATEMENT_TIMEOUT = 3.0
SHUTDOWN_TIMEOUT = 1.0
"""aiohttp's own patience with handlers, of which it takes twice as much."""
LONGEST_REPORT = 60.0
LARGEST = 1_000_000_000
CSV_BATCH = 250

SCOPE = web.AppKey("scope", PoolScope)
SOCKETS = web.AppKey("sockets", set[web.WebSocketResponse])
GUIDE = web.AppKey("guide", list[str])
"""What ``GET /`` shows, line by line."""


def make_app(dsn: str, **settings: Any) -> web.Application:
    """The service, with a pool of its own; ``settings`` are PoolScope's."""
    app = web.Application()
    scope = PoolScope(dsn, statement_timeout=STATEMENT_TIMEOUT, drain_grace=2.0, drain_timeout=4.0, **settings)
    app[SCOPE] = scope.setup(app)
    setup_dashboard(app, scope, allow="loopback")
    app[SOCKETS] = set()
    app[GUIDE] = []
    app.on_shutdown.append(close_sockets)
    app.add_routes(
        [
            web.get("/", index),
            web.get("/accounts/{id:[0-9]{1,9}}", get_account),
            web.post("/transfer", transfer),
            web.get("/report", report),
            web.get("/export", export),
            web.get("/ws", websocket),
            web.get("/healthz", healthz),
            web.get("/pool", pool),
        ]
    )
    return app


@no_connection
async def index(request: web.Request) -> web.Response:
    """What there is to try."""
    return web.Response(text="\n".join([*request.app[GUIDE], ""]))


async def get_account(request: web.Request) -> web.Response:
    """One account."""
    row = await request["db"].fetchrow(
        "SELECT id, branch, balance FROM poolscope_demo.accounts WHERE id = %s", (int(request.match_info["id"]),)
    )
    if row is None:
        raise web.HTTPNotFound(**_because("no such account"))
    return _json(dict(zip(("id", "branch", "balance"), row, strict=True)))


@lazy  # nothing is borrowed until the order has been read, and nothing between two tries of the transaction
async def transfer(request: web.Request) -> web.Response:
    """Move money from one account to another."""
    payer, payee, amount = await _order(request)

    async def move(tx: Transaction) -> int:
        # Locked in the order of their ids, whoever pays whom: two transfers cannot wait for each other.
        balances = dict(
            await tx.fetch(
                "SELECT id, balance FROM poolscope_demo.accounts WHERE id IN %s ORDER BY id FOR UPDATE",
                ((payer, payee),),
            )
        )
        if balances.keys() != {payer, payee}:
            raise web.HTTPNotFound(**_because("no such account"))
        if balances[payer] < amount:
            raise web.HTTPConflict(**_because(f"account {payer} has only {balances[payer]}"))
        for account, change in ((payer, -amount), (payee, amount)):
            await tx.execute(
                "UPDATE poolscope_demo.accounts SET balance = balance + %s WHERE id = %s", (change, account)
            )
        number: int = await tx.fetchval(
            "INSERT INTO poolscope_demo.transfers (payer, payee, amount) VALUES (%s, %s, %s) RETURNING id",
            (payer, payee, amount),
        )
        return number

    # Again after a deadlock or a serialization failure, which this one cannot have; the next one written might.
    number = await request.app[SCOPE].run_transaction(move)
    return _json({"transfer": number, "from": payer, "to": payee, "amount": amount})


async def report(request: web.Request) -> web.Response:
    """Totals by branch, by a query that takes as long as it is told to."""
    try:
        seconds = float(request.query.get("seconds", "1"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_REPORT:
        raise web.HTTPBadRequest(**_because(f"seconds is a number from 0 to {LONGEST_REPORT:g}"))
    rows = await request["db"].fetch(
        "SELECT branch, count(*), sum(balance)::bigint, pg_sleep(%s) FROM poolscope_demo.accounts "
        "GROUP BY branch ORDER BY branch",
        (seconds / len(BRANCHES),),
    )
    return _json([{"branch": branch, "accounts": accounts, "total": total} for branch, accounts, total, _ in rows])


async def export(request: web.Request) -> web.StreamResponse:
    """All accounts as CSV, read and sent bit by bit."""
    response = web.StreamResponse()
    response.content_type = "text/csv"
    query = "SELECT id, branch, balance, reference FROM poolscope_demo.accounts ORDER BY id"
    with contextlib.suppress(ConnectionError):  # the client has left
        async with request["db"].stream(query, size=CSV_BATCH) as rows:
            lines = ["id,branch,balance,reference\n"]
            async for row in rows:
                lines.append(",".join(map(str, row)) + "\n")
                if len(lines) >= CSV_BATCH:
                    await _send(request, response, lines)
        await _send(request, response, lines)
    return response


async def _send(request: web.Request, response: web.StreamResponse, lines: list[str]) -> None:
    # Prepared only when there is something to send: until then an error can still be a 503 or a 504.
    if not response.prepared:
        await response.prepare(request)
    await response.write("".join(lines).encode())
    lines.clear()


async def websocket(request: web.Request) -> web.WebSocketResponse:
    """The balance of each account whose id is sent."""
    socket = web.WebSocketResponse(heartbeat=30, timeout=1.0)
    await socket.prepare(request)
    request.app[SOCKETS].add(socket)
    try:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_json(await _balance(request, message.data.strip()))
    except ConnectionError:
        pass  # the client has left
    finally:
        request.app[SOCKETS].discard(socket)
    return socket


async def _balance(request: web.Request, account: str) -> dict[str, Any]:
    db = request["db"]
    if not re.fullmatch("[0-9]{1,9}", account):
        return {"error": "send the id of an account"}
    try:
        async with db.acquire():  # for this message: a socket that says nothing holds nothing
            balance = await db.fetchval("SELECT balance FROM poolscope_demo.accounts WHERE id = %s", (int(account),))
    except PoolScopeError as error:
        return {"error": error.code}
    return {"id": int(account), "balance": balance}


@no_connection
async def healthz(request: web.Request) -> web.Response:
    """One round trip to the database."""
    scope = request.app[SCOPE]
    try:
        seconds = await scope.check()
    except DatabaseUnavailable as error:
        return _json({"status": error.code, "pool": _stats(scope)}, status=503)
    return _json({"status": "ok", "round_trip_ms": round(seconds * 1000, 3), "pool": _stats(scope)})


@no_connection
async def pool(request: web.Request) -> web.Response:
    """The pool at this moment, and who holds what."""
    scope = request.app[SCOPE]
    leases = [{**asdict(lease), "held": round(lease.held, 3)} for lease in scope.leases()]
    return _json({"state": scope.state, "stats": _stats(scope), "leases": leases})


async def close_sockets(app: web.Application) -> None:
    """Say goodbye to open websockets: their handlers would wait for messages for ever."""
    goodbyes = [socket.close(code=WSCloseCode.GOING_AWAY) for socket in app[SOCKETS]]
    await asyncio.gather(*goodbyes, return_exceptions=True)


async def _order(request: web.Request) -> tuple[int, int, int]:
    try:
        order = await (request.json() if request.content_type == "application/json" else request.post())
        payer, payee, amount = (int(str(order[name])) for name in ("from", "to", "amount"))
    except (ValueError, TypeError, LookupError, ConnectionError):  # the last: the client has left
        payer = payee = amount = 0
    if payer == payee or not all(0 < number <= LARGEST for number in (payer, payee, amount)):
        raise web.HTTPBadRequest(**_because("from, to and amount are whole numbers above 0; from is not to"))
    return payer, payee, amount


def _because(detail: str) -> dict[str, Any]:
    return {"text": json.dumps({"error": detail}) + "\n", "content_type": "application/json"}


def _json(data: Any, status: int = 200) -> web.Response:
    return web.json_response(text=json.dumps(data, indent=2) + "\n", status=status)


def _stats(scope: PoolScope) -> dict[str, Any]:
    stats = scope.stats()
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(stats)):
        value = getattr(stats, name)
        if isinstance(value, HistogramSnapshot):
            quantiles = {f"p{round(q * 100)}_ms": round(value.quantile(q) * 1000, 2) for q in (0.5, 0.99)}
            value = {"count": value.count, **quantiles}
        found[name] = value
    return found


@contextlib.asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve at a port: the one wanted, or a free one if that is taken."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            await web.TCPSite(runner, host, 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _main() -> int:
    given = json.loads(sys.stdin.readline())
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(ending, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)
    app = make_app(given["dsn"], **given["settings"])
    try:
        async with serving(app, given["host"], given["port"]) as port:
            print(json.dumps({"port": port}), flush=True)
            await stop.wait()
            loop.remove_reader(sys.stdin.fileno())
    except (OSError, PoolScopeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.exit(asyncio.run(_main()))
