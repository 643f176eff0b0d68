"""Several processes that answer for each other: each leaves its numbers in a directory, and reads those of the others.

A process has two files there. It holds a lock on the first for as long as it lives, however it ends, so that nobody
needs to guess from process ids or ages whether its numbers still count. The second has the numbers, and is replaced
whole. Who finds a lock that nobody holds removes both.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp_poolscope import ConfigError
from aiohttp_poolscope.stats import HistogramSnapshot, PoolStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from aiohttp import web

    from aiohttp_poolscope import PoolScope

__all__ = ("Reading", "Workers", "read")

logger = logging.getLogger("aiohttp_poolscope")

T = TypeVar("T")

TRIES = 5
"""How often a reading is begun again that another thread's reading has met in the middle of a change."""

NOTHING = {field.name: getattr(PoolStats(), field.name) for field in fields(PoolStats)}
"""What each number is where there is none to tell."""

_held: set[int] = set()
"""The locks of this process. A child made by fork has them too, and would hold them after its parent's death."""


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One pool in one process, ``age`` seconds ago. ``pid`` is None where there are no others to tell it from."""

    pool: str
    state: str
    stats: PoolStats
    pid: str | None = None
    age: float = 0.0


def read(scope: PoolScope, pid: str | None = None) -> Reading:
    """The pool of a scope, now."""
    for _ in range(TRIES):
        try:
            return Reading(pool=scope.config.key, state=scope.state, stats=scope.stats(), pid=pid)
        except RuntimeError:  # a set that changed while it was looked through: only seen from another thread
            continue
    return Reading(pool=scope.config.key, state=scope.state, stats=scope.stats(), pid=pid)


class Workers:
    """This process among those that share ``directory``. ``now`` reads its own pools; it is called in the event loop.

    The event loop waits for no file: all are read and written by one thread, which also keeps the writes in order.
    """

    def __init__(self, directory: Path, interval: float, now: Callable[[str], list[Reading]]) -> None:
        self._directory = directory
        self._interval = interval
        self._now = now
        self._thread: ThreadPoolExecutor | None = None
        self._place: _Place

    async def running(self, _app: web.Application) -> AsyncIterator[None]:
        """For ``app.cleanup_ctx``. Only here: before, there may be a fork to come."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="poolscope-metrics")
        self._place = _Place(self._directory)
        publishing: asyncio.Task[None] | None = None
        try:
            await self._start()
            publishing = asyncio.get_running_loop().create_task(self._publish(), name="poolscope metrics")
            yield
        finally:
            if publishing is not None:
                publishing.cancel()
                await asyncio.wait((publishing,))
            thread, self._thread = self._thread, None
            await asyncio.get_running_loop().run_in_executor(thread, self._place.leave)
            thread.shutdown()

    async def readings(self) -> list[Reading]:
        """This process now, and each of the others as it last told.

        What is told here has been written down before: whoever is asked next never tells an earlier number.
        """
        own = self._now(str(os.getpid()))
        if self._thread is None:
            return own
        others = await self.do(self._place.exchange, own)
        found = {(each.pid, each.pool): each for each in others}
        # Two applications in one process have the same scopes, perhaps; and a series must be there once.
        return list((found | {(each.pid, each.pool): each for each in own}).values())

    async def _start(self) -> None:
        try:
            await self.do(self._place.claim)
        except OSError as error:
            raise ConfigError(
                f"setup_metrics(directory={str(self._directory)!r}): {error.strerror}; it must be a directory that "
                "this process may write to"
            ) from error
        await self.do(self._place.tell, self._now(str(os.getpid())))

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self.do(self._place.tell, self._now(str(os.getpid())))

    async def do(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in the thread: nothing that takes long for several processes is left to the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


class _Place:
    """The files of this process, and of the others. It blocks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = _Files(directory / f"poolscope-{os.getpid()}-{secrets.token_hex(4)}")
        self._lock: int | None = None
        self._failing = False

    def claim(self) -> None:
        """Show that this process lives."""
        self._unlock()
        # Locked first and named afterwards: who finds it without a lock removes it.
        self._lock = os.open(self._files.new, os.O_CREAT | os.O_RDWR, 0o600)
        _held.add(self._lock)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._files.new.replace(self._files.lock)

    def tell(self, readings: list[Reading]) -> None:
        """Leave the numbers for the others. That it cannot is said once: a full disk must not stop the service."""
        try:
            if not self._files.lock.exists():  # somebody has emptied the directory
                self.claim()
            self._files.new.write_text(_written(readings))
            self._files.new.replace(self._files.data)
        except OSError as error:
            if not self._failing:
                logger.warning("the metrics of this process cannot be told to the others: %s", error)
            self._failing = True
        else:
            self._failing = False

    def exchange(self, readings: list[Reading]) -> list[Reading]:
        """Leave the numbers, and read those of all others that live."""
        self.tell(readings)
        try:
            found = [path for path in self._directory.iterdir() if path.match("poolscope-*.lock")]
        except FileNotFoundError:  # which has been said
            return []
        except OSError as error:
            logger.warning("the metrics of other processes cannot be read: %s", error)
            return []
        return [reading for lock in found if lock != self._files.lock for reading in _told(lock)]

    def leave(self) -> None:
        """The end of this process: its series end with it."""
        self._files.remove()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            _held.discard(self._lock)
            os.close(self._lock)
            self._lock = None


class _Files:
    """What belongs to one process."""

    def __init__(self, stem: Path) -> None:
        self.lock = stem.with_suffix(".lock")
        self.data = stem.with_suffix(".json")
        self.new = stem.with_suffix(".new")

    def read(self) -> list[Reading]:
        """Its numbers; none if it has not told any, or another version has written what cannot be understood."""
        try:
            return list(_understood(self.data.read_text()))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("the metrics of another process cannot be read: %s: %s", self.data.name, error)
            return []

    def remove(self) -> None:
        """The lock is the last to go: by it the others are found."""
        for path in (self.new, self.data, self.lock):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("the file of a process that has ended cannot be removed: %s", error)


def _told(lock: Path) -> list[Reading]:
    """What the owner of this lock has told. If it is dead, its files are removed."""
    files = _Files(lock.with_suffix(""))
    try:
        held = _is_held(lock)
    except FileNotFoundError:  # somebody else has removed it
        return []
    except OSError as error:  # no descriptor left, say: its owner may well live
        logger.warning("the metrics of another process cannot be read: %s", error)
        return []
    if not held:
        files.remove()
    return files.read() if held else []


def _is_held(lock: Path) -> bool:
    """Whether the owner of this lock lives. Not its process id: another process may have that by now."""
    descriptor = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _written(readings: list[Reading]) -> str:
    return json.dumps({"at": time.time(), "readings": [asdict(each) for each in readings]})


def _understood(text: str) -> Iterator[Reading]:
    """Readings, perhaps of another version: what it does not have is zero, what it has more is left out."""
    told = json.loads(text)
    age = max(0.0, time.time() - told["at"])
    for each in told["readings"]:
        numbers = dict(each["stats"])
        stats = PoolStats(**{name: _like(NOTHING[name], numbers[name]) for name in numbers.keys() & NOTHING.keys()})
        yield Reading(pool=each["pool"], state=each["state"], stats=stats, pid=each["pid"], age=age)


def _like(example: Any, value: Any) -> Any:
    if isinstance(example, HistogramSnapshot):
        counts, bounds = tuple(map(int, value["counts"])), tuple(map(float, value["bounds"]))
        if len(counts) != len(bounds) + 1:
            raise ValueError(f"{len(counts)} counts between {len(bounds)} bounds")
        return HistogramSnapshot(counts, float(value["sum"]), bounds)
    if isinstance(example, dict):
        return {str(name): int(number) for name, number in value.items()}
    return type(example)(value)
