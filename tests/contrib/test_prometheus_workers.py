"""Several workers: each answers for all that live and for none that is dead, and no number ever goes back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.prometheus import workers as exchange
from tests.conftest import until
from tests.kit.processes import PATIENCE, REPOSITORY, wait_for

from .prometheus_gunicorn import Launch, counters, launching, of, pids
from .test_prometheus import App, Numbers, scrape, unused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.conftest import Database, Serve

pytestmark = pytest.mark.slow


@pytest.fixture
def gunicorn(dsn: str, database: Database, tmp_path: Path) -> Iterator[Launch]:
    """``gunicorn(workers=2)``: a service whose workers are ready."""
    with launching(dsn, tmp_path) as launch:
        yield launch


def test_every_answer_has_all_workers(gunicorn: Launch) -> None:
    """Whichever worker answers, both are in it, and what was told once is never taken back."""
    server = gunicorn(interval=30)  # what is told in between does not help
    ended = threading.Event()
    scrapes: list[Numbers] = []

    def load() -> None:
        while not ended.is_set():
            server.get()

    def enough() -> bool:
        scrapes.append(server.scrape())
        fresh = [of(each, "poolscope_reading_age_seconds") for each in scrapes]
        answered = {pid for each in fresh for pid, age in each.items() if age == 0.0}
        return len(scrapes) >= 15 and answered == server.workers

    with ThreadPoolExecutor(2) as threads:
        loads = [threads.submit(load) for _ in range(2)]
        try:
            wait_for(enough, "answers of both")
        finally:
            ended.set()
        for each in loads:
            each.result()
    assert [pids(each) for each in scrapes] == [server.workers] * len(scrapes)
    for earlier, later in itertools.pairwise(scrapes):
        back = {key: (number, later.get(key)) for key, number in counters(earlier).items() if later[key] < number}
        assert back == {}
    grown = of(scrapes[-1], "poolscope_borrows_total", outcome="lent")
    assert all(grown[pid] > 1 for pid in server.workers)
    # The application's own counter is added up by prometheus_client, as its directory has it.
    wait_for(lambda: server.scrape()["cups_total", frozenset()] >= sum(grown.values()) - 2, "the sum of both")


def test_the_end_says_nothing_bad(gunicorn: Launch) -> None:
    """At the end of all no file of ours is left, and nobody has complained."""
    server = gunicorn(kind="gunicorn-uvloop")
    assert pids(server.scrape()) == server.files() == server.workers
    server.process.terminate()
    assert server.process.wait(PATIENCE) == 0
    assert server.files() == set()
    for bad in ("Traceback", "ResourceWarning", "never retrieved", "was destroyed"):
        assert bad not in server.output, server.output


def test_a_killed_worker_is_gone_with_the_next_answer(gunicorn: Launch) -> None:
    """kill -9 leaves no time to tidy up: its series and its files end all the same, and its successor is there."""
    server = gunicorn(dev=False)  # a successor starts in half the time
    victim, survivor = sorted(server.workers)
    os.kill(victim, signal.SIGKILL)
    # Until gunicorn has seen it: a zombie may have threads that still hold its files.
    wait_for(lambda: not Path(f"/proc/{victim}").exists(), "the end of it")
    numbers = server.scrape()
    assert victim not in pids(numbers)
    assert survivor in pids(numbers)
    assert victim not in server.files()
    wait_for(lambda: len(server.workers) == 2, "the successor")
    assert pids(server.scrape()) == server.workers


def test_a_worker_that_is_replaced_leaves(gunicorn: Launch) -> None:
    """With max_requests workers come and go: each answer has some, none twice, and the dead leave nothing behind."""
    server = gunicorn("--max-requests", "5", "--graceful-timeout", "10", dev=False)
    first = server.workers
    while len(server.started) < 5:
        with contextlib.suppress(OSError, HTTPException):
            assert pids(server.scrape())
    wait_for(lambda: not first & server.workers, "the end of the first")

    def settled() -> bool:
        with contextlib.suppress(OSError, HTTPException):
            return not first & pids(server.scrape()) and not first & server.files()
        return False

    wait_for(settled, "answers without the first")


def test_the_remains_of_a_run_before(gunicorn: Launch, tmp_path: Path) -> None:
    """Files that nobody holds are removed, though a process of that id lives and they are quite new."""
    stem = tmp_path / f"poolscope-{os.getpid()}-0badcafe"
    reading = exchange.read(unused(), str(os.getpid()))
    for suffix, text in ((".lock", ""), (".json", exchange._written([reading])), (".new", "{")):
        stem.with_suffix(suffix).write_text(text)
    server = gunicorn()
    assert pids(server.scrape()) == server.workers
    assert list(tmp_path.glob(f"{stem.name}*")) == []


def test_a_worker_that_hangs_is_told_with_its_age(gunicorn: Launch) -> None:
    """A worker whose event loop stands is in the answers of the others: with its last numbers, and how old they are."""
    server = gunicorn(workers=2)
    with ThreadPoolExecutor(1) as threads:
        blocked = threads.submit(server.get, "/block/3")
        wait_for(lambda: "blocks\n" in server.output, "the block")

        def aged() -> bool:
            numbers = server.scrape()
            assert pids(numbers) == server.workers
            ages = of(numbers, "poolscope_reading_age_seconds")
            return max(ages.values()) > 1.0 and min(ages.values()) == 0.0

        wait_for(aged, "an old number")
        assert blocked.result() == "done"
    wait_for(lambda: max(of(server.scrape(), "poolscope_reading_age_seconds").values()) < 1.0, "fresh numbers")


def test_the_drain_of_a_worker_is_told_by_the_other(gunicorn: Launch, database: Database) -> None:
    """A worker that is told to end is "draining" in the others' answers for as long as it takes."""
    server = gunicorn()
    with ThreadPoolExecutor(1) as threads:
        database.sql("SELECT pg_advisory_lock(4711)")
        busy = threads.submit(server.get, "/locked")

        def holders() -> list[int]:
            used = of(server.scrape(), "db_client_connection_count", db_client_connection_state="used")
            return [pid for pid, number in used.items() if number]

        [worker] = wait_for(holders, "the lease")
        os.kill(worker, signal.SIGTERM)

        def draining() -> bool:
            with contextlib.suppress(OSError, HTTPException):
                return of(server.scrape(), "poolscope_state", state="draining").get(worker) == 1
            return False

        try:
            wait_for(draining, "the drain in the other's answer")
        finally:
            database.sql("SELECT pg_advisory_unlock(4711)")
        assert busy.result() == "done"
    wait_for(lambda: worker not in pids(server.scrape()), "its end")


