"""From accepted tables to a training set and a filled feature store, both as of the same moment.

Aggregates are computed for every midnight of the window, Feast joins them to the impressions by their time, and what it
returns is counted: Feast may lose rows in silence. The split is by whole UTC days of the request's first row, so that
one answer never lies on both sides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omnifeed.config import Config
from omnifeed.engine import DuckDBEngine, Engine
from omnifeed.errors import InputError, IntegrityError
from omnifeed.export.encode import DAY_US, EncodeSpec
from omnifeed.features import spec
from omnifeed.features.aggregates import AS_OF, ITEM_VIEWS, daily_table, item_features, midnight, seen, with_defaults
from omnifeed.features.history import known_events, pack
from omnifeed.features.spec import ITEM_DENSE, USER_DENSE, Source
from omnifeed.features.store import apply, feature_store, push_users
from omnifeed.features.training_set import SPLITS, TrainingSet, split_ends
from omnifeed.home import Home, folder_atomic, write_json
from omnifeed.tables import EVENTS, TS, conform, read_parquet

Progress = Callable[[str, int, int], None]

_DAILY: tuple[Source, ...] = ("user_daily", *ITEM_VIEWS)
_STEPS = 6


def _time(ts: int) -> pa.Scalar:
    return pa.scalar(ts, pa.int64()).cast(TS)


def _stamped(table: pa.Table, now: int) -> pa.Table:
    return table.add_column(1, AS_OF, pa.array([now] * table.num_rows, pa.int64()).cast(TS))


def _write_offline(views: dict[Source, pa.Table], folder: Path) -> None:
    """Feast's offline files; user views get the `_as_of` column of their Feast schema."""
    with folder_atomic(folder) as temporary:
        for source, table in views.items():
            if source.startswith("user_"):
                table = table.append_column(f"{source}_as_of", table[AS_OF].cast(pa.int64()))
            pq.write_table(table, temporary / f"{source}.parquet", compression="zstd")


def impressions(
    engine: Engine, accepted_dir: Path, config: Config, now: int, holdout_users: Collection[str]
) -> tuple[pa.Table, dict[str, int]]:
    """The seen events that may train, in order of (request ts, request_id, position), without features.

    Returns:
        EVENTS columns, `request_ts` (timestamp, of the request's first event) and `split`; and how many seen events
        were left out, by reason.
    """
    events = engine.events([accepted_dir])
    requested = events.mutate(request_ts=events.ts.min().over(group_by="request_id"))
    table = engine.collect(seen(requested).select(*EVENTS.names, "request_ts"))
    table = pa.table(
        {field.name: table[field.name].cast(field.type) for field in (*EVENTS, pa.field("request_ts", TS))}
    )
    train_end, valid_end, test_end = split_ends(config, now)
    first = np.asarray(table["request_ts"].cast(pa.int64()))
    reasons = {
        "history": np.asarray(pc.equal(pc.fill_null(table["arm"], ""), "history")),
        "holdout_user": np.asarray(pc.is_in(table["user_id"], pa.array(sorted(holdout_users), pa.string()))),
        "not_yet_observed": np.asarray(pc.greater_equal(table["observed_ts"], _time(now))),
        "after_last_whole_day": first >= test_end,
    }
    keep = np.ones(len(first), bool)
    left_out = {}
    for reason, mask in reasons.items():
        left_out[reason] = int((keep & mask).sum())
        keep &= ~mask
    split = np.digitize(first[keep], [train_end, valid_end])
    table = table.filter(pa.array(keep)).append_column("split", pa.array(SPLITS, pa.string()).take(pa.array(split)))
    order = [(name, "ascending") for name in ("request_ts", "request_id", "position", "event_id")]
    return table.sort_by(order), left_out


