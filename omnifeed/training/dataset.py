"""The training set as flat arrays: items, histories, requests and impressions, linked by row numbers.

Strings are looked up once; what remains is a few numpy arrays whose size is that of the data, not of Python objects.
Every value equals what `omnifeed.export.encode` gives a server for the same request: history prefix (events observed
before the request), dense features, query match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.errors import InputError
from omnifeed.export.encode import (
    DAY_US,
    GAP_BUCKETS,
    PROFILE,
    EncodeSpec,
    Floats,
    Ints,
    bucket,
    dense,
    encode_items,
    gap_buckets,
    text_vector,
    unknown_item,
)
from omnifeed.features.spec import ITEM_DENSE, USER_DENSE, Feature
from omnifeed.features.training_set import SPLITS, TrainingSet
from omnifeed.tables import read_parquet
from omnifeed.training.packing import Column, events_before, parquet, parts, refuse_repeated, request_parts
from omnifeed.training.windows import affinities

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int8s = npt.NDArray[np.int8]

NEVER = np.iinfo(np.int64).max

#: Outcomes that make an item a positive of retrieval, and what each adds to its weight; hide and report veto it.
ENGAGEMENT = {
    "click": 1.0,
    "long_view": 1.0,
    "like": 1.0,
    "follow": 1.0,
    "share": 1.0,
    "comment": 1.0,
    "cart": 2.0,
    "order": 4.0,
}
VETOES = ("hide", "report")
_ROW = ("request_id", "user_id", "item_id", "scenario", "ts", "query", "split")


@dataclass(frozen=True, slots=True)
class Items:
    """M + 1 items; row 0 is the unknown item."""

    ids: pa.Array  # strings of rows 1..M
    inputs: dict[str, npt.NDArray[Any]]  # of the item encoder, [M + 1, ...]
    created: Ints  # UTC microseconds, 0 for row 0
    live_from: Ints  # NEVER where the item is no livestream or has no start
    live_until: Ints  # NEVER where open-ended
    livestream: Bools

    def rows(self, ids: pa.Array | pa.ChunkedArray) -> Int32s:
        """Row of each id, 0 for an unknown one."""
        return _lookup(ids, self.ids).astype(np.int32)

    def on_air(self, rows: Any, ts: Any) -> Bools:
        """Whether a livestream is on air at a time; false for everything else. Broadcasts."""
        return np.asarray((self.live_from[rows] <= ts) & (ts < self.live_until[rows]))

    def available(self, rows: Any, ts: Any) -> Bools:
        """Whether an item may be shown at a time: created by then and, a livestream, on air. Broadcasts."""
        return np.asarray((self.created[rows] <= ts) & (~self.livestream[rows] | self.on_air(rows, ts)))


@dataclass(frozen=True, slots=True)
class Histories:
    """Events of U users, one after the other, each user's in the order in which they became known."""

    offsets: Ints  # [U + 1]
    item: Int32s  # row in Items
    action: Int8s
    scenario: Int8s
    gap: Int8s  # bucket of the gap to the event before in the list, whatever the window
    ts: Ints  # UTC microseconds


@dataclass(frozen=True, slots=True)
class Requests:
    """R requests in the order of time; the impressions of request r are rows first[r]..first[r + 1].

    A request's time is that of its first impression.
    """

    key: Ints  # digest of request_id; `packing.request_ids` reads the id itself
    split: Int8s  # index in SPLITS
    user: Int32s  # row in Histories
    ts: Ints
    scenario: Ints  # encode's scenario id
    prefix: Ints  # events of the user observed before ts
    user_dense: Floats  # [R, USER_DIMS]
    query: Int32s  # row in queries, 0 for none
    first: Ints  # [R + 1]
    now_gap: Ints
    hour: Ints

    def __len__(self) -> int:
        return len(self.ts)

    def of(self, split: str) -> Ints:
        """Rows of the requests of one split."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def shown(self, split: str) -> Bools:
        """Whether each impression is of a request of one split."""
        return np.repeat(self.split == SPLITS.index(split), np.diff(self.first))


@dataclass(frozen=True, slots=True)
class Impressions:
    """N viewed impressions."""

    item: Int32s  # row in Items
    dense: Floats  # [N, CANDIDATE_DIMS]
    labels: Int8s  # [N, tasks]: 1, 0, or -1 where not known
    engagement: Floats  # weight as a retrieval positive, 0 for none


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Everything of one or more splits that a model reads."""

    spec: EncodeSpec
    tasks: tuple[str, ...]
    items: Items
    user_ids: pa.Array
    user_bucket: Ints  # [U]
    profile: Ints  # [U, 4]
    histories: Histories
    requests: Requests
    impressions: Impressions
    queries: Floats  # [Q + 1, text_dims], row 0 zeros

    def with_tasks(self, keep: Sequence[int]) -> TrainingData:
        """The same data with these columns of the labels only."""
        shown = replace(self.impressions, labels=np.ascontiguousarray(self.impressions.labels[:, list(keep)]))
        return replace(self, tasks=tuple(self.tasks[index] for index in keep), impressions=shown)


