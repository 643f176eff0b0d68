"""The benchmark's own arithmetic: ratios, turns, the guard, the report; and that all candidates do the same work."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg2.extensions
import pytest

from aiohttp_poolscope.driver import link
from benchmarks.__main__ import STUDIES, studies
from benchmarks.by_hand import hot_path
from benchmarks.load import wrk
from benchmarks.report import compare, figures, page, plots
from benchmarks.report.__main__ import write
from benchmarks.report.results import Results
from benchmarks.report.tables import shown
from benchmarks.services.candidates import CANDIDATES
from benchmarks.services.handlers import OnePerSocket
from benchmarks.services.work import SCHEMA
from benchmarks.studies import contention, throughput
from benchmarks.study import Bench, Goal, Ratio, Sample

if TYPE_CHECKING:
    from tests.conftest import Database, Serve

NEEDS = {
    "asyncpg": "asyncpg",
    "asyncpg, no reset": "asyncpg",
    "psycopg_pool": "psycopg_pool",
    "aiohttp-sqlalchemy": "aiohttp_sqlalchemy",
}
CASE = "SELECT 1, 8 clients, asyncio"
FASTER = Goal("throughput", CASE, "poolscope", "rate", "at least", 1.4, against="by hand")
EVEN = Goal("throughput", CASE, "poolscope", "p99", "at most", 1.7, by="mean")


def run(*rates: tuple[float, float]) -> Results:
    """A run with a round for each pair of rates: poolscope's, and by hand."""
    samples = []
    for number, (ours, theirs) in enumerate(rates):
        figures = {"rate": ours, "mean": 0.002, "p50": 0.001, "p99": 0.003, "errors": 0}
        samples.append(Sample("throughput", CASE, "poolscope", number, figures))
        samples.append(Sample("throughput", CASE, "by hand", number, {"rate": theirs}))
    machine = {"model": "a processor", "processors": 2}
    settings = {"rounds": len(rates), "studies": ["throughput"]}
    return Results(samples, [FASTER, EVEN], machine, {"Python": "3.11.7"}, settings)


def test_only_runs_of_the_same_round_are_compared() -> None:
    """A machine that is slow in one round is slow for both."""
    ratio = FASTER.ratio(run((150, 100), (30, 20), (140, 100)).samples)
    assert ratio == Ratio(1.5, 1.4, 1.5)


def test_a_round_with_one_side_only_does_not_count() -> None:
    """Nothing is compared with nothing."""
    samples = run((150, 100), (200, 100)).samples
    assert FASTER.ratio(samples[:3]) == Ratio(1.5, 1.5, 1.5)
    assert FASTER.ratio(samples[:1]) is None


def test_two_figures_of_one_candidate() -> None:
    """``by`` divides by another figure; without it the figure stands for itself."""
    samples = run((150, 100)).samples
    even, alone = EVEN.ratio(samples), Goal("throughput", CASE, "poolscope", "rate", "at least", 1).ratio(samples)
    assert even is not None
    assert alone is not None
    assert (even.median, alone.median) == (pytest.approx(1.5), 150)


def test_a_goal_looks_at_the_median() -> None:
    """At least and at most, and the bound itself is enough."""
    assert FASTER.met(Ratio(1.4, 1.0, 2.0))
    assert not FASTER.met(Ratio(1.39, 1.39, 3.0))
    assert EVEN.met(Ratio(1.7, 1.0, 2.0))
    assert not EVEN.met(Ratio(1.71, 1.0, 2.0))


def test_everybody_is_first_and_last_equally_often() -> None:
    """Whatever the machine does at the beginning of a round hits all of them."""
    bench, names = Bench(""), ["a", "b", "c"]
    orders = [bench.in_turns(names, number) for number in range(6)]
    assert all(sorted(order) == names for order in orders)
    for name in names:
        assert [order[0] for order in orders].count(name) == 2
        assert [order[-1] for order in orders].count(name) == 2


def test_random_numbers_are_those_of_the_round() -> None:
    """The same for every candidate, others in the next round and with another seed."""
    numbers = {Bench("", seed=seed).rng("throughput", number).random() for seed in (1, 2) for number in (0, 1)}
    assert len(numbers) == 4
    assert Bench("").rng("throughput", 0).random() in numbers


def test_ranges_that_overlap_are_no_news() -> None:
    """Worse is only what lies beyond the record as a whole, on the side that the goal does not want."""
    recorded = Ratio(1.5, 1.4, 1.6)
    assert not compare.worse(FASTER, Ratio(1.3, 1.2, 1.4), recorded)
    assert compare.worse(FASTER, Ratio(1.3, 1.2, 1.39), recorded)
    assert not compare.worse(FASTER, Ratio(2.0, 1.9, 2.1), recorded)
    assert compare.worse(EVEN, Ratio(2.0, 1.9, 2.1), recorded)
    assert not compare.worse(EVEN, Ratio(1.3, 1.2, 1.39), recorded)