def join_features(store: Any, table: pa.Table) -> pa.Table:
    """Add the daily features as of each row's `request_ts`, by Feast's point-in-time join.

    Args:
        store: a `feast.FeatureStore` with the offline files in place.
        table: user_id, item_id, scenario and request_ts.

    Returns:
        The rows as given, with the USER_DENSE and ITEM_DENSE features as float32; defaults where no row was known.

    Raises:
        IntegrityError: the join returned other rows than it was given.
    """
    keys = pa.table(
        {
            "row": pa.array(range(table.num_rows), pa.int64()),
            **{name: table[name] for name in ("user_id", "item_id", "scenario")},
            AS_OF: table["request_ts"],
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ibis calls DuckDB by an older name
        job = store.get_historical_features(keys.to_pandas(), store.get_feature_service("training_rows"))
        joined = job.to_arrow().sort_by("row")
    if not np.array_equal(np.asarray(joined["row"]), np.arange(table.num_rows)):
        raise IntegrityError(
            f"Feast's point-in-time join returned {joined.num_rows} rows for {table.num_rows} impressions.",
            "Use the duckdb offline store; the file store drops rows without a past feature row.",
        )
    for feature in (*USER_DENSE, *ITEM_DENSE):
        table = table.append_column(feature.name, joined[feature.name].cast(pa.float32()))
    return with_defaults(table, (*USER_DENSE, *ITEM_DENSE))


def materialize(
    accepted_dir: Path,
    out_dir: Path,
    home: Home,
    config: Config,
    now: int,
    holdout_users: frozenset[str],
    progress: Progress = lambda label, done, total: None,
    engine: Engine | None = None,
) -> TrainingSet:
    """Compute features as of every midnight and `now`; write the training set; fill the online store for all users.

    Args:
        accepted_dir: a table set, as `omnifeed.tables.write_tables` lays it out.
        out_dir: replaced, whole or not at all.
        now: UTC microseconds; nothing observed at or after it is used.
        holdout_users: users whose events make no rows; their features go to the online store like everyone's.

    Raises:
        InputError: no event may train, or a split is empty.
        IntegrityError: the point-in-time join lost rows.
    """
    engine = engine or DuckDBEngine()
    progress("aggregates", 0, _STEPS)
    rows, left_out = impressions(engine, accepted_dir, config, now, holdout_users)
    counts: dict[str, int] = {split: int(pc.sum(pc.equal(rows["split"], split)).as_py() or 0) for split in SPLITS}
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        raise InputError(
            f"{accepted_dir}: no impression falls into the {empty[0]} days (left out: {left_out}).",
            "Give a longer log, or lower data.valid_days and data.test_days.",
        )
    items = conform(read_parquet(accepted_dir / "items.parquet"), "items", str(accepted_dir / "items.parquet"))
    users = conform(read_parquet(accepted_dir / "users.parquet"), "users", str(accepted_dir / "users.parquet"))
    events = engine.events([accepted_dir])
    train_end, valid_end, today = split_ends(config, now)
    first = pc.min(rows["request_ts"]).cast(pa.int64()).as_py()
    days = range(midnight(first), today + 1, DAY_US)
    views: dict[Source, pa.Table] = {source: daily_table(engine, events, source, list(days)) for source in _DAILY}

    progress("histories", 1, _STEPS)
    known = engine.collect(known_events(events, now))
    length = config.features.history_length
    views["user_history"] = _stamped(pack(known, length).drop_columns(["history_observed_ts"]), now)
    views["user_profile"] = _stamped(users.select(["user_id", *(f.name for f in spec.of("user_profile"))]), now)

    progress("feature repository", 2, _STEPS)
    _write_offline(views, home.features / "offline")
    apply(home, config)

    progress("point-in-time join", 3, _STEPS)
    rows = join_features(feature_store(home, config), rows)

    progress("training set", 4, _STEPS)
    ts = rows["ts"].cast(pa.int64())
    result = TrainingSet(
        folder=out_dir,
        window=(pc.min(ts).as_py(), pc.max(ts).as_py()),
        train_end=train_end,
        valid_end=valid_end,
        test_end=today,
        now=now,
        scenarios=config.data.scenarios,
        rows=counts,
        left_out=left_out,
        feature_digest=spec.digest(),
        encode=EncodeSpec.from_config(config),
    )
    catalogue_days = range(train_end, today + 1, DAY_US)
    with folder_atomic(out_dir) as folder:
        pq.write_table(rows.drop_columns(["request_ts"]), folder / "rows.parquet", compression="zstd")
        trained = known.filter(pc.is_in(known["user_id"], pc.unique(rows["user_id"])))
        pq.write_table(pack(trained), folder / "history.parquet", compression="zstd")
        pq.write_table(items, folder / "items.parquet", compression="zstd")
        pq.write_table(users, folder / "users.parquet", compression="zstd")
        catalogue = pa.concat_tables(
            _catalogue_day(views, items["item_id"].to_pylist(), config, day) for day in catalogue_days
        )
        pq.write_table(catalogue, folder / "item_features.parquet", compression="zstd")
        write_json(folder / "meta.json", result.to_dict())

    progress("online store", 5, _STEPS)
    latest = views["user_daily"].filter(pc.equal(views["user_daily"][AS_OF], _time(today)))
    push_users(home, views["user_profile"], "user_profile", config)
    push_users(home, latest, "user_daily", config)
    push_users(home, views["user_history"], "user_history", config)
    progress("online store", _STEPS, _STEPS)
    return result


def _catalogue_day(views: dict[Source, pa.Table], item_ids: list[str], config: Config, day: int) -> pa.Table:
    table = item_features(views, item_ids, config.data.scenarios, day)
    return table.add_column(0, "day_ts", pa.array([day] * table.num_rows, pa.int64()).cast(TS))
