"""PLE keeps its groups apart, and the networks by tab answer every impression once."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from omnifeed.config import Config
from omnifeed.evaluation.metrics import AreaUnderCurve
from omnifeed.export.encode import CANDIDATE_DIMS, USER_DIMS, EncodeSpec
from tests.training.synthetic import SCENARIOS, small_config, with_model, write_training_set

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kuairand_baselines as baselines
import kuairand_drift as drift
import kuairand_ple as ple
import kuairand_ranking as kr

SPEC = EncodeSpec.from_config(small_config())
ROWS = 3000


def test_a_group_reads_its_own_experts_and_the_shared_ones() -> None:
    torch.manual_seed(0)
    level = ple.Extraction(groups=3, experts=2, inside=5, width=4)
    level(torch.randn(7, 4, 5))[:, 1].sum().backward()
    reached = level.weight.grad.abs().sum((1, 2, 3)) > 0
    assert reached.tolist() == [False, True, False, True]


def impressions(rng: np.random.Generator) -> ple.Inputs:
    """In the first tab a feature means a click, in the second no click; who did something with the item returns."""
    dense = np.zeros((ROWS, CANDIDATE_DIMS + USER_DIMS), np.float32)
    dense[:, 0] = rng.normal(size=ROWS)
    ids = rng.integers(1, 4, (ROWS, 4))
    history = np.zeros((ROWS, 3, 4), np.int64)
    back = rng.random(ROWS) < 0.5
    history[back] = 2
    history[:, 1] = rng.integers(1, 4, (ROWS, 4))
    scenario = rng.integers(1, 3, ROWS)
    click = np.where(scenario == 1, dense[:, 0], -dense[:, 0]) > 0
    labels = np.stack([click, back], 1).astype(np.int8)
    return ple.Inputs(dense, ids, scenario, np.zeros(ROWS, np.int64), history, labels)


@pytest.mark.parametrize("groups", ["task", "tab"])
def test_what_differs_by_tab_is_learned_with_either_kind_of_group(groups: str) -> None:
    small = ple.Settings(experts=2, width=16, id_width=8, id_dropout=0.0, lr=1e-2, epochs=6, batch=256)
    settings = dataclasses.replace(small, groups=groups)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    train, valid = impressions(rng), impressions(rng)
    model, _ = ple.fit(settings, SPEC, [1], train, valid, seed=0)
    logits = ple.logits_of(model, valid)
    areas = [AreaUnderCurve.of(logits[:, task], valid.labels[:, task], np.arange(ROWS)).value() for task in (0, 1)]
    assert min(areas) > 0.9, areas


def test_an_empty_history_reads_as_nothing() -> None:
    settings = ple.Settings(id_width=8)
    model = ple.Ple(settings, SPEC, 2, [1], impressions(np.random.default_rng(0)))
    assert not model.read(torch.randn(3, 8), torch.zeros(3, 4, 4, dtype=torch.int64)).any()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of a small training set in tmp_path / "set", one of whose scenarios is a tab with a network of its own."""
    config = with_model(small_config(epochs=1), tasks=("click", "long_view"))
    write_training_set(tmp_path / "set", config, users=40)
    monkeypatch.setattr(kr, "MACRO", SCENARIOS[:1])
    monkeypatch.setattr(kr, "MIN_ROWS", 50)
    monkeypatch.setattr(kr, "config_of", lambda: config)
    monkeypatch.setattr(kr, "prepare", lambda folder, config: (folder / "accepted", tmp_path / "set"))
    return config


@pytest.mark.parametrize("benchmark", [baselines, drift], ids=lambda module: module.__name__)
def test_the_test_week_gives_every_model_its_rows_and_its_difference(
    benchmark: ModuleType, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kr.train_network(tmp_path / "set", tmp_path / "seeds" / "0", config)
    written: dict[str, list[dict[str, Any]]] = {}
    monkeypatch.setattr(benchmark, "write_result", lambda name, title, rows, **_: written.update({name: rows}))
    benchmark.test(tmp_path, 1)
    (rows,) = written.values()
    found = {(row["metric"], row.get("model"), row.get("scenario")): row["value"] for row in rows}
    others = {model for _, model, _ in found if model and "network - " not in model} - {"network"}
    assert len(others) == (5 if benchmark is baselines else 3)
    for other in others:
        for metric in ("auc_click", "macro_auc_long_view", "calibration_click"):
            value, ours = found[metric, other, "all"], found[metric, "network", "all"]
            assert found[metric, f"network - {other}", "all"] == pytest.approx(ours - value)
        learned = "item rate" not in other
        assert not learned or found["auc_click", other, "all"] > 0.55, other


def test_every_impression_is_answered_by_the_network_of_its_tab(config: Config, tmp_path: Path) -> None:
    answers, epochs = baselines.per_tab_answers(tmp_path / "set", tmp_path, config, "test", tmp_path / "kept")
    rows = kr.Rows.of(tmp_path / "set", "test")
    assert set(epochs) == {SCENARIOS[0], baselines.OTHERS}
    for tab, own in ((SCENARIOS[0], rows.scenario == SCENARIOS[0]), (baselines.OTHERS, rows.scenario != SCENARIOS[0])):
        part = baselines.tab_set(tmp_path / "set", tmp_path, tab)
        assert set(pq.read_table(part / "rows.parquet")["scenario"].unique().to_pylist()) == set(rows.scenario[own])
        alone = kr.network_answers(part, tmp_path / "kept" / part.name, config, "test")
        np.testing.assert_array_equal(answers["click"][own], alone["click"])