def test_the_guard_says_what_got_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record is of several runs; a later run is held against all of their rounds."""
    record = compare.record([run((150, 100), (160, 100)), run((140, 100))])
    assert record["ratios"][FASTER.name] == {"median": pytest.approx(1.475), "low": 1.4, "high": 1.6}
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(record))
    compare.compare_with_recorded(run((130, 100), (135, 100)), path)
    said = capsys.readouterr().out.splitlines()
    assert [line.endswith("worse") for line in said] == [False, True, False, False]
    assert said[-1] == "1 of 2 are worse than on record"
    assert "no record" not in said[0]


def test_the_guard_says_where_the_record_comes_from() -> None:
    """Ratios of another machine are not this one's."""
    record = compare.record([run((150, 100))])
    other = run((150, 100))
    other.machine["model"] = "another"
    assert compare.lines(run((150, 100)), record)[0].startswith("ratio")
    assert compare.lines(other, record)[0] == "Recorded elsewhere: model a processor, now another"


def test_without_a_record_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how to make one."""
    compare.compare_with_recorded(run((1, 1)), tmp_path / "recorded.json")
    assert "--record" in capsys.readouterr().out


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    """All that the report needs is in the file."""
    found = run((150, 100))
    found.write(tmp_path / "new" / "results.json")
    assert Results.read(tmp_path / "new" / "results.json") == found


def test_the_figures_are_of_all_runs() -> None:
    """Each run's ratio with its range, whether the goal was met in all of them, and who could not play."""
    runs = [run((150, 100), (160, 100)), run((130, 100))]
    runs[1].notes |= {"left out": {"a library": "it does not start"}, "failed": {"a run": "8 errors"}}
    found = figures.pages(runs, ["throughput"])
    assert list(found) == ["method", "throughput"]
    assert (
        f"| {CASE}: rate of poolscope / by hand | at least 1.4 | 1.55 (1.5 - 1.6) | 1.3 | 1 of 2 |"
        in found["throughput"]
    )
    assert f"| {CASE}: p99 of poolscope / mean | at most 1.7 | 1.5 | 1.5 | yes |" in found["throughput"]
    assert "| poolscope | 150 (130 - 160) | 2 ms | 1 ms | 3 ms |" in found["throughput"]
    assert "(../images/throughput.svg)" in found["throughput"]
    assert "| Python | 3.11.7 |  |" in found["method"]
    assert "- a library: it does not start\n- a run: 8 errors" in found["method"]
    assert shown(Ratio(0, 0, 0), "p50") == "0 s"
    assert shown(Ratio(0.0005, 0.0004, 0.0006), "p50") == "500 µs (400 - 600)"
    assert "images/" not in figures.pages(runs)["throughput"]


def test_the_page_has_the_lowest_and_the_highest_run() -> None:
    """Of what was measured; a single run is one figure."""
    runs = [run((150, 100), (160, 100)), run((130, 100)), run((140, 100))]
    words = page.LINES[FASTER.name]
    assert [line for line in page.page(runs).splitlines() if line.startswith("| [")] == [
        f"| {words} | 1.3 - 1.55 | at least 1.4 | 2 of 3 |"
    ]
    assert f"| {words} | 1.3 | at least 1.4 | **no** |" in page.page(runs[1:2])
    assert "2 processors (a processor), with Python 3.11.7" in page.page(runs)
    assert "| ratio |" not in page.page([Results([], [])])


def test_the_page_shows_goals_that_there_are() -> None:
    """Ratios all of them: none has a unit."""
    modules = [importlib.import_module(f"benchmarks.studies.{name}") for name in STUDIES]
    goals = {goal.name: goal for module in modules for goal in module.GOALS}
    assert [figures.unit_of(goals[name]) for name in page.LINES] == [""] * len(page.LINES)


