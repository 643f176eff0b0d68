"""examples/prometheus, tried: by promtool, and by a real Prometheus that scrapes a service of two workers."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from tests.kit.processes import PATIENCE, free_port, wait_for

from .prometheus_gunicorn import launching
from .test_prometheus_examples import ALERTS, DASHBOARD, EXAMPLES, panels

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Database

    from .prometheus_gunicorn import Gunicorn

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        shutil.which("promtool") is None or shutil.which("prometheus") is None,
        reason="needs promtool and prometheus, of the system package prometheus",
    ),
]

QUIET = re.compile(
    r"pending_requests|oldest_|repair|opening|opened|closed|create_time|ping|reset|errors|timeouts|failures|dead|leaked|abandoned"
    r'|outcome=~|state="used"'
)
"""What may well be zero, or no number, in a service that has no trouble."""


def promtool(*arguments: str, where: Path = EXAMPLES) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=where, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", ["check rules recording.yml alerts.yml", "check config prometheus.yml"])
def test_promtool_checks(arguments: str) -> None:
    """promtool finds nothing wrong with the rules and the configuration."""
    done = promtool(*arguments.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@pytest.mark.slow
def test_the_alerts_fire() -> None:
    """Each alert fires for its case, not before its time, and none on a healthy day."""
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("right", "wrong"), [("> 0.2", "> 20"), ("for: 5m", "for: 5s"), ('"closed"', '"open"')])
def test_the_test_of_the_alerts_can_fail(right: str, wrong: str, tmp_path: Path) -> None:
    """Rules with another threshold, pause or label are found out."""
    for path in EXAMPLES.glob("*.yml"):
        shutil.copy(path, tmp_path)
    assert right in ALERTS
    cases = (EXAMPLES / "alerts_test.yml").read_text()
    begin, end = (found.start() for found in list(re.finditer("^  - name:", cases, re.MULTILINE))[:2])
    (tmp_path / "alerts_test.yml").write_text(cases[:begin] + cases[end:])  # without the day, which takes a while
    assert promtool("test", "rules", "alerts_test.yml", where=tmp_path).returncode == 0
    (tmp_path / "alerts.yml").write_text(ALERTS.replace(right, wrong))
    done = promtool("test", "rules", "alerts_test.yml", where=tmp_path)
    assert "FAILED" in done.stdout + done.stderr


class Prometheus:
    """A server that scrapes a service every second, with the rules of the examples."""

    def __init__(self, directory: Path, target: int) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config = (EXAMPLES / "prometheus.yml").read_text()
        config = config.replace("127.0.0.1:8080", f"127.0.0.1:{target}").replace(": 15s", ": 1s")
        for rules in ("recording.yml", "alerts.yml"):
            config = config.replace(f"- {rules}", f"- {EXAMPLES / rules}")
        (directory / "prometheus.yml").write_text(config)
        command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={self.url[7:]}"]
        command += [f"--storage.tsdb.path={directory / 'data'}", "--log.level=warn"]
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)

    def get(self, path: str) -> Any:
        with urlopen(f"{self.url}/api/v1/{path}", timeout=PATIENCE) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Grafana would be given for the last moments."""
        expression = expression.replace("$__rate_interval", "10s")
        for variable in ("$job", "$pool"):
            expression = expression.replace(variable, ".+")
        found: list[dict[str, Any]] = self.get(f"query?query={quote(expression)}")["result"]
        return found

    def largest(self, expression: str) -> float:
        values = [float(series["value"][1]) for series in self.query(expression)]
        return max((value for value in values if not math.isnan(value)), default=0.0)

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return bool(self.query("poolscope_state"))
        return False


def load(service: Gunicorn, ended: threading.Event) -> None:
    while not ended.is_set():
        service.get()
        service.get("/query/0.05")


@pytest.fixture(scope="module")
def watched(_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that watches two workers under a little load."""
    with launching(_database.dsn, tmp_path_factory.mktemp("workers")) as launch:
        service: Gunicorn = launch(dev=False)
        ended = threading.Event()
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), service.port)
        try:
            with ThreadPoolExecutor(2) as threads:
                loads = [threads.submit(load, service, ended) for _ in range(2)]
                wait_for(prometheus.ready, "the first scrape")
                try:
                    yield prometheus
                finally:
                    ended.set()
                for each in loads:
                    each.result()
        finally:
            prometheus.process.terminate()
            prometheus.process.wait(PATIENCE)


@pytest.mark.slow
def test_the_dashboard_has_answers(watched: Prometheus) -> None:
    """A real Prometheus understands every panel's question and has an answer to it; those of the load are not zero."""
    for panel in panels():
        for target in panel["targets"]:
            expression, what = target["expr"], f"{panel['title']}: {target['expr']}"
            found = wait_for(lambda expression=expression: watched.query(expression), what)
            for series in found:
                for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                    assert series["metric"].get(label), (what, label)
            if not QUIET.search(expression):
                wait_for(lambda expression=expression: watched.largest(expression) > 0, what)


@pytest.mark.slow
def test_the_rules_have_results(watched: Prometheus) -> None:
    """Every recording rule has numbers of a pool as a whole, no rule fails, and nothing fires under a little load."""
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 15
    for rule in rules:
        if rule["type"] == "recording":
            found = wait_for(lambda rule=rule: watched.query(rule["name"]), rule["name"])
            assert "db" in {each["metric"]["db_client_connection_pool_name"] for each in found}
            assert not any("pid" in each["metric"] for each in found)
    health = [rule["health"] for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert health == ["ok"] * len(rules)
    assert watched.query('ALERTS{alertstate="firing"}') == []


@pytest.mark.slow
def test_both_workers_are_scraped(watched: Prometheus) -> None:
    """Prometheus has two processes, all of their series at every scrape, and no counter that was reset."""
    assert len(watched.query('poolscope_state{state="serving", db_client_connection_pool_name="db"}')) == 2
    assert {each["value"][1] for each in watched.query("resets(poolscope_borrows_total[1m])")} == {"0"}
    wait_for(lambda: watched.largest("sum(count_over_time(up[1m]))") > 5, "six scrapes")
    assert watched.query("count by (pid) (poolscope_state)")[0]["value"][1] == "8"
    variable = DASHBOARD["templating"]["list"][2]["definition"]
    assert variable.startswith("label_values(poolscope_state{")
    assert watched.get("label/db_client_connection_pool_name/values?match[]=poolscope_state") == ["db", "reports"]