async def test_the_numbers_are_told_until_the_pool_is_closed(dsn: str, tmp_path: Path) -> None:
    """Our end comes behind the pool's, which may take a while: the others see it drain for all that time."""
    app = App(dsn, {"drain_grace": 3.0}, directory=tmp_path, interval=0.1)
    ending: list[float] = []

    async def first_to_end(_app: web.Application) -> AsyncIterator[None]:
        yield
        ending.append(time.time())

    app.web.cleanup_ctx.append(first_to_end)
    runner = web.AppRunner(app.web)
    await runner.setup()
    db = await app.scope.acquire()
    cleanup = asyncio.create_task(runner.cleanup())
    await until(lambda: ending)

    def told() -> bool:
        [data] = tmp_path.glob("*.json")
        [reading] = exchange._understood(data.read_text())
        return time.time() - reading.age > ending[0] and reading.state == "draining"

    await until(told)
    db.release()
    await cleanup
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - a moment


def test_a_lock_is_held_before_it_can_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no moment in which another process finds the file and nobody's lock on it."""
    place = exchange._Place(tmp_path)
    lock, found = fcntl.flock, []

    def looks(descriptor: int, how: int) -> None:
        found.append(list(tmp_path.glob("*.lock")))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", looks)
    place.claim()
    assert found == [[]]
    assert exchange._is_held(place._files.lock)
    place.leave()


def test_who_cannot_be_asked_is_not_taken_for_dead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a descriptor left, or without permission, the files of others stay where they are."""
    one, two = exchange._Place(tmp_path), exchange._Place(tmp_path)
    for place in (one, two):
        place.claim()
        place.tell([exchange.read(unused(), "7")])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert one.exchange([]) == []
        assert exchange._told(two._files.lock) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caplog.text.count("Too many open files") == 3
    assert len(one.exchange([])) == 1
    for place in (one, two):
        place.leave()


async def test_two_applications_in_one_process(dsn: str, serve: Serve, tmp_path: Path) -> None:
    """Two applications of one process have each series once, whichever of them is asked."""
    one, two = (App(dsn, registry=CollectorRegistry(), directory=tmp_path) for _ in range(2))
    async with serve(one.web) as first, serve(two.web) as second:
        for served in (first, second):
            assert pids(await scrape(served)) == {os.getpid()}  # scrape() fails for what is there twice
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - a moment


async def test_with_a_directory_alone_only_the_pools_are_told(dsn: str, serve: Serve, tmp_path: Path) -> None:
    """Without prometheus_client's own variable, what is in its registry is one process's, and left out."""
    async with serve(App(dsn, directory=tmp_path).web) as served:
        assert {name for name, _ in await scrape(served) if not name.startswith(("db_client_", "poolscope_"))} == set()


async def test_a_directory_that_cannot_be_used(dsn: str, serve: Serve, tmp_path: Path) -> None:
    """It is said at the start, with the path and the reason."""
    file = tmp_path / "file"
    file.write_text("")
    for wrong, reason in ((file, "Not a directory"), (tmp_path / "nowhere", "No such file or directory")):
        with pytest.raises(poolscope.ConfigError, match=rf"directory='{wrong}'\): {reason}; it must be a directory"):
            async with serve(App(dsn, directory=wrong).web):
                pass


async def test_a_directory_that_is_emptied_or_lost(
    dsn: str, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its files a process shows up again; without the directory it answers for itself, and says so once."""
    directory = tmp_path / "metrics"
    directory.mkdir()

    def suffixes() -> set[str]:
        return {path.suffix for path in directory.iterdir()}

    async with serve(App(dsn, directory=directory, interval=0.1).web) as served:
        for path in list(directory.iterdir()):
            path.unlink()
        await until(lambda: suffixes() == {".json", ".lock"}, "its files are back")
        directory.rename(tmp_path / "away")
        await until(lambda: "cannot be told to the others" in caplog.text)
        for _ in range(3):
            assert pids(await scrape(served)) == {os.getpid()}
        assert caplog.text.count("cannot be told to the others") == 1
        (tmp_path / "away").rename(directory)
        await until(lambda: suffixes() == {".json", ".lock"})


