"""A training set read in parts, on disk or in memory, is the one read at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.errors import InputError
from omnifeed.training import packing
from omnifeed.training.dataset import TrainingData, load_training_set
from omnifeed.training.packing import events_before, moments, parts, refuse_repeated, request_ids

TASKS = ("click", "order")


def assert_same(first: TrainingData, second: TrainingData) -> None:
    assert first.user_ids.equals(second.user_ids)
    for part in ("histories", "requests", "impressions"):
        for field in fields(getattr(first, part)):
            if field.name == "query":
                continue
            left, right = (getattr(getattr(data, part), field.name) for data in (first, second))
            np.testing.assert_array_equal(left, right, err_msg=f"{part}.{field.name}")
    asked = (data.queries[data.requests.query] for data in (first, second))  # rows differ where parts repeat a query
    np.testing.assert_array_equal(*asked)


@pytest.mark.parametrize("part", [1, 7, 1000])
def test_parts_of_any_size_and_memory_maps_give_the_same_arrays(
    training_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    whole = load_training_set(training_set, TASKS, ("train", "valid"))
    small = tmp_path / "set"
    small.mkdir()
    for path in training_set.iterdir():
        (small / path.name).write_bytes(path.read_bytes())
    rows = pq.read_table(training_set / "rows.parquet")
    if part < 10:  # a few requests are enough where every row is a part
        rows = rows.slice(0, 400)
        pq.write_table(rows, small / "rows.parquet")
        whole = load_training_set(small, TASKS, ("train", "valid"))
    monkeypatch.setattr(packing, "PART", part)
    assert_same(whole, load_training_set(small, TASKS, ("train", "valid")))
    mapped = load_training_set(small, TASKS, ("train", "valid"), scratch=tmp_path)
    assert_same(whole, mapped)
    assert isinstance(mapped.histories.item, np.memmap)
    assert isinstance(mapped.impressions.dense, np.memmap)
    assert isinstance(mapped.requests.ts, np.memmap)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # no file is left to remove


def test_a_request_in_two_places_is_refused_however_far_apart(
    training_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in training_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = pq.read_table(tmp_path / "rows.parquet")
    train = rows.filter(pc.equal(rows["split"], "train"))
    pq.write_table(pa.concat_tables([train, train.slice(0, 1)]), tmp_path / "rows.parquet")
    monkeypatch.setattr(packing, "PART", 100)
    name = train["request_id"][0].as_py()
    with pytest.raises(InputError, match=f"not grouped by request_id: {name} stands in 2 places"):
        load_training_set(tmp_path, TASKS, ("train",))


def test_ids_are_read_again_in_the_order_that_is_asked_for(training_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, splits = training_set / "rows.parquet", ("train", "valid")
    rows = pq.read_table(path, columns=["request_id", "split"])
    ids = pc.unique(rows.filter(pc.is_in(rows["split"], pa.array(splits)))["request_id"]).to_pylist()
    monkeypatch.setattr(packing, "PART", 100)
    wanted = np.array([len(ids) - 1, 0, 57, 1])
    assert request_ids(path, splits, wanted) == [ids[row] for row in wanted]
    assert request_ids(path, splits, wanted[:0]) == []
    refuse_repeated(path, splits, np.zeros(len(ids), np.int64))  # digests that meet are no repeated request


def test_reading_in_parts_holds_a_part_and_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(1_000_000)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"value": values}), path, row_group_size=100_000, use_dictionary=False)
    monkeypatch.setattr(packing, "PART", 50_000)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in parts(path, ["value"])]
    assert len(held) == 21
    assert max(held) < path.stat().st_size / 4


@pytest.mark.parametrize("name", ["rows", "history"])
def test_a_file_that_is_missing_or_damaged_is_named(training_set: Path, tmp_path: Path, name: str) -> None:
    for path in training_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"{name}.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match=rf"{name}\.parquet is not a readable"):
        load_training_set(tmp_path, TASKS, ("train",))
    (tmp_path / f"{name}.parquet").unlink()
    with pytest.raises(InputError, match=rf"{name}\.parquet does not exist"):
        load_training_set(tmp_path, TASKS, ("train",))


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5), st.integers(-1, 10))
def test_bisection_counts_the_events_before(lists: list[list[int]], ts: int) -> None:
    times = np.array([value for values in lists for value in sorted(values)], np.int64)
    offsets = np.append(0, np.cumsum([len(values) for values in lists]))
    found = events_before(times, offsets[:-1], offsets[1:], np.full(len(lists), ts))
    assert found.tolist() == [sum(value < ts for value in values) for values in lists]


def test_moments_in_blocks_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PART", 10)
    values = np.random.default_rng(0).normal(3, 2, (101, 4)).astype(np.float32)
    rows = np.arange(0, 101, 2)
    mean, deviation = moments(values, rows)
    np.testing.assert_allclose(mean, values[rows].mean(0, dtype=np.float64))
    np.testing.assert_allclose(deviation, values[rows].std(0, dtype=np.float64), rtol=1e-6)
