"""What the doctor makes of an application: its scopes, its middlewares, and the time it has for its end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import re
import sys
from collections import Counter
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aiohttp_poolscope.web import PoolScope

from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("AppError", "Found", "judge_app", "load")

SHUTDOWN_TIMEOUT = 60.0
"""aiohttp's default, in seconds."""


PASSWORD = re.compile(r"(://[^:/@\s]*:|\bpassword\s*=\s*)[^@\s]+(@|\b)", re.IGNORECASE)
"""In what somebody else's code says when it fails: a DSN may be in there."""


class AppError(Exception):
    """The application could not be had; the message says why, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Found:
    """An application, and the ``shutdown_timeout`` of the runner it came in; None if it came without one."""

    app: web.Application
    shutdown_timeout: float | None

    @property
    def scopes(self) -> list[PoolScope]:
        """Every scope in it and in its sub-applications, each once."""
        found: dict[int, PoolScope] = {}
        for app, _ in _apps(self.app):
            for scope in (*_by_middleware(app), *_by_context(app)):
                found[id(scope)] = scope
        return list(found.values())


def load(name: str) -> Found:
    """Import ``module:name``: an Application, an AppRunner, or a function (also async) that returns one.

    A function may have one argument, which aiohttp's own command line gives it: a list of arguments.
    """
    module_name, colon, attribute = name.partition(":")
    shown = PASSWORD.sub(r"\1***\2", name)  # a DSN, by mistake
    if not (module_name and colon and attribute):
        raise AppError(f"--app {shown!r}: write module:name, as in service:app")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no part of our answer
            made: Any = _made(module_name, attribute)
    except (Exception, SystemExit) as error:
        said = PASSWORD.sub(r"\1***\2", f"{type(error).__name__}: {error}".strip())
        raise AppError(f"--app {shown!r} cannot be loaded: {said}") from error
    if isinstance(made, web.AppRunner):
        return Found(made.app, made._shutdown_timeout)  # noqa: SLF001 - there is no other way to read it
    if not isinstance(made, web.Application):
        raise AppError(f"--app {shown!r} is {type(made).__name__}: it must be, or return, an Application or AppRunner")
    return Found(made, None)


def _made(module_name: str, attribute: str) -> Any:
    made: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        made = getattr(made, part)
    if not isinstance(made, (web.Application, web.AppRunner)) and callable(made):
        made = made([]) if _wants_argument(made) else made()
    if inspect.isawaitable(made):
        made = asyncio.run(_awaited(made))
    return made


def judge_app(found: Found, *, graceful_timeout: float, shutdown_timeout: float | None) -> list[Finding]:
    """Every finding about the application itself."""
    scopes = found.scopes
    if not scopes:
        return [
            Finding(
                "error", "scopes", "none in this application", "no request gets a connection",
                "scope = poolscope.setup(app, DSN)",
            )
        ]  # fmt: skip
    findings = list(_keys(scopes))
    for app, path in _apps(found.app):
        findings += _placed(app, path, scopes)
    findings += _contexts(found, scopes)
    findings += _ending(found, scopes, graceful_timeout, shutdown_timeout)
    return findings


def _keys(scopes: list[PoolScope]) -> Iterator[Finding]:
    keys = Counter(scope.config.key for scope in scopes)
    yield Finding("ok", "scopes", ", ".join(map(repr, keys)))
    for key, number in keys.items():
        if number > 1:
            yield Finding(
                "error", "scopes", f"{number} have the key {key!r}", "where they meet, the inner one hides the other",
                f"key='reports' for one of them, and request['reports'] instead of request[{key!r}]",
            )  # fmt: skip


def _placed(app: web.Application, path: str, scopes: list[PoolScope]) -> Iterator[Finding]:
    """How the scopes' middlewares stand among the others."""
    where = f" of {path}" if path else ""
    ours = _by_middleware(app)
    for scope in scopes:
        key, times = scope.config.key, sum(each is scope for each in ours)
        if times > 1:
            yield Finding(
                "warning", "middleware", f"{key!r} {times} times in the middlewares{where}",
                "harmless, but each request goes through it so many times",
                "one scope.setup(app), or one entry in middlewares=[...], not both",
            )  # fmt: skip
        if not times:
            continue
        place = next(i for i, each in enumerate(app.middlewares) if getattr(each, "__self__", None) is scope)
        outside = [each for each in app.middlewares[:place] if not _is_ours(each)]
        inside = [each for each in app.middlewares[place + 1 :] if not _is_ours(each)]
        early = [each for each in outside if _names(each, key)]
        for each in early:
            yield Finding(
                "error", "middleware order", f"{_name(each)} stands before {key!r}, and its code has {key!r} in it",
                f"the connection is not there yet: request[{key!r}] is a KeyError",
                f"scope.middleware before {_name(each)} in middlewares=[...]",
            )  # fmt: skip
        if not early:
            order = " > ".join([*map(_name, outside), f"[{key}]", *map(_name, inside), "handler"])
            yield Finding("ok", "middleware order", f"{order}{where}")


