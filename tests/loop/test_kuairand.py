"""The whole loop on real logs (3,000 users of KuaiRand-Pure): what is dropped, measured, served and not promoted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from omnifeed.config import Config
from omnifeed.datasets.kuairand import HISTORY, SCENARIOS
from omnifeed.errors import UnavailableError
from omnifeed.experiment.ledger import Ledger
from omnifeed.home import Home
from omnifeed.pipelines.cli import CONFIGS, settings
from omnifeed.pipelines.loop import LoopOutcome, run_loop
from omnifeed.serving.server import triton_environment

DAY_MS = 86_400_000
BASELINES = {"popularity, all time", "popularity, 7 days", "item rate", "logistic regression"}


def small(config: Config) -> Config:
    """The same run with a network that learns in seconds, and no bound on what it may lose."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, width=16, blocks=1),
        training=dataclasses.replace(config.training, epochs=1, threads=1),
        evaluation=dataclasses.replace(config.evaluation, min_auc=0.5, max_relative_loss=1.0, bootstrap=50),
        serving=dataclasses.replace(config.serving, grpc_port=0, http_port=0, metrics_port=0, features_port=0),
    )


@dataclasses.dataclass
class Run:
    home: Home
    outcome: LoopOutcome
    log: Path

    def step(self, name: str) -> dict[str, Any]:
        path = self.home.runs / self.outcome.run / "steps" / f"{name}.json"
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["info"]
        return info


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    try:
        triton_environment()
    except UnavailableError as missing:
        pytest.skip(missing.problem)
    folder = shared / "kuairand_small"
    home = Home(tmp_path_factory.mktemp("kuairand"))
    outcome = run_loop(home, small(settings("kuairand", str(folder), None)), show=False)
    return Run(home, outcome, folder / "kuairand_log_3k_users.parquet")


def test_the_scenarios_are_the_tabs_and_history_is_none_of_them() -> None:
    # Rows of earlier history only feed histories: nobody is answered there, and the contract lets them pass.
    scenarios = Config.load(CONFIGS / "kuairand.toml").data.scenarios
    assert scenarios == tuple(name for name in SCENARIOS if name != HISTORY)


def test_exact_copies_are_quarantined_and_counted_and_nothing_else_is(run: Run) -> None:
    log = pq.read_table(run.log)
    copies = log.num_rows - log.group_by(log.column_names).aggregate([]).num_rows
    quality = run.step("validate")
    assert copies > 0
    assert quality["quarantined"] == {"events": copies, "items": 0, "users": 0}
    assert f"{copies:,} events quarantined: event_id is unique" in run.outcome.text()


def test_the_split_is_by_time_in_whole_days(run: Run) -> None:
    info = run.step("materialize")
    times = pq.read_table(run.log, columns=["time_ms"])["time_ms"]
    midnight = (pc.max(times).as_py() // DAY_MS + 1) * DAY_MS
    assert info["test_end"] == midnight * 1_000
    assert info["valid_end"] == (midnight - 7 * DAY_MS) * 1_000
    assert info["train_end"] == (midnight - 8 * DAY_MS) * 1_000
    assert sum(info["rows"].values()) == run.step("validate")["accepted"]["events"] - info["left_out"]["history"]


def test_every_baseline_is_measured_on_the_rows_that_the_releases_are(run: Run) -> None:
    evaluation = run.step("evaluate")
    assert set(evaluation["baselines"]) == BASELINES
    models = {**evaluation["metrics"], **evaluation["baselines"]}
    for name, scenarios in models.items():
        for scenario in ("all", "tab_1", "tab_0"):
            for metric in ("auc_click", "auc_long_view"):
                cell = scenarios[scenario][metric]
                assert cell["low"] <= cell["value"] <= cell["high"], (name, scenario, metric)
    retrieve = {name for name, scenarios in models.items() if "recall@50" in scenarios["all"]}
    assert retrieve == {"challenger", "release 0 (trending)", "popularity, all time", "popularity, 7 days"}
    assert evaluation["scenario_rows"]["all"] == run.step("materialize")["rows"]["test"]
    assert max(evaluation["baselines"][name]["all"]["auc_click"]["value"] for name in BASELINES) > 0.6


def test_what_the_command_prints_holds_every_model_by_tab(run: Run) -> None:
    text = run.outcome.text()
    for name in (*BASELINES, "challenger", "release 0 (trending)", "auc_click", "auc_long_view", "recall@50", "tab_1"):
        assert name in text, name
    assert "asked over gRPC: user " in text


def test_triton_answers_users_of_the_log_in_the_busiest_tabs_from_both_releases(run: Run) -> None:
    shown = run.step("traffic")["recommendations"]
    log = pq.read_table(run.log)
    log = log.group_by(log.column_names).aggregate([])  # without copies
    clicks = log.filter(pc.equal(log["is_click"], 1))
    counts = {f"tab_{row['values']}": row["counts"] for row in pc.value_counts(clicks["tab"]).to_pylist()}
    assert {entry["scenario"] for entry in shown} == set(sorted(counts, key=lambda tab: -counts[tab])[:5])
    users = {str(user) for user in log["user_id"].to_pylist()}
    videos = {str(video) for video in pq.read_table(run.log.parent / "kuairand_videos.parquet")["video_id"].to_pylist()}
    for entry in shown:
        assert entry["user"] in users
        assert {arm: answer["release"] for arm, answer in entry["arms"].items()} == {"champion": "0", "challenger": "1"}
        for answer in entry["arms"].values():
            assert not answer["degraded"]
            items = [item["item_id"] for item in answer["items"]]
            assert len(items) == len(set(items)) == 5
            assert set(items) <= videos


def test_without_live_traffic_the_verdict_is_invalid_for_that_reason_alone(run: Run) -> None:
    decision = json.loads((run.home.runs / run.outcome.run / "decision.json").read_text())
    assert run.outcome.verdict == "INVALID"
    assert [reason["code"] for reason in decision["reasons"]] == ["NO_DATA"]
    assert "There is no live traffic" in run.outcome.paragraph
    assert decision["counts"]["exposures"] == 0  # looking at answers left no trace in the log
    assert run.outcome.champion == Ledger(run.home).champion() == "0"
    assert not (run.home.experiments / "current.json").exists()


def test_the_report_shows_the_baselines_and_the_verdict(run: Run) -> None:
    page = Path(run.outcome.report).read_text(encoding="utf-8")
    for text in ("logistic regression", "popularity, 7 days", "There is no live traffic", "tab_1"):
        assert text in page, text
