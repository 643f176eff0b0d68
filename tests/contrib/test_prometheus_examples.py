"""examples/prometheus: rules and a dashboard in which every name exists and every alert is explained."""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp_poolscope.contrib.prometheus import METRICS, STATES
from aiohttp_poolscope.gate import BreakerState
from tests.kit.documents import ROOT, names, section, table

EXAMPLES = ROOT / "examples" / "prometheus"
ALERTS = (EXAMPLES / "alerts.yml").read_text()
DASHBOARD: dict[str, Any] = json.loads((EXAMPLES / "grafana.json").read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def alerts() -> dict[str, str]:
    """Each alert and what is said of it."""
    _, *found = re.split(r"^ +- alert: ", ALERTS, flags=re.MULTILINE)
    return {name: text for name, _, text in (each.partition("\n") for each in found)}


def test_every_name_is_a_metric() -> None:
    """Rules, their tests and the dashboard ask for nothing that is not told, and each metric is on the dashboard."""
    told = {metric.name for metric in METRICS if metric.kind != "histogram"}
    for metric in METRICS:
        if metric.kind == "histogram":
            told |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
    recorded = set(re.findall(r"record: (\S+)", (EXAMPLES / "recording.yml").read_text()))
    labels = {label for metric in METRICS for label in metric.labels}
    for path in sorted(EXAMPLES.iterdir()):
        found = set(re.findall(r"(?:pool:)?\b(?:db_client|poolscope)_\w+(?::\w+)?", path.read_text()))
        assert found - told - recorded - labels == set(), path.name
    on_dashboard = (EXAMPLES / "grafana.json").read_text()
    unseen = {metric.name for metric in METRICS if metric.name not in on_dashboard}
    assert unseen == {"db_client_connection_idle_max"}  # it is the same as max


def test_every_alert_says_what_to_do() -> None:
    """Each has a severity, a summary, a description of some length, a line in the document, and a test that fires."""
    document = (ROOT / "docs" / "prometheus.md").read_text()
    tests = (EXAMPLES / "alerts_test.yml").read_text()
    assert {names(row[0])[0] for row in table(section(document, "Alerts"))} == alerts().keys()
    for name, text in alerts().items():
        assert re.search(r"severity: (warning|critical)\n", text), name
        assert "summary:" in text, name
        assert len(text.partition("description: >-")[2].split()) > 20, name
        assert f'alertname="{name}", alertstate="firing"' in tests, name


def test_the_dashboard_is_whole() -> None:
    """Every panel says what it shows, asks the chosen data source for the chosen pools, and covers no other."""
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        "Now", "Borrows", "Times", "Errors", "Leases",
    ]  # fmt: skip
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "job", "pool"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            selectors = re.findall(r"\{(.*?)\}", target["expr"])
            wanted = 'job=~"$job", db_client_connection_pool_name=~"$pool"'
            assert selectors, panel["title"]
            assert all(selector.startswith(wanted) for selector in selectors), panel["title"]


def test_no_colour_is_an_accident() -> None:
    """Numbers have thresholds of their own, as Grafana's are red from 80; only a state's own name gives it a colour."""
    named: dict[str, set[str]] = {}
    for panel in panels():
        if panel["type"] in {"stat", "gauge"}:
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None, panel["title"]
            named[panel["title"]] = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}
    assert named == {
        "Utilisation": set(),
        "Scopes by state": {"starting", "serving", "draining"},
        "Breakers by state": {"closed", "half-open", "open"},
        "Longest now": set(),
    }
    assert named["Scopes by state"] < set(STATES)
    assert named["Breakers by state"] == set(BreakerState)
