"""The monitoring pipeline under Kubeflow's local runner, through the command: quiet ends there, drift trains again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from export.releases import copied
from monitoring.served_logs import START, write_day

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.encode import DAY_US
from omnifeed.home import Home
from omnifeed.monitoring.retraining import opened_path
from omnifeed.pipelines.loop import run_monitoring

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "omnifeed-monitoring.yaml"
DAYS = 8
NOW = START + DAYS * DAY_US


def home(folder: Path, last_click_rate: float) -> Home:
    home = copied(folder / "home")
    Ledger(home).append("BOOTSTRAP", {"release": "1"}, START, expected_champion=None)
    for day in range(DAYS):
        write_day(home.experiments / "trial", day, click_rate=last_click_rate if day == DAYS - 1 else 0.25)
    shutil.rmtree(home.experiments / "trial" / "features")
    return home


def steps(home: Home) -> set[str]:
    return {path.stem for path in (home.runs / "0001" / "steps").glob("*.json")}


def test_a_quiet_day_ends_after_the_look(tmp_path: Path) -> None:
    one = home(tmp_path, 0.25)
    found = run_monitoring(one, Config(), NOW, retrain=True, show=False)
    assert (found["state"], found["retrained"], found["run"]) == ("QUIET", False, "0001")
    assert steps(one) == {"monitor", "end_of_monitoring"}
    assert (one.root / "monitoring" / "monitoring.prom").is_file()
    assert not opened_path(one).exists()


def test_drift_starts_the_training_pipeline_s_own_steps(tmp_path: Path) -> None:
    """Its first step is told to read a folder that is not there: that it says so shows that it was started."""
    one = home(tmp_path, 0.03)
    config = Config()
    config = replace(config, data=replace(config.data, source="parquet", path=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="nowhere"):
        run_monitoring(one, config, NOW, retrain=True, show=False)
    assert steps(one) == {"monitor", "ingest", "end_of_monitoring"}
    assert json.loads(opened_path(one).read_text())["run"] == "0001"


def test_on_a_cluster_the_retraining_is_the_training_pipeline_behind_a_condition() -> None:
    compiled = yaml.safe_load(GOLDEN.read_text(encoding="utf-8").split("\n---")[0])
    training = yaml.safe_load((GOLDEN.parent / "omnifeed-training.yaml").read_text(encoding="utf-8").split("\n---")[0])

    def executors(pipeline: dict) -> set[str]:
        return set(pipeline["deploymentSpec"]["executors"])

    assert executors(compiled) == executors(training) | {"exec-monitor"}
    (condition,) = [
        task["triggerPolicy"]["condition"]
        for component in compiled["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if task.get("taskInfo", {}).get("name") == "drifted"
    ]
    assert "== 'yes'" in condition
