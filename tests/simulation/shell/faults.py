"""Faults: what happens to a world, by the name it has in a plan; and hooks that have troubles of their own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .plan import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable

    from .world import World

__all__ = ("Faults",)


class Faults:
    """Each method is a fault; ``lasts`` in seconds."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts = world.hosts
        self._later = world.loop.call_later
        self._hook_trouble: str | None = None

    def heal(self) -> None:
        """All is well again, and as it was at first."""
        self._hook_trouble = None
        for host in self._hosts:
            host.heal()
            host.standby = host.name == OTHER

    def leave(self, tag: str) -> None:
        """The client of a visit leaves."""
        visitor = self._world.visitors.get(tag)
        if visitor is not None and visitor.task is not None and not visitor.task.done():
            visitor.request.lose_client()
            if self._world.plan.handler_cancellation and visitor.visit.method is not None:
                visitor.task.cancel()

    def cancel(self, tag: str) -> None:
        """The task of a visit is cancelled."""
        visitor = self._world.visitors.get(tag)
        if visitor is not None and visitor.task is not None:
            visitor.task.cancel()

    def drain(self) -> None:
        """The application shuts down."""
        self._world.shut_down_early()

    def expire(self) -> None:
        """scope.expire()."""
        if self._world.scope.state == "serving":
            self._world.scope.expire()

    def refuse(self, lasts: float) -> None:
        """The servers are gone."""
        self._set("refusing", True, lasts, False)
        self.die()

    def hang(self, lasts: float) -> None:
        """Connects get no answer."""
        self._set("hanging", True, lasts, False)

    def silent(self, lasts: float, forgotten: bool) -> None:
        """Nothing gets an answer."""
        for host in self._hosts:
            host.silence()
            self._later(lasts, lambda host=host: host.speak(forgotten=forgotten))

    def slow(self, lasts: float, factor: float) -> None:
        """All takes so many times as long."""
        self._set("slowness", factor, lasts, 1.0)

    def full(self, lasts: float, limit: int) -> None:
        """There is room for so many connections only."""
        self._set("limit", limit, lasts, 100)

    def die(self, number: int | None = None) -> None:
        """Every session dies, or one."""
        for host in self._hosts:
            for session in list(host.sessions)[number : None if number is None else number + 1]:
                session.die()

    def doom(self, how: str, word: str) -> None:
        """A session dies over the next statement with this word in it, "before" or "after" it is executed."""
        for host in self._hosts:
            host.deaths.append((how, word))

    def promote(self) -> None:
        """The two change roles, and their connections live on."""
        for host in self._hosts:
            host.standby = not host.standby

    def failover(self, lasts: float) -> None:
        """The primary is gone, the standby is promoted; later the old one comes back as a standby."""
        gone = next((host for host in self._hosts if not host.standby), self._hosts[0])
        gone.refusing = gone.standby = True
        gone.die()
        for host in self._hosts:
            if host is not gone:
                host.standby = False
        self._later(lasts, lambda: setattr(gone, "refusing", False))

    def hook(self, lasts: float, how: str) -> None:
        """The hooks have a trouble."""
        self._hook_trouble = how
        self._later(lasts, lambda: setattr(self, "_hook_trouble", None))

    def hooks(self, names: tuple[str, ...]) -> dict[str, Callable[[Any], Any]]:
        """The hooks of a scope. They are one function each: the pool names them in its errors."""

        async def on_connect(db: Any) -> None:
            await self._work(db)

        async def on_acquire(db: Any) -> None:
            await self._work(db)

        async def on_release(db: Any) -> None:
            await self._work(db)

        return {hook.__name__: hook for hook in (on_connect, on_acquire, on_release) if hook.__name__ in names}

    async def _work(self, db: Any) -> None:
        trouble = self._hook_trouble
        match trouble:
            case "fail":
                raise RuntimeError("a hook fails")
            case "cancel":
                raise asyncio.CancelledError
            case "release":
                db.release()
                return
            case "hang":
                await asyncio.sleep(10.0)
        await db.execute("SET search_path = public")
        if trouble == "open":
            await db.execute("BEGIN")
        elif trouble == "slow":
            await asyncio.sleep(0.3)

    def _set(self, name: str, value: Any, lasts: float, usual: Any) -> None:
        for host in self._hosts:
            setattr(host, name, value)
            self._later(lasts, lambda host=host: setattr(host, name, usual))
