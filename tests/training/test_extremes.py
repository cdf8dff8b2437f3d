"""Training sets at the edge: a scenario without rows, a user with 100,000 events, a user with none."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from omnifeed.features.training_set import TrainingSet
from omnifeed.home import write_json
from omnifeed.model.network import load_network
from omnifeed.training.batching import sequences
from omnifeed.training.dataset import load_training_set
from omnifeed.training.loop import train

from .synthetic import SCENARIOS, small_config

CONFIG = small_config(epochs=1)
LISTS = ("item", "action", "scenario", "ts", "observed_ts")


@pytest.fixture
def folder(training_set: Path, tmp_path: Path) -> Path:
    shutil.copytree(training_set, tmp_path / "set")
    return tmp_path / "set"


def test_a_scenario_without_rows_answers_as_the_unknown_one(folder: Path, tmp_path: Path) -> None:
    meta = TrainingSet.load(folder)
    names = (*SCENARIOS, "radio")
    write_json(folder / "meta.json", replace(meta, encode=replace(meta.encode, scenarios=names)).to_dict())
    train(folder, tmp_path / "out", CONFIG)
    ranker = load_network(tmp_path / "out").ranker
    assert all(torch.isfinite(tensor).all() for tensor in ranker.state_dict().values())
    for fitted in (ranker.calibration_scale, ranker.calibration_bias):
        assert fitted[len(names)].equal(fitted[0])
        assert not fitted[1].equal(fitted[0])


def test_a_user_with_100_000_events_is_cut_into_windows(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    history = pq.read_table(folder / "history.parquet")
    busy = history["user_id"][0].as_py()
    count = 100_000
    times = np.sort(rng.integers(*TrainingSet.load(folder).window, count))
    long = {
        "item": rng.choice(pq.read_table(folder / "items.parquet")["item_id"].to_pylist(), count),
        "action": rng.integers(1, 3, count),
        "scenario": rng.choice(SCENARIOS, count),
        "ts": times,
        "observed_ts": times + 1,
    }
    row = {"user_id": pa.array([busy]), **{f"history_{name}": pa.array([long[name].tolist()]) for name in LISTS}}
    others = history.filter(pc.not_equal(history["user_id"], busy))
    pq.write_table(pa.concat_tables([pa.table(row).cast(history.schema), others]), folder / "history.parquet")
    data = load_training_set(folder, CONFIG.model.tasks, ("train",))
    packed = sequences(data, data.requests.of("train"))
    mine = packed.user == data.user_ids.to_pylist().index(busy)
    assert mine.sum() > 1
    assert packed.stop[mine].max() > 10_000
    assert (packed.stop - packed.start).max() <= 2 * data.spec.history_length
    assert train(folder, tmp_path / "out", CONFIG).steps > 0


def test_a_user_without_events_is_trained_by_the_prefix_alone(folder: Path, tmp_path: Path) -> None:
    history = pq.read_table(folder / "history.parquet")
    new = history["user_id"].to_pylist()[:20]
    known = history.filter(pc.invert(pc.is_in(history["user_id"], pa.array(new))))
    pq.write_table(known, folder / "history.parquet")
    data = load_training_set(folder, CONFIG.model.tasks, ("train",))
    silent = np.isin(data.requests.user, [data.user_ids.to_pylist().index(user) for user in new])
    assert silent.any()
    assert (data.requests.prefix[silent] == 0).all()
    assert train(folder, tmp_path / "out", CONFIG).steps > 0