def _contexts(found: Found, scopes: list[PoolScope]) -> Iterator[Finding]:
    apps = [app for app, _ in _apps(found.app)]
    for scope in scopes:
        key = scope.config.key
        attached = any(scope in _by_middleware(app) for app in apps)
        times = [sum(each is scope for each in _by_context(app)) for app in apps]
        if not any(times):
            yield Finding(
                "error", "cleanup context", f"{key!r} has none", "its pool is never opened: requests get 500 or 503",
                "app.cleanup_ctx.append(scope.cleanup_ctx), or scope.setup(app) for both",
            )  # fmt: skip
        elif max(times) > 1:
            yield Finding(
                "warning", "cleanup context", f"{key!r} {max(times)} times", "harmless, but surely not meant",
                "one scope.setup(app), or one app.cleanup_ctx.append(scope.cleanup_ctx)",
            )  # fmt: skip
        else:
            yield Finding("ok", "cleanup context", f"{key!r} has one")
        if not attached:
            yield Finding(
                "info", "middleware", f"{key!r} has none", f"requests have no request[{key!r}]; scope.acquire() works",
                "scope.setup(app), if they should",
            )  # fmt: skip


def _ending(
    found: Found, scopes: list[PoolScope], graceful_timeout: float, shutdown_timeout: float | None
) -> Iterator[Finding]:
    shutdown = shutdown_timeout
    if shutdown is None:
        shutdown = found.shutdown_timeout if found.shutdown_timeout is not None else SHUTDOWN_TIMEOUT
    grace = max(scope.config.drain_grace for scope in scopes)
    takes = 2 * shutdown + grace + 1
    sum_of_it = f"2 * {shutdown:g} + {grace:g} + 1 = {takes:g} s"
    if takes < graceful_timeout:
        yield Finding("ok", "shutdown", f"{sum_of_it}, less than graceful_timeout {graceful_timeout:g} s")
    else:
        fits = max(0.0, (graceful_timeout - grace - 1) / 2 - 0.5)
        # An application alone does not tell how it is run: aiohttp's default is only a guess.
        known = shutdown_timeout is not None or found.shutdown_timeout is not None
        yield Finding(
            "warning" if known else "info", "shutdown",
            f"{sum_of_it}, not less than graceful_timeout {graceful_timeout:g} s",
            "2 * shutdown_timeout + drain_grace + 1 must be: else SIGKILL comes first, and nothing is closed",
            f"shutdown_timeout={fits:g} for run_app or gunicorn's AppRunner (and --shutdown-timeout {fits:g} here), "
            f"or --graceful-timeout {takes + 1:g}",
        )  # fmt: skip
    latest = max(scope.config.drain_timeout for scope in scopes) + 3
    if latest >= graceful_timeout:
        yield Finding(
            "warning", "shutdown", f"drain_timeout + 3 = {latest:g} s, not less than graceful_timeout",
            "connections that nobody gives back are not closed in time", f"--graceful-timeout {latest + 1:g}",
        )  # fmt: skip


def _apps(app: web.Application, path: str = "") -> Iterator[tuple[web.Application, str]]:
    yield app, path
    for resource in app.router.resources():
        if isinstance(resource, web.PrefixedSubAppResource):
            info = resource.get_info()
            yield from _apps(info["app"], info.get("prefix", path))  # it has its parent's in it


def _by_middleware(app: web.Application) -> list[PoolScope]:
    return [each.__self__ for each in app.middlewares if _is_ours(each)]  # type: ignore[attr-defined]


def _by_context(app: web.Application) -> list[PoolScope]:
    owners = [getattr(each, "__self__", None) for each in app.cleanup_ctx]
    return [owner for owner in owners if isinstance(owner, PoolScope)]


def _is_ours(middleware: object) -> bool:
    return isinstance(getattr(middleware, "__self__", None), PoolScope)


def _names(middleware: Any, key: str) -> bool:
    """Whether the key is written in its code, as in ``request["db"]``."""
    function = middleware if inspect.isroutine(middleware) else type(middleware).__call__
    waiting = [getattr(inspect.unwrap(function), "__code__", None)]
    while waiting:
        code = waiting.pop()
        if code is not None:
            if key in code.co_consts:
                return True
            waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
    return False


def _name(middleware: Any) -> str:
    name: str = getattr(middleware, "__qualname__", type(middleware).__qualname__)
    return name.rpartition("<locals>.")[2]


def _wants_argument(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(each.default is each.empty and each.kind is not each.VAR_POSITIONAL and each.kind is not each.VAR_KEYWORD
               for each in parameters)  # fmt: skip


async def _awaited(made: Any) -> Any:
    return await made