def written(stats: Any) -> str:
    return json.dumps({"at": 1, "readings": [{"pool": "db", "state": "serving", "pid": "1", "stats": stats}]})


GARBAGE = {
    "nothing": "",
    "half": '{"at": 1, "rea',
    "another form": "[1, 2]",
    "no readings": '{"at": 1}',
    "wrong types": '{"at": "x", "readings": []}',
    "no numbers": written([1]),
    "wrong histogram": written({"wait": {"bounds": 3}}),
    "text for a number": written({"idle": "many"}),
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_cannot_be_understood_is_left_out(
    text: str, dsn: str, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever another version has written, the answer has all others, and the log says which file it was."""
    place = exchange._Place(tmp_path)
    place.claim()
    place._files.data.write_text(text)
    try:
        async with serve(App(dsn, directory=tmp_path).web) as served:
            assert pids(await scrape(served)) == {os.getpid()}
        assert place._files.data.name in caplog.text
    finally:
        place.leave()


def test_another_version_is_understood() -> None:
    """What it has more is left out, and what it lacks is zero: workers of both answer while one replaces the other."""
    reading = exchange.read(unused(), "7")
    told = json.loads(exchange._written([reading]))
    [there] = told["readings"]
    there["stats"] |= {"size": 3, "invented": 1, "invented_times": {"counts": [], "sum": 0, "bounds": []}}
    del there["stats"]["waiting"], there["stats"]["reset"]
    there["invented"] = True
    [understood] = exchange._understood(json.dumps(told))
    assert (understood.pid, understood.pool, understood.state) == ("7", "db", "starting")
    assert (understood.stats.size, understood.stats.waiting, understood.stats.maxsize) == (3, 0, 10)
    assert understood.stats.reset == poolscope.PoolStats().reset


FORK = """
import os, pathlib, sys, time
from aiohttp_poolscope.contrib.prometheus import workers as exchange
place = exchange._Place(pathlib.Path(sys.argv[1]))
place.claim()
if os.fork() == 0:
    os.close(1)
    time.sleep(60)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_child_does_not_live_for_its_parent(tmp_path: Path) -> None:
    """A process that a worker has forked inherits its lock, and does not keep it when the worker is killed."""
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    parent = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert parent.stdout is not None
        parent.stdout.readline()
        [lock] = tmp_path.glob("*.lock")
        assert exchange._is_held(lock)
        parent.kill()
        parent.wait()
        wait_for(lambda: not exchange._is_held(lock), "the end of the lock", 5.0)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)  # its child: a process group of their own
        parent.wait()
        parent.stdout.close()  # type: ignore[union-attr]


def test_what_is_read_twice_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many that remove the same dead at the same time are in nobody's way, and see all the living."""
    caplog.set_level(logging.WARNING)
    places = [exchange._Place(tmp_path) for _ in range(6)]
    readings = {place: [exchange.read(unused(), str(number))] for number, place in enumerate(places)}
    for place in places:
        place.claim()
        place.tell(readings[place])
    for _ in range(20):
        dead = exchange._Place(tmp_path)
        dead.claim()
        dead.tell([exchange.read(unused(), "666")])
        dead._unlock()
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(lambda place: place.exchange(readings[place]), places))
        assert [len(each) for each in found] == [5] * 6
        assert all(reading.pid != "666" for each in found for reading in each)
    for place in places:
        place.leave()
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""