def load_training_set(
    folder: Path,
    tasks: Sequence[str],
    splits: Sequence[str],
    spec: EncodeSpec | None = None,
    scratch: Path | None = None,
) -> TrainingData:
    """Read a training set's rows of these splits, part by part.

    Args:
        folder: what materialize wrote: rows, history, items and users as parquet, and meta.json.
        tasks: outcome columns that become labels, in this order.
        splits: of SPLITS.
        spec: the encoding; by default the one that the training set was made for.
        scratch: a folder on whose disk histories, impressions and queries lie as memory maps; by default in memory.

    Raises:
        InputError: a file is missing or unreadable, or a task is no column of the rows.
    """
    spec = spec or TrainingSet.load(folder).encode
    path = folder / "rows.parquet"
    stored = parquet(path).schema_arrow.names
    for task in tasks:
        if task not in stored:
            raise InputError(f"Task {task!r} is no column of {path}.", "Correct model.tasks.")
    features = [feature.name for feature in (*USER_DENSE, *ITEM_DENSE) if feature.name in stored]
    columns = [*dict.fromkeys((*_ROW, *ENGAGEMENT, *VETOES, *tasks, *features))]
    items = encode_catalogue(read_parquet(folder / "items.parquet"), spec)
    histories, observed, known = _histories(folder / "history.parquet", items, spec, scratch)
    user_ids = known
    for part in parts(path, ["user_id"]):
        user_ids = pc.unique(pa.concat_arrays([user_ids, _flat(pc.unique(part["user_id"]))]))
    histories = replace(histories, offsets=np.pad(histories.offsets, (0, len(user_ids) - len(known)), "edge"))
    bucket_of, profile = _users(user_ids, read_parquet(folder / "users.parquet"), spec)
    asked = {field.name: Column(scratch) for field in fields(Requests)}
    shown = {field.name: Column(scratch) for field in fields(Impressions)}
    texts = Column(scratch)
    texts.append(np.zeros((1, spec.text_dims), np.float32))
    for rows in request_parts(path, columns, splits):
        requests, queries = _requests(rows, user_ids, histories, observed, spec)
        impressions = _impressions(rows, tasks, items, requests, queries, histories, spec.history_length)
        query = np.where(requests.query > 0, requests.query + len(texts) - 1, 0).astype(np.int32)
        requests = replace(requests, query=query, first=requests.first[:-1] + len(shown["item"]))
        texts.append(queries[1:])
        for part, packed in ((requests, asked), (impressions, shown)):
            for name, column in packed.items():
                column.append(getattr(part, name))
    asked["first"].append(np.array([len(shown["item"])]))
    packed_requests = Requests(**{name: column.array() for name, column in asked.items()})
    refuse_repeated(path, splits, packed_requests.key)
    return TrainingData(
        spec=spec,
        tasks=tuple(tasks),
        items=items,
        user_ids=user_ids,
        user_bucket=bucket_of,
        profile=profile,
        histories=histories,
        requests=packed_requests,
        impressions=Impressions(**{name: column.array() for name, column in shown.items()}),
        queries=texts.array(),
    )


def encode_catalogue(table: pa.Table, spec: EncodeSpec) -> Items:
    """Encode a canonical items table, the unknown item before it."""
    names = ("item_id", "author_id", "kind", "category", "title", "price", "duration_s")
    known = encode_items({name: table[name].to_pylist() for name in names}, spec)
    unknown = unknown_item(spec)
    livestream = np.append(False, _flat(pc.fill_null(pc.equal(table["kind"], "livestream"), False)))
    live_from = np.append(NEVER, micros(table["live_from"], NEVER))
    return Items(
        ids=_flat(table["item_id"]),
        inputs={name: np.concatenate([unknown[name], value]) for name, value in known.items()},
        created=np.append(0, micros(table["created_ts"], 0)),
        live_from=np.where(livestream, live_from, NEVER),
        live_until=np.append(NEVER, micros(table["live_until"], NEVER)),
        livestream=livestream,
    )


