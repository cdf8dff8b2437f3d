"""What is tried before the validation day reads no row of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omnifeed.export.encode import DAY_US
from omnifeed.features.training_set import SPLITS, TrainingSet
from omnifeed.training.dataset import load_training_set
from tests.training.synthetic import small_config, with_model, write_training_set

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kuairand_ranking as kr


def test_the_earlier_set_is_cut_two_days_before_and_holds_nothing_later(tmp_path: Path) -> None:
    config = with_model(small_config(epochs=1), tasks=kr.TASKS)
    write_training_set(tmp_path / "set", config, users=40)
    now = TrainingSet.load(tmp_path / "set")
    cut = TrainingSet.load(kr.earlier(tmp_path / "set", tmp_path))
    assert (cut.train_end, cut.valid_end, cut.test_end) == tuple(now.train_end - days * DAY_US for days in (2, 1, 0))
    table = pq.read_table(cut.folder / "rows.parquet")
    ts, split = table["ts"].cast(pa.int64()).to_numpy(), np.array(table["split"].to_pylist())
    begins = (-(2**62), cut.train_end, cut.valid_end, cut.test_end)
    for index, name in enumerate(SPLITS):
        assert cut.rows[name] == (split == name).sum() > 0
        assert ((ts[split == name] >= begins[index]) & (ts[split == name] < begins[index + 1])).all()
    assert len(load_training_set(cut.folder, kr.TASKS, SPLITS).requests)
