"""Open Bandit: real fashion impressions of two policies with true propensities (Saito et al. 2020).

The log has no user ids: every row is its own user and its own request, so nothing personal can be learnt from it and
its statistical unit is the row. Item ids are campaign-wise in the source and are qualified by the campaign here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.datasets.source import DAY_US, Source, folder_of, midnight_after, required
from omnifeed.errors import InputError
from omnifeed.tables import TS, Tables, conform, read_parquet

POLICIES = ("random", "bts")
CAMPAIGNS = ("all", "men", "women")  # the scenarios
_COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")


def load(config: Config) -> Source:
    """Events of both policies (arm = policy, scenario = campaign, propensity as logged) and the campaigns' items.

    Raises:
        InputError: a file is unreadable or lacks a column, or there is none.
    """
    folder = folder_of(config)
    names = [(p, c) for p in POLICIES for c in CAMPAIGNS if (folder / f"{p}_{c}.parquet").is_file()]
    if not names:
        raise InputError(f"{folder} holds no <policy>_<campaign>.parquet.", "Give the Open Bandit folder.")
    delay_us = config.data.observation_delay_s * 1_000_000
    events = pa.concat_tables([_events(folder / f"{p}_{c}.parquet", p, c, delay_us) for p, c in names])
    now = midnight_after(events["ts"], folder)
    first = int(pc.min(events["ts"].cast(pa.int64())).as_py()) // DAY_US * DAY_US
    campaigns = sorted({campaign for _, campaign in names})
    users = pa.table({"user_id": events["user_id"]})
    tables = Tables(
        events=events,
        items=pa.concat_tables([_items(folder / f"item_context_{name}.parquet", name, first) for name in campaigns]),
        users=conform(users, "users", str(folder)),
    )
    return Source(tables, frozenset(), now, "Open Bandit: real logs of two policies, no user ids (each row is a unit)")


def _events(path: Path, policy: str, campaign: str, delay_us: int) -> pa.Table:
    raw = required(read_parquet(path), _COLUMNS, path)
    count = raw.num_rows
    names = [f"{policy}-{campaign}-{row}" for row in range(count)]
    ts = pc.cast(raw["timestamp"], TS)
    return conform(
        pa.table(
            {
                "event_id": names,
                "request_id": names,
                "user_id": names,
                "item_id": _qualified(campaign, raw["item_id"]),
                "scenario": pa.repeat(campaign, count),
                "ts": ts,
                "position": pc.subtract(raw["position"], 1),
                "served": np.ones(count, bool),
                "viewed": np.ones(count, bool),
                "click": pc.equal(raw["click"], 1),
                "arm": pa.repeat(policy, count),
                "propensity": raw["propensity_score"],
                "observed_ts": pc.add(ts.cast(pa.int64()), delay_us).cast(TS),
            }
        ),
        "events",
        str(path),
    )


def _items(path: Path, campaign: str, created: int) -> pa.Table:
    raw = required(read_parquet(path), ("item_id", "item_feature_1"), path)
    return conform(
        pa.table(
            {
                "item_id": _qualified(campaign, raw["item_id"]),
                "kind": pa.repeat("product", raw.num_rows),
                "category": raw["item_feature_1"],
                "created_ts": pa.repeat(created, raw.num_rows).cast(TS),  # not published: the log's first day
                "policy": pa.repeat("ALLOW", raw.num_rows),
            }
        ),
        "items",
        str(path),
    )


def _qualified(campaign: str, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(campaign, pc.cast(ids, pa.string()), "-")
