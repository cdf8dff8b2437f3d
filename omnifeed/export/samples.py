"""Which requests are golden: real users of the training set over the range of history lengths, and the odd ones.

The odd ones are those that break servers: nobody's history, an item the release does not know, an unknown scenario, a
query in another script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.errors import InputError
from omnifeed.export.affinity import affinity, item_keys
from omnifeed.export.encode import (
    PROFILE,
    Columns,
    EncodeSpec,
    Floats,
    UserRow,
    candidate_dense,
    dense,
    encode_items,
    encode_request,
    unknown_item,
)
from omnifeed.features.spec import ITEM_DENSE, USER_DENSE
from omnifeed.tables import read_parquet

USERS = 8  # real users
ITEMS = 256  # of the catalogue, evenly spaced
CANDIDATES = 100

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: the user encoder's inputs but for hist_row, and what the ranker needs beside the states."""

    case: str
    request: Arrays  # `encode_request`, with hist_row
    candidates: npt.NDArray[np.int64]  # rows of `Samples.items`
    cand_dense: Floats  # [1, K, CANDIDATE_DIMS]


@dataclass(frozen=True, slots=True)
class Samples:
    """Row 0 of the items is the unknown item."""

    items: Arrays
    requests: tuple[Sample, ...]


def golden_samples(training_set: Path, spec: EncodeSpec, now: int) -> Samples:
    """Take requests and items from a training set.

    Args:
        now: time of the requests, UTC microseconds.

    Raises:
        InputError: a table is missing, or there is no item.
    """
    table = read_parquet(training_set / "items.parquet")
    if not table.num_rows:
        raise InputError(f"{training_set / 'items.parquet'} is empty.", "Run the materialize step again.")
    picked = table.take(pa.array(np.unique(np.linspace(0, table.num_rows - 1, ITEMS).astype(np.int64))))
    columns: Columns = {name: picked[name].to_pylist() for name in picked.column_names if name != "product_ids"}
    known, unknown = encode_items(columns, spec), unknown_item(spec)
    items = {name: np.concatenate([unknown[name], known[name]]) for name in known}
    rows = {str(item): row for row, item in enumerate(columns["item_id"], start=1)}
    titles = [title for title in columns["title"] if title] or [""]
    users = _users(training_set)
    scenarios = spec.scenarios
    odd = [
        ("empty", UserRow({}), "nobody", scenarios[0], None),
        ("unknown-item", _with_unknown(users), "nobody", scenarios[-1], titles[0]),
        ("unknown-scenario", UserRow({}), "nobody", "no such scenario", "прямой эфир 直播 لايف"),
    ]
    real = [
        (f"user-{number}", row, user, scenarios[number % len(scenarios)], titles[number % len(titles)])
        for number, (user, row) in enumerate(users)
    ]
    requests = []
    for number, (case, row, user, scenario, query) in enumerate([*real, *odd]):
        asked = query if number % 2 or case.startswith("unknown") else None
        encoded = encode_request(user, scenario, asked, now, row, rows, spec)
        candidates = 1 + (np.arange(min(CANDIDATES, len(rows))) * 7 + number) % len(rows)
        features = _item_features(training_set, picked["item_id"].to_pylist(), scenario)[candidates - 1]
        created = picked["created_ts"].cast(pa.int64()).to_numpy()[candidates - 1]
        live = np.array([kind == "livestream" for kind in columns["kind"]], np.bool_)[candidates - 1]
        before = affinity(item_keys(items), encoded, candidates[None], encoded["scenario"], np.array([now]))[0]
        text, plain = items["text"][candidates], items["item_dense"][candidates]
        cand_dense = candidate_dense(features, created, live, text, encoded["query"][0], now, plain, before)
        requests.append(Sample(case, encoded, candidates, cand_dense[None]))
    return Samples(items, tuple(requests))


def _users(training_set: Path) -> list[tuple[str, UserRow]]:
    """Users at even steps of the range of history lengths, with their features as of their last row."""
    history = read_parquet(training_set / "history.parquet")
    if not history.num_rows:
        return []
    order = np.argsort(pc.list_value_length(history["history_item"]).to_numpy(), kind="stable")
    picked = history.take(pa.array(order[np.unique(np.linspace(0, len(order) - 1, USERS).astype(np.int64))]))
    ids = picked["user_id"].to_pylist()
    names = [feature.name for feature in USER_DENSE]
    # rows.parquet is in the order of request times, so a later row overwrites an earlier one
    rows = read_parquet(training_set / "rows.parquet").select(["user_id", *names])
    rows = rows.filter(pc.is_in(rows["user_id"], pa.array(ids)))
    daily = {row.pop("user_id"): row for row in rows.to_pylist()}
    users = read_parquet(training_set / "users.parquet")
    users = users.filter(pc.is_in(users["user_id"], pa.array(ids))).select(["user_id", *PROFILE])
    profiles = {row.pop("user_id"): row for row in users.to_pylist()}
    result = []
    for row in picked.to_pylist():
        user = row["user_id"]
        values = {**daily.get(user, {}), **profiles.get(user, {})}
        lists = {name: row[name] for name in ("history_item", "history_action", "history_scenario", "history_ts")}
        result.append((user, UserRow({k: v for k, v in values.items() if v is not None}, **lists)))
    return result


def _with_unknown(users: Sequence[tuple[str, UserRow]]) -> UserRow:
    row = users[-1][1] if users else UserRow({})
    return UserRow(
        row.values,
        history_item=[*row.history_item, "no such item"],
        history_action=[*row.history_action, 1],
        history_scenario=[*row.history_scenario, "no such scenario"],
        history_ts=[*row.history_ts, row.history_ts[-1] if row.history_ts else 0],
    )


def _item_features(training_set: Path, items: Sequence[str], scenario: str) -> Floats:
    table = read_parquet(training_set / "item_features.parquet")
    table = table.filter(pc.equal(table["scenario"], scenario))
    if not table.num_rows:
        return dense({}, ITEM_DENSE, len(items))
    table = table.filter(pc.equal(table["day_ts"], pc.max(table["day_ts"])))
    place = {item: row for row, item in enumerate(table["item_id"].to_pylist())}
    picked = table.take(pa.array([place.get(item) for item in items], pa.int64()))
    return dense({feature.name: picked[feature.name].to_numpy() for feature in ITEM_DENSE}, ITEM_DENSE, len(items))
