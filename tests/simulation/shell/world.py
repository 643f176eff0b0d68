"""One world: a plan lived through, from the first connection to the last, and what was found."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import hashlib
import logging
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aiohttp_poolscope import PoolScope, errors
from aiohttp_poolscope.pool import observing, supplying
from tests.kit.audit import left_behind

from . import checks
from .checks import Finding
from .driver import ModelDriver, Raw
from .faults import Faults
from .loop import Clock, Loop, Stuck
from .network import Host
from .plan import Fault, Plan, Visit
from .visitors import Visitor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from aiohttp_poolscope.config import PoolConfig
    from aiohttp_poolscope.pool import Lifecycle

    from .server import Write

__all__ = ("Result", "World")

asked_by: contextvars.ContextVar[str | None] = contextvars.ContextVar("asked_by", default=None)
"""The visitor that the current task works for; None: the pool itself."""

NUMBERED = re.compile(r"poolscope_stream_\d+")
"""They are counted in the process, not in the world."""

ENDING = 2.5
"""Seconds that a drain may take beyond ``drain_timeout``: what is left is cancelled and closed, each with a limit."""


@dataclass
class Result:
    """What a world came to."""

    findings: list[str] = field(default_factory=list)
    known: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    visits: int = 0
    steps: int = 0
    busy: int = 0
    seconds: float = 0.0
    digest: str = ""


class World:
    """``inject`` has for a step's number the things that happen just before it, in their order."""

    def __init__(
        self, plan: Plan, inject: dict[int, list[Fault]] | None = None, trace: Callable[[str], None] | None = None
    ) -> None:
        self.plan = plan
        self.inject = inject or {}
        self.trace = trace
        self.findings: list[str] = []
        self.visitors: dict[str, Visitor] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.runs: list[Lifecycle] = []
        self.drivers: list[ModelDriver] = []
        self.rows: list[Write] = []
        self.app: web.Application | None = None
        self.draining: asyncio.Task[None] | None = None
        self.busy = 0
        self._hash = hashlib.sha256()
        self._rng = random.Random(f"{plan.seed} world")
        self.clock = Clock()
        self.loop = Loop(self.clock, self._rng)
        self.loop.before, self.loop.after = self._before, self._after
        names = [name for name, _ in plan.hosts]
        self.hosts = [Host(name, self.loop, self._rng, self.rows, standby=standby) for name, standby in plan.hosts]
        dsn = f"postgresql://simulated@{','.join(names)}/simulated?sslmode=disable"
        self.faults = Faults(self)
        self.scope = PoolScope(dsn, **plan.settings, **self.faults.hooks(plan.hooks))
        self.scope._clock = self.clock
        for host in self.hosts:
            host.check_interval = self.scope.config.abandon_interval
            host.statement_timeout = self.scope.config.statement_timeout
            host.idle_in_transaction_timeout = self.scope.config.idle_in_transaction_timeout
            host.findings = self.findings
        self.scope.on_event(lambda event: self.say(event.kind))

    def run(self) -> Result:
        """Live through it."""
        random.seed(self.plan.seed)
        main = self._live()
        with self._alone():
            try:
                self.loop.run_until_complete(main)
            except (Finding, Stuck) as found:
                self.findings.append(f"{type(found).__name__}: {found}")
            except Exception as error:  # noqa: BLE001 - whatever leaves it is a finding
                self.findings.append(f"{type(error).__name__}: {error}")
            finally:
                self._bury()
        result = Result(list(dict.fromkeys(self.findings)), steps=self.loop.steps, visits=len(self.visitors))
        units = [unit for visitor in self.visitors.values() for unit in visitor.units]
        lies, result.known = checks.truth(units, self.rows)
        if not result.findings:  # else it was broken off
            result.findings += lies
        result.busy = self.busy or self.loop.steps
        result.answers = Counter(str(visitor.answer).partition(" ")[0] for visitor in self.visitors.values())
        result.seconds = self.clock.now - 1000.0
        for visitor in self.visitors.values():
            self._hash.update(f"{visitor.tag} {visitor.answer}\n".encode())
        self._hash.update(repr((self.rows, result.findings)).encode())
        result.digest = self._hash.hexdigest()[:16]
        return result

    def say(self, words: str) -> None:
        """A line of the trace; all of them are in the digest."""
        line = f"{self.clock.now - 1000.0:9.3f}  {words}"
        self._hash.update(line.encode())
        if self.trace is not None:
            self.trace(f"{line}  (step {self.loop.steps})")

    # its surroundings

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nothing of the real world: no log, no collector of garbage, no warnings on somebody else's screen."""
        logger = logging.getLogger("aiohttp_poolscope")
        heard = _Heard(self.findings)
        logger.addHandler(heard)
        propagate, logger.propagate = logger.propagate, False
        hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        collecting = gc.isenabled()
        gc.disable()
        try:
            with supplying(self._driver), observing(self.runs.append):
                yield
            gc.collect()
        finally:
            sys.unraisablehook = hook
            logger.propagate = propagate
            logger.removeHandler(heard)
            if collecting:
                gc.enable()
            self.loop.close()

    def _unraisable(self, about: Any) -> None:
        self.findings.append(f"nobody to raise it to: {about.exc_value!r}")

    def _driver(self, config: PoolConfig) -> tuple[PoolConfig, ModelDriver]:
        driver = ModelDriver(config, self.hosts, asked_by, self._sent, self.clock)
        self.drivers.append(driver)
        return config, driver

    def _bury(self) -> None:
        """After a finding: end what is left, quietly."""
        self.loop.before = self.loop.after = None
        findings = list(self.findings)
        left = [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        if left and not findings:
            names = sorted(task.get_name() for task in left)
            findings.append(f"tasks are left: {', '.join(names)}")
        with contextlib.suppress(BaseException):
            self.loop.run_until_complete(self._give_up())
        for _ in range(50):
            left = [task for task in asyncio.all_tasks(self.loop) if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            with contextlib.suppress(BaseException):
                self.loop.run_until_complete(asyncio.sleep(1.0))
        for driver in self.drivers:
            for aio in driver.open_links:
                aio.raw.closed = 1
        if not findings and self.loop.complaints:
            findings += self.loop.complaints
        self.findings[:] = findings

    async def _give_up(self) -> None:
        for run in self.runs:
            run.begin_drain()

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = self.loop.create_task(work, name=name)
        self.tasks.append(task)
        return task

    def _task(self, work: Coroutine[Any, Any, Any], tag: str) -> asyncio.Task[Any]:
        """A visitor's: whatever it does, and whatever task it makes, is known to be its."""
        context = contextvars.copy_context()
        context.run(asked_by.set, tag)
        task = self.loop.create_task(work, name=tag, context=context)
        self.tasks.append(task)
        return task

    def shut_down_early(self) -> None:
        """While all is going on."""
        if self.draining is None and self.scope.state == "serving":
            self.draining = self._spawn(self._shut_down(), "shutdown")

    # around each step

    def _before(self, step: int) -> None:
        for fault in self.inject.get(step, ()):
            self._happens(fault)

    def _after(self, step: int) -> None:
        for run, driver in zip(self.runs, self.drivers, strict=True):
            if not run.ended:
                more = 2 * (len(self.hosts) > 1)
                checks.at_each_step(run, len(driver.open_links), more, self.clock.now)
        if self.findings:
            raise Finding(self.findings.pop())

    def _sent(self, raw: Raw, sql: str, tag: str | None) -> None:
        self.say(f"{tag or 'pool'}: {NUMBERED.sub('stream', sql)[:60]!r}")
        if wrong := checks.statement(self.runs, raw, sql, tag):
            self.findings.append(wrong)

    # its life

    async def _live(self) -> None:
        await self._one_run(self.plan.events, self.plan.length)
        if self.plan.second:
            await self._one_run(self.plan.second, 1.0)

    async def _one_run(self, events: tuple[Visit | Fault, ...], length: float) -> None:
        loop, begun = self.loop, self.clock.now
        self.draining = None
        self.app = app = web.Application()
        self.scope.setup(app)
        app.freeze()
        for event in events:
            loop.call_at(begun + event.at, self._come if isinstance(event, Visit) else self._happens, event)
        started = len(self.runs)
        try:
            await app.startup()
        except errors.DatabaseUnavailable:
            self.say("did not start")
            if not self.inject and not any(isinstance(event, Fault) for event in events):
                raise
            self._healed()
            await asyncio.sleep(length + self.plan.patience + self.plan.calm)
            self._check_end(started)
            return
        await asyncio.sleep(max(0.0, begun + length - self.clock.now))
        self._healed()
        self.busy = loop.steps
        if self.draining is None:
            await self._quiet()
            await self._probe()
            self.draining = self._spawn(self._shut_down(), "shutdown")
        await self.draining
        await asyncio.sleep(self.plan.calm)
        self._check_end(started)

    async def _quiet(self) -> None:
        """Wait until everybody has gone."""
        await asyncio.sleep(self.plan.calm)
        if left := [task.get_name() for task in self.tasks if not task.done()]:
            raise Finding(f"still there when all was well for {self.plan.calm:g} s: {', '.join(left)}")
        for _, waiting in ((run, run.pool.gate.waiting) for run in self.runs):
            if waiting:
                raise Finding(f"{waiting} wait, and nobody is there")

    async def _probe(self) -> None:
        """After all that, the pool serves."""

        async def ask() -> None:
            async with self.scope.acquire(timeout=10.0) as db:
                await db.fetchval("SELECT 1")

        try:
            async with asyncio.timeout(20.0):
                await self._task(ask(), "probe")
        except Exception as error:
            raise Finding(f"when all was well the pool did not serve: {error!r}") from error

    async def _shut_down(self) -> None:
        """As aiohttp's runner ends an application."""
        assert self.app is not None
        app, config = self.app, self.scope.config
        begun = self.clock.now
        self.say("shutdown")
        await app.shutdown()
        run = self.runs[-1] if self.runs else None
        handlers = [it.task for it in self.visitors.values() if it.task and it.visit.method and not it.task.done()]
        if handlers:
            _, late = await asyncio.wait(handlers, timeout=self.plan.patience)
            for task in handlers:
                if task in late:
                    task.cancel()
        await app.cleanup()
        took = self.clock.now - begun
        most = max(config.drain_timeout + ENDING, self.plan.patience) + 0.01
        if run is not None and took > most:
            raise Finding(f"the drain took {took:.2f} s, drain_timeout is {config.drain_timeout:g}")
        self.say("shut down")

    def _check_end(self, started: int) -> None:
        """At the end nothing is left."""
        if left := [task.get_name() for task in self.tasks if not task.done()]:
            raise Finding(f"still there {self.plan.calm:g} s after the end: {', '.join(left)}")
        for run, driver in zip(self.runs[started:], self.drivers[started:], strict=True):
            if driver.open_links:
                raise Finding(f"{len(driver.open_links)} of {driver.opened} connections were never closed")
            if wrong := left_behind(run):
                raise Finding(f"the books at the end: {wrong}")
            if list(run.pool.tasks):
                raise Finding(f"tasks of the pool are left: {[task.get_name() for task in run.pool.tasks]}")
        for host in self.hosts:
            if host.sessions:
                raise Finding(f"{len(host.sessions)} sessions are left on the server")

    # what happens

    def _come(self, visit: Visit) -> None:
        if self.draining is not None and visit.method is None:
            return
        visitor = Visitor(visit, self.scope, self._spawn, self.findings)
        self.visitors[visit.tag] = visitor
        self.say(f"{visit.tag} comes")
        visitor.task = task = self._task(visitor.run(), visit.tag)
        task.add_done_callback(lambda it: self.say(f"{visit.tag} ends: {visitor.answer}"))
        task.add_done_callback(lambda it: it.cancelled() or it.exception())
        if visit.leaves is not None:
            self.loop.call_later(visit.leaves, self._happens, Fault(0.0, "leave", (visit.tag,)))
        if visit.cancelled is not None:
            self.loop.call_later(visit.cancelled, self._happens, Fault(0.0, "cancel", (visit.tag,)))

    def _happens(self, fault: Fault) -> None:
        self.say(f"{fault.what} {fault.arguments}")
        getattr(self.faults, fault.what)(*fault.arguments)

    def _healed(self) -> None:
        self.say("all is well")
        self.faults.heal()


class _Heard(logging.Handler):
    """What the pool logs as its own mistake is a finding."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        if "a sweep failed" in words or "a callback failed" in words:
            error = record.exc_info[1] if record.exc_info else None
            self._findings.append(f"{words}: {error!r}")