def dense_columns(table: pa.Table, features: Sequence[Feature]) -> Floats:
    """`encode.dense` of a table's columns, float32 [rows, len(features)]."""
    columns = {
        feature.name: table[feature.name].cast(pa.float64()).to_numpy()
        for feature in features
        if feature.name in table.column_names
    }
    return dense(columns, features, table.num_rows)


def candidate_columns(
    item_features: Floats, items: Items, rows: Int32s, ts: Ints, queries: Floats, query: Int32s, affinity: Floats
) -> Floats:
    """`encode.candidate_dense` for N impressions at once, each with its own time and query.

    Args:
        item_features: float32 [N, len(ITEM_DENSE)].
        rows: row of each item. ts: UTC microseconds [N]. query: row in `queries` of each, 0 for none.
        affinity: float32 [N, len(AFFINITY_FEATURES)].

    Returns:
        float32 [N, CANDIDATE_DIMS].
    """
    match = np.zeros(len(rows), np.float64)
    asked = np.flatnonzero(query)
    text = items.inputs["text"]
    for start in range(0, len(asked), 8192):
        part = asked[start : start + 8192]
        match[part] = (text[rows[part]].astype(np.float64) * queries[query[part]].astype(np.float64)).sum(1)
    age = np.log1p(np.maximum(ts - items.created[rows], 0) / DAY_US)
    extra = np.stack([age, items.on_air(rows, ts).astype(np.float64), match], 1).astype(np.float32)
    return np.concatenate([item_features, extra, items.inputs["item_dense"][rows], affinity], axis=1)


def micros(column: pa.ChunkedArray, null: int) -> Ints:
    """A timestamp[us] column as int64, nulls replaced."""
    return np.asarray(pc.fill_null(column.cast(pa.int64()), null).to_numpy(), np.int64)


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _lookup(values: pa.Array | pa.ChunkedArray, vocabulary: pa.Array) -> Ints:
    """1 + index in the vocabulary, 0 where absent."""
    index = pc.fill_null(pc.index_in(values, value_set=vocabulary), -1)
    return np.asarray(index.to_numpy() if isinstance(index, pa.ChunkedArray) else index, np.int64) + 1


def _histories(path: Path, items: Items, spec: EncodeSpec, scratch: Path | None) -> tuple[Histories, Ints, pa.Array]:
    """The histories, when each event became known, and the users in their order."""
    names = ("item", "action", "scenario", "ts", "observed_ts")
    packed = {name: Column(scratch) for name in (*names, "gap")}
    users, lengths = [], []
    scenarios = pa.array(spec.scenarios, pa.string())
    last = np.zeros(0, np.int64)
    for part in parts(path, ["user_id", *(f"history_{name}" for name in names)], spec.history_length):
        users.append(_flat(part["user_id"]))
        lists = {name: _flat(part[f"history_{name}"]) for name in names}
        lengths.append(np.asarray(pc.fill_null(pc.list_value_length(lists["item"]), 0), np.int64))
        ts = np.asarray(lists["ts"].flatten(), np.int64)
        gap = np.diff(ts, prepend=last if len(last) else ts[:1])
        last = ts[-1:] if len(ts) else last
        packed["item"].append(items.rows(lists["item"].flatten()))
        packed["action"].append(np.asarray(lists["action"].flatten()).astype(np.int8))
        packed["scenario"].append(_lookup(lists["scenario"].flatten(), scenarios).astype(np.int8))
        packed["gap"].append(gap_buckets(gap).astype(np.int8))
        packed["ts"].append(ts)
        packed["observed_ts"].append(np.asarray(lists["observed_ts"].flatten(), np.int64))
    arrays = {name: column.array() for name, column in packed.items()}
    observed = arrays.pop("observed_ts")
    offsets = np.append(0, np.concatenate(lengths).cumsum())
    return Histories(offsets=offsets, **arrays), observed, pa.concat_arrays(users)