def test_the_report_is_of_these_runs_alone(tmp_path: Path) -> None:
    """The page of a study that they have not measured does not stay."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "costs.md").write_text("# Costs\n")
    write([run((150, 100))], ["standing"], tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.md")) == ["benchmarks.md", "method.md", "throughput.md"]
    assert "(images/standing.svg)" in (tmp_path / "benchmarks.md").read_text()


def test_the_same_results_give_the_same_pictures(tmp_path: Path) -> None:
    """A picture changes when a figure does, and not with the day."""
    pytest.importorskip("matplotlib")
    for folder in ("one", "other"):
        assert plots.draw([run((150, 100))], tmp_path / folder) == ["throughput"]
    one, other = ((tmp_path / folder / "throughput.svg").read_text() for folder in ("one", "other"))
    assert one == other
    assert ">poolscope</text>" in one


def test_a_run_with_errors_is_no_figure() -> None:
    """A request that failed did less work than the others."""
    figures = {"rate": 100.0, "mean": 0.1, "p50": 0.1, "p99": 0.1, "longest": 0.1, "errors": 0}
    assert wrk.checked("Running\n" + json.dumps(figures), "http://here/one") == figures
    with pytest.raises(wrk.RunFailed, match="2 errors"):
        wrk.checked(json.dumps({**figures, "errors": 2}), "http://here/one")
    with pytest.raises(wrk.RunFailed, match="0 requests/s"):
        wrk.checked(json.dumps({**figures, "rate": 0.0}), "http://here/one")


def test_a_profile_has_all_of_a_request() -> None:
    """Each stack belongs to who has its innermost frame, or to the C function that is called there."""
    file = link.__file__
    lines = Path(file).read_text().splitlines()
    sends, waits = (
        next(i for i, line in enumerate(lines, 1) if code in line) for code in ("cursor.execute(", "await waiter")
    )
    profile = hot_path.Profile(processor=0.2, requests=1000)
    profile.add([
        f"main (main.py:1);run ({file}:{sends}) 3",
        f"main (main.py:1);run ({file}:{waits}) 4",
        f"run ({file}:{waits});start (/lib/aiohttp/web_protocol.py:1) 2",
        "main (main.py:1) 1",
    ])  # fmt: skip
    parts = {kind: profile.microseconds(kind) for kind in profile.layers}
    assert parts == pytest.approx({
        "psycopg2: sends the statement": 60, "aiohttp_poolscope": 80, "aiohttp": 40, "the rest of Python": 20,
    })  # fmt: skip
    assert profile.functions == {"link: run": 4}


async def test_a_run_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives no sample and a reason, and the others go on."""

    async def load(url: str, **options: Any) -> dict[str, float]:
        raise wrk.RunFailed(f"{options['clients']} errors\nand what wrk said")

    monkeypatch.setattr(wrk, "load", load)
    bench = Bench("", rounds=3)
    run = {"study": "throughput", "case": CASE, "candidate": "by hand", "number": 1}
    await wrk.measure(bench, "http://here/one", **run, clients=8)
    assert bench.samples == []
    assert bench.notes["failed"] == {f"throughput: {CASE}: by hand, round 2 of 3": "8 errors"}


def test_without_wrk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the package, not a traceback."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="apt-get install wrk"):
        wrk.program()


def test_goals_are_of_cases_that_exist() -> None:
    """A goal that is never measured would be silently met by nobody."""
    cases = {
        throughput.case(*what)
        for what in ((r, c, loop) for r in throughput.ROUTES for c in (8, 100) for loop in throughput.LOOPS)
    }
    assert {goal.case for goal in throughput.GOALS} <= cases
    assert {goal.case for goal in contention.GOALS} <= {contention.case(c, "asyncio") for c in contention.CROWDS}
    for goal in throughput.GOALS:
        assert goal.against in throughput.players("SELECT 1", 8)


def test_studies_run_in_their_order() -> None:
    """However they are asked for."""
    assert studies("contention,throughput") == ["throughput", "contention"]
    with pytest.raises(Exception, match="no study speed"):
        studies("speed")


def test_a_socket_keeps_its_connection() -> None:
    """Whoever has left gives it back; not while a handler still works for them."""

    class Transport:
        gone = False

        def is_closing(self) -> bool:
            return self.gone

    def connection(status: int) -> Any:
        return SimpleNamespace(raw=SimpleNamespace(info=SimpleNamespace(transaction_status=status)))

    idle, busy = (
        connection(psycopg2.extensions.TRANSACTION_STATUS_IDLE),
        connection(psycopg2.extensions.TRANSACTION_STATUS_ACTIVE),
    )
    owned, first, second = OnePerSocket([busy, idle]), Transport(), Transport()

    def of(transport: Transport) -> Any:
        return owned.of(SimpleNamespace(transport=transport))  # type: ignore[arg-type]

    assert of(first) is of(first) is idle
    with pytest.raises(RuntimeError, match="1 clients already"):
        of(second)
    first.gone = True
    assert of(second) is idle


@pytest.mark.parametrize("candidate", CANDIDATES)
async def test_all_candidates_do_the_same_work(candidate: str, database: Database, serve: Serve) -> None:
    """Otherwise their figures could not be compared."""
    pytest.importorskip(NEEDS.get(candidate, "aiopg"))
    database.sql(SCHEMA)
    async with serve(CANDIDATES[candidate](database.dsn, {})) as served:
        assert await served.get("/one") == (200, "1")
        status, rows = await served.get("/rows")
        assert (status, await served.get("/nothing")) == (200, (200, "nothing"))
        assert json.loads(rows) == [{"id": n, "name": f"item {n}", "price": n * 1.25} for n in range(1, 21)]
        for _ in range(3):
            assert await served.get("/transfer") == (200, "done")
        assert await served.get("/sleep", params={"seconds": "0.001"}) == (200, "done")
    moved = database.sql("SELECT sum(balance), sum(abs(balance - 1000)) FROM accounts")
    assert moved[0][0] == 1_000_000
    assert moved[0][1] > 0
