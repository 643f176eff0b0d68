"""Who may see the page, over real sockets: nobody whom it was not set up for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession, UnixConnector, web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.dashboard import setup_dashboard

from .dashboard_app import PATHS, SECRET, App

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Served


async def raw(served: Served, text: str) -> int:
    """The status that a request gets which no ordinary client sends."""
    reader, writer = await served.raw(text.replace("\n", "\r\n").encode())
    try:
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("allow", [None, "local", "", True, False, 0, ["127.0.0.1"]])
def test_who_may_see_it_has_to_be_said(dsn: str, allow: Any) -> None:
    """Without a usable ``allow`` nothing is set up, and the error says what to write."""
    app = web.Application()
    with pytest.raises(poolscope.ConfigError, match=r'allow="loopback".*allow=lambda request'):
        setup_dashboard(app, poolscope.PoolScope(dsn), allow=allow)
    with pytest.raises(poolscope.ConfigError, match=r"allow=None"):
        setup_dashboard(app, poolscope.PoolScope(dsn))
    assert [*app.router.resources(), *app.cleanup_ctx, *app.on_shutdown] == []


async def test_other_mistakes_are_refused_at_once(dsn: str) -> None:
    """No scope, two of one key, a prefix that is no path or is taken: each is a ConfigError that names it."""
    app = web.Application()
    app.router.add_get("/taken/state.json", App.hold)
    scope, same = poolscope.PoolScope(dsn), poolscope.PoolScope(dsn)
    with pytest.raises(poolscope.ConfigError, match="at least one scope"):
        setup_dashboard(app, allow="loopback")
    with pytest.raises(poolscope.ConfigError, match="key of its own"):
        setup_dashboard(app, scope, same, allow="loopback")
    for prefix in ("", "pool", "/a b", "/{x}", "//evil", "/a?b", None):
        with pytest.raises(poolscope.ConfigError, match="prefix="):
            setup_dashboard(app, scope, allow="loopback", prefix=prefix)  # type: ignore[arg-type]
    with pytest.raises(poolscope.ConfigError, match=r"/taken/state\.json is taken"):
        setup_dashboard(app, scope, allow="loopback", prefix="/taken")


async def test_a_function_decides(dsn: str, serve: Serve) -> None:
    """``allow`` is asked for each path and each time, plain or async; for who is refused there is nothing."""

    async def later(request: web.Request) -> bool:
        await asyncio.sleep(0)
        return request.headers.get("X-Key") == SECRET

    for allow in (later, lambda request: request.headers.get("X-Key") == SECRET):
        async with serve(App(dsn, allow=allow).web) as served:
            for path in PATHS:
                for method in ("GET", "HEAD", "POST", "PURGE"):
                    async with (
                        served.client.request(method, served.url / f"_pool{path}") as refused,
                        served.client.request(method, served.url / "nothing") as missing,
                    ):
                        assert refused.status == missing.status == 404, path
                        assert await refused.read() == await missing.read()
                        assert refused.headers.keys() == missing.headers.keys()
                headers = {"X-Key": SECRET}
                async with served.client.get(served.url / f"_pool{path}", headers=headers) as admitted:
                    assert admitted.status == 200, path


async def test_a_function_may_ask_for_a_password(dsn: str, serve: Serve) -> None:
    """An HTTP exception that ``allow`` raises is the answer, and any other one shows nothing."""

    def ask(request: web.Request) -> bool:
        if "Authorization" not in request.headers:
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Basic"})
        raise ValueError(SECRET)

    async with serve(App(dsn, allow=ask).web) as served:
        async with served.client.get(served.url / "_pool/") as asked:
            assert (asked.status, asked.headers["WWW-Authenticate"]) == (401, "Basic")
        status, text = await served.get("/_pool/", headers={"Authorization": "Basic x"})
        assert (status, SECRET in text) == (500, False)


@pytest.mark.parametrize(
    ("host", "admitted"),
    [
        ("localhost", True), ("LOCALHOST:8080", True), ("127.0.0.1", True), ("127.9.9.9:1", True), ("[::1]:80", True),
        ("example.org", False), ("localhost.example.org", False), ("127.0.0.1.nip.io", False), ("10.0.0.7", False),
        ("evil.org:127.0.0.1", False), ("127.0.0.1@evil.org", False), ("2130706433", False), ("[::2]", False),
        ("localhost:80:80", False), ("localhost, evil.org", False), ("", False),
    ],
)  # fmt: skip
async def test_loopback_looks_at_the_host(dsn: str, serve: Serve, host: str, admitted: bool) -> None:
    """A name that leads here from elsewhere (DNS rebinding) is no name of this machine."""
    async with serve(App(dsn).web) as served:
        request = f"GET /_pool/state.json HTTP/1.1\nHost: {host}\nConnection: close\n\n"
        assert (await raw(served, request) == 200) is admitted


@pytest.mark.parametrize(
    "line",
    [
        "X-Forwarded-For: 127.0.0.1", "x-forwarded-proto: https", "Forwarded: for=127.0.0.1", "X-Real-IP: ::1",
        "Via: 1.1 proxy", "X-Client-IP: 127.0.0.1", "CF-Connecting-IP: 127.0.0.1", "True-Client-IP: 127.0.0.1",
        "X-Original-Forwarded-For: 127.0.0.1", "X-Cluster-Client-Ip: 127.0.0.1", "X-Envoy-External-Address: ::1",
        "Host: localhost", "X-Forwarded-For:",
    ],
)  # fmt: skip
async def test_loopback_admits_nobody_through_a_proxy(dsn: str, serve: Serve, line: str) -> None:
    """A header of a proxy, even an empty one, or a second Host: the peer is not who asks."""
    async with serve(App(dsn).web) as served:
        request = "GET /_pool/state.json HTTP/1.1\nHost: localhost\n{}\nConnection: close\n\n"
        assert await raw(served, request.format(line)) in (400, 404)
        assert await raw(served, request.format("X-Other: 1")) == 200


async def test_loopback_refuses_what_nginx_speaks_by_default(dsn: str, serve: Serve) -> None:
    """HTTP/1.0, which nobody but a proxy speaks, is refused: it may come without any trace of who asks."""
    async with serve(App(dsn).web) as served:
        assert await raw(served, "GET /_pool/state.json HTTP/1.0\nHost: 127.0.0.1\n\n") == 404


async def test_loopback_is_about_the_peer(dsn: str, tmp_path: Path) -> None:
    """A peer at another address or behind a Unix socket is refused, whatever a middleware says of ``remote``."""

    @web.middleware
    async def pretend(request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request.clone(remote="127.0.0.1"))
        return answer

    app = App(dsn)
    app.web.middlewares.append(pretend)
    runner = web.AppRunner(app.web)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(tmp_path / "socket")).start()
        async with (
            ClientSession(connector=UnixConnector(str(tmp_path / "socket"))) as client,
            client.get("http://localhost/_pool/state.json") as refused,
        ):
            assert refused.status == 404
        address = own_address()
        if address is not None:  # a machine without a network has none
            await web.TCPSite(runner, address, 0).start()
            async with (
                ClientSession() as client,
                client.get(
                    f"http://{address}:{runner.addresses[-1][1]}/_pool/", headers={"Host": "localhost"}
                ) as refused,
            ):
                assert refused.status == 404
    finally:
        await runner.cleanup()


def own_address() -> str | None:
    """An address of this machine that is not loopback. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
