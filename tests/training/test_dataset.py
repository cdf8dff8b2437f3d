"""The arrays hold what a server would encode for the same request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from omnifeed.errors import InputError
from omnifeed.export.affinity import affinity, item_keys
from omnifeed.export.encode import (
    ITEM_DENSE,
    PROFILE,
    USER_DENSE,
    UserRow,
    candidate_dense,
    dense,
    encode_items,
    encode_request,
)
from omnifeed.features.training_set import SPLITS
from omnifeed.training.batching import candidates, request_inputs
from omnifeed.training.dataset import TrainingData, load_training_set
from omnifeed.training.packing import request_ids

TASKS = ("click", "long_view", "cart", "order", "hide")


@pytest.fixture(scope="module")
def data(training_set: Path) -> TrainingData:
    return load_training_set(training_set, TASKS, ("train", "valid", "test"))


def serving_view(folder: Path, data: TrainingData, request: int) -> tuple[dict, dict]:  # type: ignore[type-arg]
    """The request's inputs made the way a server makes them, from strings and one user row."""
    rows = pq.read_table(folder / "rows.parquet")
    name = request_ids(folder / "rows.parquet", SPLITS, np.array([request]))[0]
    rows = rows.filter(pc.equal(rows["request_id"], name)).to_pylist()
    head = rows[0]
    history = pq.read_table(folder / "history.parquet")
    mine = history.filter(pc.equal(history["user_id"], head["user_id"])).to_pylist()[0]
    users = pq.read_table(folder / "users.parquet")
    user = users.filter(pc.equal(users["user_id"], head["user_id"])).to_pylist()[0]
    now = int(data.requests.ts[request])
    known = [n for n, ts in enumerate(mine["history_observed_ts"]) if ts < now][-data.spec.history_length :]
    row = UserRow(
        {**{name: user[name] for name in PROFILE}, **{f.name: head[f.name] for f in USER_DENSE}},
        *([mine[f"history_{name}"][n] for n in known] for name in ("item", "action", "scenario", "ts")),
    )
    item_rows = {item: n for n, item in enumerate(data.items.ids.to_pylist(), start=1)}
    inputs = encode_request(head["user_id"], head["scenario"], head["query"], now, row, item_rows, data.spec)
    items = {item["item_id"]: item for item in pq.read_table(folder / "items.parquet").to_pylist()}
    shown = [items[row["item_id"]] for row in rows]
    features = dense({f.name: [row[f.name] for row in rows] for f in ITEM_DENSE}, ITEM_DENSE, len(rows))
    stamp = pq.read_table(folder / "items.parquet")["created_ts"].cast("int64").to_pylist()
    created = dict(zip(items, stamp, strict=True))
    text = encode_items({"item_id": list(items), "title": [i["title"] for i in items.values()]}, data.spec)["text"]
    of_item = dict(zip(items, text, strict=True))
    names = ("item_id", "author_id", "category", "price", "duration_s")
    encoded = encode_items({name: [item[name] for item in items.values()] for name in names}, data.spec)
    keys = np.concatenate([np.zeros((1, 2), np.int64), item_keys(encoded)])
    candidate_rows = np.array([[item_rows[item["item_id"]] for item in shown]])
    live = [item["kind"] == "livestream" and created[item["item_id"]] <= now for item in shown]
    dense_of = candidate_dense(
        features,
        np.array([created[item["item_id"]] for item in shown]),
        np.array(live),
        np.stack([of_item[item["item_id"]] for item in shown]),
        inputs["query"][0],
        now,
        encoded["item_dense"][candidate_rows[0] - 1],
        affinity(keys, inputs, candidate_rows, inputs["scenario"], np.array([now]))[0],
    )
    return inputs, {"cand_dense": dense_of, "item": np.array([item_rows[item["item_id"]] for item in shown])}


def test_every_request_equals_what_a_server_encodes(training_set: Path, data: TrainingData) -> None:
    rng = np.random.default_rng(1)
    longest = int(np.argmax(data.requests.prefix))
    empty = int(np.argmin(data.requests.prefix))
    assert data.requests.prefix[empty] == 0
    searches = np.flatnonzero(data.requests.query)[:5].tolist()
    for request in [longest, empty, *searches, *rng.choice(len(data.requests), 12, replace=False).tolist()]:
        served, shown = serving_view(training_set, data, request)
        packed = request_inputs(data, np.array([request]))
        assert packed.keys() == served.keys()
        for name, value in served.items():
            np.testing.assert_array_equal(packed[name], value, err_msg=f"{name} of request {request}")
        mine = candidates(data, np.array([request]))
        np.testing.assert_array_equal(mine["item"][0], shown["item"])
        np.testing.assert_array_equal(mine["cand_dense"][0], shown["cand_dense"])


def test_the_history_ends_where_the_request_begins(training_set: Path, data: TrainingData) -> None:
    history = pq.read_table(training_set / "history.parquet")
    observed = np.concatenate([np.array(x.as_py()) for x in history["history_observed_ts"]])
    start = data.histories.offsets[data.requests.user]
    for request in range(len(data.requests)):
        prefix, t = int(data.requests.prefix[request]), data.requests.ts[request]
        mine = observed[start[request] : data.histories.offsets[data.requests.user[request] + 1]]
        assert prefix == (mine < t).sum()


def test_an_unknown_label_is_minus_one_and_a_rejected_item_is_no_positive(training_set: Path, tmp_path: Path) -> None:
    for path in training_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = pq.read_table(tmp_path / "rows.parquet")
    clicked = int(np.flatnonzero(rows["click"].to_numpy())[0])
    hide = rows["hide"].to_pylist()
    hide[clicked] = True
    hide[clicked + 1] = None
    rows = rows.set_column(rows.column_names.index("hide"), "hide", [hide])
    pq.write_table(rows, tmp_path / "rows.parquet")
    data = load_training_set(tmp_path, TASKS, ("train", "valid", "test"))
    assert data.impressions.labels[clicked + 1, TASKS.index("hide")] == -1
    assert data.impressions.engagement[clicked] == 0


def test_a_split_holds_only_its_own_requests(training_set: Path) -> None:
    meta = json.loads((training_set / "meta.json").read_text())
    data = load_training_set(training_set, TASKS, ("train",))
    assert len(data.impressions.item) == meta["rows"]["train"]
    assert (data.requests.ts < meta["train_end"]).all()


def test_a_task_that_is_no_column_is_named(training_set: Path) -> None:
    with pytest.raises(InputError, match="'purr'"):
        load_training_set(training_set, ("click", "purr"), ("train",))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"meta\.json"):
        load_training_set(tmp_path, TASKS, ("train",))
