"""What a share of the requests leaves for monitoring: bounded, whole lines, and never in an answer's way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from export.releases import NOW, config, copied, experiment

from omnifeed.config import MonitoringConfig
from omnifeed.export.encode import CANDIDATE_DIMS, USER_DIMS, UserRow
from omnifeed.export.onnx_parts import OnnxParts
from omnifeed.home import Home
from omnifeed.serving.recommend.contract import Answer, History, Request
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.feature_log import HOUR_US, FeatureLog
from omnifeed.serving.recommend.live import Live

ROW = UserRow(
    {"user_views_7d": 3.0}, ("i1", "i2"), (2, 5), ("search", "search"), (1, 2), {"user_daily": 7, "user_history": 8}
)


class Known:
    """A feature store in which everybody has the same row."""

    def user(self, user_id: str, timeout_s: float) -> UserRow:
        return ROW


class Server:
    """Release 1 behind the server's engine, with a feature log."""

    def __init__(self, home: Home, monitoring: MonitoringConfig, release: str = "1") -> None:
        self.home, self.log = home, FeatureLog(home, 5, monitoring)
        experiment(home, ("champion", release, 1.0))
        live = Live(home, config(), lambda number: OnnxParts(home.releases / number, threads=1))
        assert live.refresh()
        self.recommender = Recommender(
            live, Known(), ExposureLog(home, 5), config().serving, lambda: NOW, True, self.log
        )

    def ask(self, request_id: str = "r", **fields: Any) -> Answer:
        usual: dict[str, Any] = {"user_id": "u", "scenario": "search", "query": "red shoe", "k": 4}
        return self.recommender.recommend(Request(**{**usual, "request_id": request_id, **fields}))

    def lines(self) -> list[dict[str, Any]]:
        files = (self.home.experiments / "trial" / "features").glob("*.jsonl")
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def server(tmp_path: Path, release: str = "1", **monitoring: Any) -> Server:
    return Server(copied(tmp_path / "home"), replace(MonitoringConfig(log_share=1.0), **monitoring), release)


def test_a_line_holds_what_the_model_was_given_and_what_it_said_of_the_answer(tmp_path: Path) -> None:
    one = server(tmp_path)
    answer = one.ask()
    (line,) = one.lines()
    assert line["item_id"] == list(answer.item_ids)
    assert (line["request_id"], line["release"], line["ts"], line["query"]) == ("r", "1", NOW, "red shoe")
    assert len(line["user_dense"]) == USER_DIMS
    assert [len(row) for row in line["candidate_dense"]] == [CANDIDATE_DIMS] * 4
    assert [len(row) for row in line["probabilities"]] == [len(line["tasks"])] * 4
    assert (line["user_daily_as_of"], line["user_history_as_of"]) == (7, 8)
    assert (line["history_item"], line["history_action"]) == (["i1", "i2"], [2, 5])
    assert line["user_dense"][0] == pytest.approx(1.38629, rel=1e-5)  # log(1 + 3)
    assert not line["history_given"]


def test_a_history_that_the_caller_gave_is_marked(tmp_path: Path) -> None:
    one = server(tmp_path)
    one.ask(history=History(("i5",), ("order",), ("search",), (NOW - 1,)))
    assert one.lines()[0]["history_given"]


def test_the_share_is_kept_and_a_request_is_in_it_or_not_for_good(tmp_path: Path) -> None:
    one, other = (FeatureLog(Home(tmp_path), 1, MonitoringConfig(log_share=0.1)) for _ in range(2))
    chosen = [name for name in map(str, range(5_000)) if one.wants(name, 0)]
    assert 430 < len(chosen) < 570  # 500, and more than three standard deviations (21) on both sides
    assert [name for name in map(str, range(5_000)) if other.wants(name, 0)] == chosen


def test_no_more_than_so_many_lines_are_written_in_an_hour(tmp_path: Path) -> None:
    one = server(tmp_path, log_per_hour=3)
    for number in range(5):
        one.ask(f"r{number}", now=NOW)
    assert len(one.lines()) == 3
    one.ask("later", now=NOW + HOUR_US)
    assert len(one.lines()) == 4


def test_probes_and_releases_without_a_network_leave_no_line(tmp_path: Path) -> None:
    one = server(tmp_path)
    one.ask(probe=True)
    assert one.lines() == []
    two = server(tmp_path / "trending", release="0")
    assert two.ask().item_ids
    assert two.lines() == []


def test_a_log_that_cannot_be_written_costs_the_answer_nothing(tmp_path: Path) -> None:
    one = server(tmp_path)
    folder = one.home.experiments / "trial"
    folder.mkdir(parents=True)
    (folder / "features").write_text("in the way")
    answer = one.ask()
    assert answer.degraded == ()
    assert len(answer.item_ids) == 4
    assert one.log.lost == 1
