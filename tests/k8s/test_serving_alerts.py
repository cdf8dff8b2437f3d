"""Serving's alerts and its dashboard name only what the servers show, and say what to do about it."""

from __future__ import annotations

import json
import re
from typing import Any

import promql_parser
import pytest

from omnifeed.serving.recommend.contract import Reason, Stage
from omnifeed.serving.recommend.metrics import FAMILIES

from .test_manifests import ROOT, Manifest, of_kind, render, selects

#: Triton's own, as its server shows them: tests/serving/test_operations.py holds that they are there.
TRITON = {
    "nv_inference_pending_request_count",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_request_success",
    "nv_inference_request_failure",
}
NAME = re.compile(r"\b(?:omnifeed|nv)_\w+")
REASONS = re.compile(r'reason=~?"([^"]*)"')
STAGES = re.compile(r'stage!?="([^"]*)"')


@pytest.fixture(scope="module")
def monitored() -> list[Manifest]:
    return render("overlays/monitored")


def rules(manifests: list[Manifest]) -> list[dict[str, Any]]:
    return [
        rule for group in of_kind(manifests, "PrometheusRule")["serving"]["spec"]["groups"] for rule in group["rules"]
    ]


def dashboard(manifests: list[Manifest]) -> dict[str, Any]:
    found = [one for one in manifests if one["kind"] == "ConfigMap" and "omnifeed-serving.json" in one.get("data", {})]
    assert [one["metadata"]["labels"]["grafana_dashboard"] for one in found] == ["1"]
    parsed: dict[str, Any] = json.loads(found[0]["data"]["omnifeed-serving.json"])
    return parsed


def expressions(manifests: list[Manifest]) -> list[str]:
    panels = [target["expr"] for panel in dashboard(manifests)["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules(manifests)] + [one.replace("$__rate_interval", "5m") for one in panels]


def test_rules_and_panels_parse_and_name_only_metrics_labels_and_values_that_there_are(
    monitored: list[Manifest],
) -> None:
    named = set()
    for expression in expressions(monitored):
        promql_parser.parse(expression)
        found = set(NAME.findall(expression))
        assert found
        assert found <= set(FAMILIES) | TRITON, expression
        named |= found
        for values in REASONS.findall(expression):
            assert set(values.split("|")) <= {reason.value for reason in Reason}, expression
        for value in STAGES.findall(expression):
            assert value in {stage.value for stage in Stage}, expression
    histogram = re.compile("_(bucket|sum|count)$")
    unseen = {histogram.sub("", name) for name in FAMILIES} - {histogram.sub("", name) for name in named}
    assert not unseen, "a metric that nobody looks at"


def test_labels_that_are_asked_for_belong_to_the_metric(monitored: list[Manifest]) -> None:
    pair = re.compile(r"(omnifeed_\w+)\{([^}]*)\}")
    for expression in expressions(monitored):
        for name, labels in pair.findall(expression):
            assert {label.split("=")[0].rstrip("!") for label in labels.split(",")} <= set(FAMILIES[name].labels)


def test_every_alert_is_explained(monitored: list[Manifest]) -> None:
    names = [rule["alert"] for rule in rules(monitored)]
    assert len(set(names)) == len(names) >= 10
    page = (ROOT / "docs" / "serving-operations.md").read_text(encoding="utf-8")
    for rule in rules(monitored):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in page


def test_prometheus_scrapes_the_servers_that_there_are(monitored: list[Manifest]) -> None:
    watcher = of_kind(monitored, "ServiceMonitor")["triton"]
    service = of_kind(monitored, "Service")["triton"]
    assert selects(watcher["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    assert watcher["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_the_dashboard_is_whole(monitored: list[Manifest]) -> None:
    found = dashboard(monitored)
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    assert all(panel["title"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    places = {(x, y) for p in panels for x in _span(p, "x", "w") for y in _span(p, "y", "h")}
    assert len(places) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels), "panels overlap"


def _span(panel: dict[str, Any], start: str, size: str) -> range:
    place = panel["gridPos"]
    return range(place[start], place[start] + place[size])
