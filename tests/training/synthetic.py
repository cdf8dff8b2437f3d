"""A training set in the layout that materialize writes, drawn from users with a taste for categories.

What is shown and what is clicked follow the taste, clicks also a position bias and the scenario; search requests type
a word of a title. Aggregates are those of the days before, computed here in the simplest way. It is no market: worlds
and real logs are tested elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omnifeed.config import Config, DataConfig, FeatureConfig, ModelConfig, TrainingConfig
from omnifeed.export.encode import DAY_US, EncodeSpec, action_ids
from omnifeed.features.spec import FEATURES, ITEM_DENSE, USER_DENSE, digest
from omnifeed.features.training_set import TrainingSet
from omnifeed.home import write_json
from omnifeed.tables import EVENTS, ITEMS, OUTCOMES, TS, USERS

START = 1_772_409_600_000_000  # 2026-03-02 00:00 UTC
SCENARIOS = ("livestream", "short_video", "search")
WORDS = ("red", "blue", "shoe", "lamp", "tea", "phone", "coat", "ring", "book", "chair")
CATEGORIES = 6


def small_config(**training: object) -> Config:
    """A configuration whose training takes seconds."""
    return Config(
        data=DataConfig(scenarios=SCENARIOS),
        features=FeatureConfig(
            id_buckets=512, author_buckets=64, category_buckets=64, user_buckets=512, profile_buckets=32, text_dims=32
        ),
        model=ModelConfig(width=16, blocks=1, heads=2),
        training=TrainingConfig(
            **{"epochs": 2, "batch_tokens": 512, "negatives": 64, "threads": 1, "device": "cpu", **training}  # type: ignore[arg-type]
        ),
    )


def with_model(config: Config, **model: object) -> Config:
    return replace(config, model=replace(config.model, **model))  # type: ignore[arg-type]


def times(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.int64), pa.int64()).cast(TS)


def write_training_set(
    folder: Path,
    config: Config,
    users: int = 150,
    items: int = 100,
    days: int = 8,
    requests: int = 8,
    slate: int = 6,
    seed: int = 0,
) -> None:
    """Write rows, history, items, users, item_features and meta.json. `requests` is the mean of a user."""
    rng = np.random.default_rng(seed)
    item_ids = np.array([f"i{n}" for n in range(items)])
    category = rng.integers(0, CATEGORIES, items)
    quality = rng.normal(0, 0.5, items)
    title = [f"{WORDS[c]} {WORDS[rng.integers(0, len(WORDS))]} {n}" for n, c in enumerate(category)]
    created = START + (rng.random(items) * np.where(np.arange(items) < items * 0.8, 0, days - 3) * DAY_US)
    created = created.astype(np.int64)
    kind = np.array(["livestream", "video", "product"])[rng.integers(0, 3, items)]
    taste = rng.normal(0, 1.5, (users, CATEGORIES))
    user_ids = np.array([f"u{n}" for n in range(users)])

    counts = rng.poisson(requests, users)
    owner = np.repeat(np.arange(users), counts)
    ts = START + (rng.random(len(owner)) * days * DAY_US).astype(np.int64)
    order = np.argsort(ts, kind="stable")
    owner, ts = owner[order], ts[order]
    scenario = rng.integers(0, 3, len(owner))
    wanted = rng.integers(0, CATEGORIES, len(owner))
    appeal = 0.8 * taste[owner][:, category] + 2.0 * ((scenario == 2)[:, None] & (category == wanted[:, None]))
    drawn = appeal + rng.gumbel(size=(len(owner), items)) - 100 * (created > ts[:, None])
    shown = np.argsort(-drawn, axis=1)[:, :slate]
    flat, position = shown.ravel(), np.tile(np.arange(slate), len(owner))
    who, when, where = (np.repeat(values, slate) for values in (owner, ts, scenario))
    logit = taste[who, category[flat]] + quality[flat] - 0.15 * position - 1.0 + 0.4 * where
    logit += np.where((where == 2) & (category[flat] == np.repeat(wanted, slate)), 2.0, 0)
    click = rng.random(len(flat)) < 1 / (1 + np.exp(-logit))
    long_view = click & (rng.random(len(flat)) < 0.5)
    purchase = click & (rng.random(len(flat)) < 0.2)
    observed = when + rng.integers(1, 600, len(flat)) * 1_000_000
    hide = ~click & (rng.random(len(flat)) < 0.1)
    day = (when - START) // DAY_US
    outcomes = {
        "click": click,
        "long_view": long_view,
        "cart": purchase | (long_view & (rng.random(len(flat)) < 0.2)),
        "order": purchase,
        "hide": hide,
    }

    views = np.zeros((days + 1, 3, items))
    clicks = np.zeros((days + 1, 3, items))
    for d in range(1, days + 1):
        np.add.at(views[d], (where[day < d], flat[day < d]), 1)
        np.add.at(clicks[d], (where[day < d], flat[day < d]), click[day < d])
    seen_user = np.zeros((days + 1, users))
    for d in range(1, days + 1):
        seen_user[d] = np.bincount(who[day < d], minlength=users)

    def item_feature(name: str, d: np.ndarray, s: np.ndarray, i: np.ndarray) -> np.ndarray:
        v, c = views[d, :, i], clicks[d, :, i]
        if name in ("item_views_1d", "item_views_7d"):
            return v.sum(-1)
        if name == "item_clicks_7d":
            return c.sum(-1)
        if name == "item_click_rate_7d":
            return (c.sum(-1) + 4) / (v.sum(-1) + 20)
        picked = np.arange(len(i))
        if name == "item_scenario_views_7d":
            return v[picked, s]
        if name == "item_scenario_click_rate_7d":
            return (c[picked, s] + 4) / (v[picked, s] + 20)
        if name == "item_scenario_trending":
            return c[picked, s]
        return np.zeros(len(i))

    typed = [WORDS[word] if s == 2 else None for word, s in zip(wanted, scenario, strict=True)]
    known_rows = {
        "event_id": [f"e{n}" for n in range(len(flat))],
        "request_id": [f"r{n:06d}" for n in np.repeat(np.arange(len(owner)), slate)],
        "user_id": user_ids[who],
        "item_id": item_ids[flat],
        "scenario": np.array(SCENARIOS)[where],
        "ts": times(when),
        "position": position.astype(np.int32),
        "served": np.ones(len(flat), bool),
        "viewed": np.ones(len(flat), bool),
        "query": [word for word in typed for _ in range(slate)],
        "observed_ts": times(observed),
        **outcomes,
    }
    arrays = [
        pa.array(known_rows[field.name], field.type) if field.name in known_rows else pa.nulls(len(flat), field.type)
        for field in EVENTS
    ]
    rows = pa.table(arrays, names=EVENTS.names)
    for feature in FEATURES:
        if feature in USER_DENSE:
            value = seen_user[day, who] if feature.name == "user_views_28d" else np.zeros(len(flat))
        elif feature in ITEM_DENSE:
            value = item_feature(feature.name, day, where, flat)
        else:
            continue
        rows = rows.append_column(feature.name, pa.array(value.astype(np.float32)))
    split = np.where(day < days - 2, "train", np.where(day < days - 1, "valid", "test"))
    rows = rows.append_column("split", pa.array(split))

    by_user = np.lexsort((np.arange(len(flat)), when, observed, who))
    bounds = np.append(0, np.cumsum(np.bincount(who, minlength=users)))
    offsets = pa.array(bounds.astype(np.int32))
    action = action_ids({name: outcomes.get(name, np.zeros(len(flat), bool)) for name in OUTCOMES})
    history = pa.table(
        {
            "user_id": pa.array(user_ids),
            "history_item": pa.ListArray.from_arrays(offsets, pa.array(item_ids[flat][by_user])),
            "history_action": pa.ListArray.from_arrays(offsets, pa.array(action[by_user])),
            "history_scenario": pa.ListArray.from_arrays(offsets, pa.array(np.array(SCENARIOS)[where][by_user])),
            "history_ts": pa.ListArray.from_arrays(offsets, pa.array(when[by_user])),
            "history_observed_ts": pa.ListArray.from_arrays(offsets, pa.array(observed[by_user])),
        }
    )
    live = kind == "livestream"
    item_values = {
        "item_id": item_ids,
        "author_id": [f"a{n % 17}" for n in range(items)],
        "kind": kind,
        "category": [f"c{c}/s{n % 3}" for n, c in enumerate(category)],
        "title": title,
        "price": np.exp(rng.normal(3, 1, items)),
        "created_ts": times(created),
        "live_from": pa.array([int(c) if x else None for c, x in zip(created, live, strict=True)], pa.int64()).cast(TS),
        "live_until": pa.array([START + 30 * DAY_US if x else None for x in live], pa.int64()).cast(TS),
        "policy": ["ALLOW"] * items,
    }
    user_values = {"user_id": user_ids, "locale": rng.choice(["en", "de", "zh"], users), "device": ["phone"] * users}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "rows.parquet")
    pq.write_table(history, folder / "history.parquet")
    for name, schema, values in (("items", ITEMS, item_values), ("users", USERS, user_values)):
        count = items if name == "items" else users
        columns = [
            (values[f.name] if isinstance(values[f.name], pa.Array) else pa.array(values[f.name], f.type))
            if f.name in values
            else pa.nulls(count, f.type)
            for f in schema
        ]
        pq.write_table(pa.table(columns, names=schema.names), folder / f"{name}.parquet")
    grids = []
    for d in (days - 2, days - 1, days):
        i, s = (grid.ravel() for grid in np.meshgrid(np.arange(items), np.arange(3)))
        columns = {
            "day_ts": times(np.full(len(i), START + d * DAY_US)),
            "item_id": pa.array(item_ids[i]),
            "scenario": pa.array(np.array(SCENARIOS)[s]),
        }
        for feature in ITEM_DENSE:
            value = item_feature(feature.name, np.full(len(i), d), s, i)
            columns[feature.name] = pa.array(value.astype(np.float32))
        grids.append(pa.table(columns))
    pq.write_table(pa.concat_tables(grids), folder / "item_features.parquet")
    ends = [START + d * DAY_US for d in (days - 2, days - 1, days)]
    meta = TrainingSet(
        folder=folder,
        window=(int(when.min()), int(when.max())),
        train_end=ends[0],
        valid_end=ends[1],
        test_end=ends[2],
        now=ends[2],
        scenarios=SCENARIOS,
        rows={name: int((split == name).sum()) for name in ("train", "valid", "test")},
        left_out={},
        feature_digest=digest(),
        encode=EncodeSpec.from_config(config),
    )
    write_json(folder / "meta.json", meta.to_dict())
