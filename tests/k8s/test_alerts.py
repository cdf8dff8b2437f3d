"""The alerts read what monitoring writes, and what serves it to Prometheus is held to the same rules as everything."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from omnifeed.monitoring.exposition import METRICS
from omnifeed.monitoring.profile import Kind
from omnifeed.monitoring.watch import AGE, SKEW, State

from .test_manifests import KUBERNETES, ROOT, Manifest, containers, of_kind, pods, render, selects

CUSTOM = ("PrometheusRule", "ServiceMonitor")
NAME = re.compile(r"omnifeed_\w+")
LABEL = re.compile(r'(\w+)="([^"]*)"')


@pytest.fixture(scope="module")
def monitored() -> list[Manifest]:
    return render("overlays/monitored")


def rules(manifests: list[Manifest]) -> list[dict[str, Any]]:
    found = of_kind(manifests, "PrometheusRule")["monitoring"]
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def closed(schema: Any) -> Any:
    """As the README of the schemas says: an object with properties takes no others."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(value) for name, value in schema.items()}
    if "properties" in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
        schema.setdefault("additionalProperties", False)
    if schema.pop("x-kubernetes-int-or-string", None):
        schema = {"type": ["integer", "string"]}
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = schema["pattern"].replace("^(?i)", "(?i)^")  # Go's place of the flag is not Python's
    return schema


def test_every_manifest_is_valid_to_the_letter(monitored: list[Manifest], shared: Path) -> None:
    for manifest in monitored:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            continue
        name = f"monitoring.coreos.com_{manifest['kind']}_v1.json"
        schema = closed(json.loads((shared.parent / "crds" / name).read_text()))
        jsonschema.validate(manifest, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**manifest, "spec": {**manifest["spec"], "group": []}}, schema)


def test_every_rule_parses_and_names_only_metrics_that_are_written(monitored: list[Manifest]) -> None:
    named = set()
    for rule in rules(monitored):
        promql_parser.parse(rule["expr"])
        assert set(NAME.findall(rule["expr"])) <= set(METRICS), rule["alert"]
        named |= set(NAME.findall(rule["expr"]))
    assert len(named) >= 6


def test_the_labels_that_the_rules_ask_for_exist(monitored: list[Manifest]) -> None:
    known = {"state": {state.value for state in State}, "kind": {*(kind.value for kind in Kind), SKEW, AGE}}
    asked = [pair for rule in rules(monitored) for pair in LABEL.findall(rule["expr"])]
    assert asked
    for label, value in asked:
        assert value in known[label]


def test_every_alert_says_what_is_wrong_and_how_bad_it_is(monitored: list[Manifest]) -> None:
    names = [rule["alert"] for rule in rules(monitored)]
    assert len(set(names)) == len(names) >= 8
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for rule in rules(monitored):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in page


def test_the_exporter_may_do_no_more_than_the_others(monitored: list[Manifest]) -> None:
    spec = pods(monitored)["monitoring"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    exporter = dict(containers(monitored))["monitoring/exporter"]
    assert exporter["securityContext"]["readOnlyRootFilesystem"] is True
    assert exporter["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert all(mount["readOnly"] for mount in exporter["volumeMounts"])
    assert exporter.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}
    assert re.search(r":\d", exporter["image"])


def test_prometheus_and_nobody_else_reaches_it(monitored: list[Manifest]) -> None:
    labels = pods(monitored)["monitoring"]["metadata"]["labels"]
    policies = of_kind(monitored, "NetworkPolicy")
    assert selects(policies["default-deny"]["spec"]["podSelector"]["matchLabels"], labels)
    (rule,) = policies["monitoring"]["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [9100]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    watcher = of_kind(monitored, "ServiceMonitor")["monitoring"]
    service = of_kind(monitored, "Service")["monitoring"]
    assert selects(watcher["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    assert watcher["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_the_exporter_serves_the_file_as_it_is_now(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("exporter", ROOT / "k8s" / "components" / "alerts" / "exporter.py")
    assert spec is not None
    assert spec.loader is not None
    exporter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(exporter)
    path = tmp_path / "monitoring.prom"
    with exporter.server(path, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url) as answer:
            assert answer.read() == b""  # nothing was looked at yet
        path.write_text("# TYPE omnifeed_monitor_checks gauge\nomnifeed_monitor_checks 3.0\n")
        with urllib.request.urlopen(url) as answer:
            (family,) = text_string_to_metric_families(answer.read().decode())
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert family.samples[0].value == 3
        server.shutdown()
        thread.join()