def _users(user_ids: pa.Array, users: pa.Table, spec: EncodeSpec) -> tuple[Ints, Ints]:
    row = _lookup(user_ids, _flat(users["user_id"]))
    profile = np.zeros((len(user_ids), len(PROFILE)), np.int64)
    for column, name in enumerate(PROFILE):
        values = _flat(users[name]).dictionary_encode()
        hashed = np.array(
            [0, *(bucket(value, spec.profile_buckets, f"{spec.salt}{name}") for value in values.dictionary.to_pylist())]
        )
        code = np.append(0, np.asarray(pc.fill_null(values.indices, -1), np.int64) + 1)
        profile[:, column] = hashed[code[row]]
    buckets = [bucket(user, spec.user_buckets, spec.salt + "user") for user in user_ids.to_pylist()]
    return np.array(buckets, np.int64), profile


def _requests(
    rows: pa.Table, user_ids: pa.Array, histories: Histories, observed: Ints, spec: EncodeSpec
) -> tuple[Requests, Floats]:
    ids = _flat(rows["request_id"]).dictionary_encode()
    code = np.asarray(ids.indices, np.int64)
    starts = np.flatnonzero(np.diff(code, prepend=-1))
    if len(starts) != len(ids.dictionary):
        raise InputError("rows.parquet is not grouped by request_id.", "Write the training set again.")
    heads = rows.take(pa.array(starts))
    ts = np.minimum.reduceat(micros(rows["ts"], 0), starts) if len(starts) else np.zeros(0, np.int64)
    user = _lookup(heads["user_id"], user_ids) - 1
    prefix = events_before(observed, histories.offsets[user], histories.offsets[user + 1], ts)
    queries = _flat(heads["query"]).dictionary_encode()
    vectors = [text_vector(query, spec.text_dims, spec.salt) for query in queries.dictionary.to_pylist()]
    last = np.maximum(histories.offsets[user] + prefix - 1, 0)
    known = histories.ts[last] if len(histories.ts) else np.zeros(len(ts), np.int64)
    return Requests(
        key=np.array([bucket(one, 1 << 63, "request") for one in ids.dictionary.to_pylist()], np.int64),
        split=(_lookup(heads["split"], pa.array(SPLITS)) - 1).astype(np.int8),
        user=user.astype(np.int32),
        ts=ts,
        scenario=_lookup(heads["scenario"], pa.array(spec.scenarios, pa.string())),
        prefix=prefix,
        user_dense=dense_columns(heads, USER_DENSE),
        query=np.asarray(pc.fill_null(queries.indices, -1)).astype(np.int32) + 1,
        first=np.append(starts, rows.num_rows),
        now_gap=np.where(prefix > 0, gap_buckets(ts - known), GAP_BUCKETS - 1),
        hour=ts % DAY_US // 3_600_000_000,
    ), np.concatenate(
        [np.zeros((1, spec.text_dims), np.float32), np.array(vectors, np.float32).reshape(-1, spec.text_dims)]
    )


def _impressions(
    rows: pa.Table,
    tasks: Sequence[str],
    items: Items,
    requests: Requests,
    queries: Floats,
    histories: Histories,
    length: int,
) -> Impressions:
    count = rows.num_rows
    item = items.rows(rows["item_id"])
    of_request = np.repeat(np.arange(len(requests)), np.diff(requests.first))
    labels = np.empty((count, len(tasks)), np.int8)
    for column, task in enumerate(tasks):
        labels[:, column] = np.asarray(pc.fill_null(rows[task].cast(pa.int8()), -1).to_numpy(), np.int8)
    engagement = np.zeros(count, np.float32)
    for name, weight in ENGAGEMENT.items():
        engagement += np.float32(weight) * np.asarray(pc.fill_null(rows[name], False).to_numpy(zero_copy_only=False))
    for name in VETOES:
        engagement[np.asarray(pc.fill_null(rows[name], False).to_numpy(zero_copy_only=False), bool)] = 0
    engagement[item == 0] = 0
    return Impressions(
        item=item,
        dense=candidate_columns(
            dense_columns(rows, ITEM_DENSE),
            items,
            item,
            requests.ts[of_request],
            queries,
            requests.query[of_request],
            affinities(items, histories, requests, item, length),
        ),
        labels=labels,
        engagement=engagement,
    )
