"""A tiny market, made by hand or by a seed: enough rows to disagree about, few enough to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from omnifeed.export.encode import DAY_US
from omnifeed.tables import TS, Tables, conform

START = 1_772_409_600_000_000  # 2026-03-02 00:00 UTC
SCENARIOS = ("livestream", "short_video", "search")
MINUTE_US = 60_000_000


def events_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Events from dictionaries: `ts` is required; what is absent takes a plain default."""
    filled = []
    for number, row in enumerate(rows):
        event = {
            "event_id": f"e{number}",
            "request_id": f"r{number}",
            "user_id": "u0",
            "item_id": "i0",
            "scenario": "search",
            "position": 0,
            "served": True,
            "viewed": True,
            "click": False,
            "long_view": False,
            "order": False,
            "hide": False,
            "observed_ts": row["ts"] + MINUTE_US,
            **row,
        }
        filled.append(event)
    columns = {name: [event.get(name) for event in filled] for name in {key for event in filled for key in event}}
    for name in ("ts", "observed_ts"):
        columns[name] = pa.array(columns[name], pa.int64()).cast(TS)
    return conform(pa.table(columns), "events", "test")


def tables_of(events: pa.Table, users: Sequence[str], items: Sequence[str]) -> Tables:
    """The table set around these events."""
    return Tables(
        events=events,
        items=conform(
            pa.table(
                {
                    "item_id": list(items),
                    "kind": ["video"] * len(items),
                    "created_ts": pa.array([START] * len(items), pa.int64()).cast(TS),
                    "policy": ["ALLOW"] * len(items),
                }
            ),
            "items",
            "test",
        ),
        users=conform(
            pa.table({"user_id": list(users), "locale": ["de"] * len(users), "country": [None] * len(users)}),
            "users",
            "test",
        ),
    )


def small_market(seed: int, requests: int = 60, days: int = 5, users: int = 6, items: int = 9) -> Tables:
    """Random requests of up to three items: late outcomes, unseen rows, unknown labels, events exactly at midnight."""
    generator = np.random.default_rng(seed)
    rows = []
    for request in range(requests):
        ts = START + int(generator.integers(0, days * DAY_US))
        if generator.random() < 0.15:
            ts -= ts % DAY_US
        history = generator.random() < 0.1
        for position, item in enumerate(generator.choice(items, size=int(generator.integers(1, 4)), replace=False)):
            click = bool(generator.random() < 0.4)
            delay = int(generator.choice([1, MINUTE_US, 5 * 3600 * 1_000_000, DAY_US, 2 * DAY_US]))
            if generator.random() < 0.1:
                delay = DAY_US - ts % DAY_US  # known exactly at midnight
            rows.append(
                {
                    "request_id": f"r{request}",
                    "user_id": f"u{int(generator.integers(0, users)) if position == 0 else rows[-1]['user_id'][1:]}",
                    "item_id": f"i{item}",
                    "scenario": SCENARIOS[request % 3],
                    "ts": ts + position,
                    "observed_ts": ts + position + delay,
                    "position": position,
                    "viewed": [True, False, None][int(generator.integers(0, 3))],
                    "click": None if history else click,
                    "long_view": None if generator.random() < 0.2 else click and bool(generator.random() < 0.5),
                    "order": click and bool(generator.random() < 0.3),
                    "gmv": float(generator.random() * 30) if click else None,
                    "arm": "history" if history else None,
                }
            )
    return tables_of(
        events_table(rows), [f"u{index}" for index in range(users)], [f"i{index}" for index in range(items)]
    )
