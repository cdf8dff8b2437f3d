"""KuaiLive: three weeks of livestream logs with the start and end of every room (Qu et al. 2025).

Read as its page publishes it: `click.csv`, `negative.csv`, `comment.csv`, `like.csv`, `gift.csv`, `room.csv`,
`user.csv`.

What is decided here:
- An item is a room (`live_id`), on air from its first start to its last end, by its streamer. A room may have a row a
  day: rows that agree in everything but their times are one item.
- A row of `click.csv` or `negative.csv` is an impression: entered, or shown and passed by. Neither has a request id:
  they are grouped by time (`omnifeed.datasets.requests`).
- A comment, a like or a gift belongs to the user's last entry into that room before it; one without is counted and left
  out. A gift is what is bought here: `order` is true and `gmv` is the sum of its prices. An entry's outcomes are known
  when its watch time is over, the delay has passed and the last of them has happened.
- Titles are published as vectors of another model without a text; neither they nor the streamers' totals, which are of
  their whole life, are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.datasets.csv_file import beijing_times, micros, read_csv, row_ids
from omnifeed.datasets.requests import Ints, request_ids
from omnifeed.datasets.source import LOG_ARM, Source, folder_of, midnight_after
from omnifeed.tables import Tables, conform

SCENARIO = "livestream"
#: The files of what users do inside a room, by the outcome that it becomes.
_ACTS = {"comment": "comment.csv", "like": "like.csv", "order": "gift.csv"}
_SHOWN = dict.fromkeys(("user_id", "live_id", "streamer_id", "timestamp"), pa.int64())
_ROOM = {
    "live_id": pa.int64(),
    "streamer_id": pa.int64(),
    "start_timestamp": pa.int64(),
    "end_timestamp": pa.int64(),
    "live_content_category": pa.string(),
}
_USER = {
    "user_id": pa.int64(),
    "age": pa.string(),
    "country": pa.string(),
    "device_brand": pa.string(),
    "reg_timestamp": pa.string(),
}


def load(config: Config) -> Source:
    """The impressions with what came of them, the rooms and the users of `data.path`; nobody is held out.

    Raises:
        InputError: a file is missing or unreadable, lacks a column, or has a value of another type.
    """
    folder = folder_of(config)
    delay_us = config.data.observation_delay_s * 1_000_000
    entered = read_csv(folder / "click.csv", {**_SHOWN, "watch_live_time": pa.int64()})
    passed = read_csv(folder / "negative.csv", _SHOWN)
    shown = pa.concat_tables([entered, passed], promote_options="default")
    now = midnight_after(micros(shown["timestamp"]), folder / "click.csv")
    known = micros(pc.add(entered["timestamp"], pc.max_element_wise(pc.fill_null(entered["watch_live_time"], 0), 0)))
    outcomes, last, strays = _acts(folder, entered)
    events = _events(shown, entered.num_rows, outcomes, np.maximum(known.fill_null(0).to_numpy(), last), delay_us)
    tables = Tables(
        events=conform(events, "events", "click.csv").sort_by("ts").combine_chunks(),
        items=conform(_items(read_csv(folder / "room.csv", _ROOM)), "items", "room.csv"),
        users=conform(_users(folder / "user.csv"), "users", "user.csv"),
    )
    what = f"KuaiLive, {entered.num_rows:,} entries into rooms and {passed.num_rows:,} rooms passed by"
    return Source(tables, frozenset(), now, f"{what}; {strays:,} acts without an entry left out")


def _acts(folder: Path, entered: pa.Table) -> tuple[dict[str, pa.Array], Ints, int]:
    """What happened inside the rooms, by entry.

    Returns:
        Outcomes [entries] by canonical name, the time of each entry's last act (UTC microseconds, 0 without one), and
        how many acts have no entry before them.
    """
    count, strays = entered.num_rows, 0
    outcomes: dict[str, pa.Array] = {}
    last = np.zeros(count, np.int64)
    for name, file in _ACTS.items():
        types = _SHOWN | ({"gift_price": pa.float64()} if name == "order" else {})
        acts = read_csv(folder / file, types)
        entry = _entries(entered, acts)
        strays += int((entry < 0).sum())
        own = entry >= 0
        np.maximum.at(last, entry[own], pc.fill_null(micros(acts["timestamp"]), 0).to_numpy()[own])
        outcomes[name] = pa.array(np.bincount(entry[own], minlength=count) > 0)
        if name == "order":
            price = pc.fill_null(acts["gift_price"], 0.0).to_numpy()
            outcomes["gmv"] = pa.array(np.bincount(entry[own], price[own], count).astype(np.float64))
    return outcomes, last, strays


def _entries(entered: pa.Table, acts: pa.Table) -> Ints:
    """Row of the entry that each act belongs to: the same user's last into the same room, not after it; -1 for none."""
    keys = [
        np.concatenate([pc.fill_null(table[name], -1).to_numpy() for table in (entered, acts)])
        for name in ("timestamp", "live_id", "user_id")
    ]
    is_act = np.arange(len(keys[0])) >= entered.num_rows
    order = np.lexsort((is_act, *keys))
    place = np.where(is_act[order], -1, np.arange(len(order)))
    latest = np.maximum.accumulate(place) if len(place) else place
    before = np.where(latest >= 0, order[latest], 0)
    same = (latest >= 0) & (keys[1][before] == keys[1][order]) & (keys[2][before] == keys[2][order])
    found = np.empty(len(order), np.int64)
    found[order] = np.where(same, before, -1)
    return found[entered.num_rows :]


def _events(shown: pa.Table, entries: int, outcomes: dict[str, pa.Array], known: Ints, delay_us: int) -> pa.Table:
    """Events of the impressions, of which the first `entries` were entered."""
    ts = micros(shown["timestamp"])
    passed = shown.num_rows - entries
    user, moment = (pc.fill_null(column, 0).to_numpy() for column in (shown["user_id"], ts))
    none = pa.repeat(False, passed)
    yes = np.ones(shown.num_rows, bool)
    observed = np.maximum(moment + delay_us, np.concatenate([known, np.zeros(passed, np.int64)]))
    return pa.table(
        {
            "event_id": row_ids(shown.append_column("entered", pa.array(np.arange(len(yes)) < entries))),
            "request_id": request_ids(user, np.zeros_like(user), moment, delay_us),
            "user_id": shown["user_id"].cast(pa.string()),
            "item_id": shown["live_id"].cast(pa.string()),
            "scenario": pa.repeat(SCENARIO, shown.num_rows),
            "ts": ts,
            "served": yes,
            "viewed": yes,
            "click": np.arange(len(yes)) < entries,
            **{name: pa.concat_arrays([outcomes[name], none]) for name in _ACTS},
            "dwell_ms": shown["watch_live_time"],
            "gmv": pa.concat_arrays([outcomes["gmv"], pa.repeat(0.0, passed)]),
            "arm": pa.repeat(LOG_ARM, shown.num_rows),
            "observed_ts": pa.array(observed, mask=pc.is_null(ts).to_numpy()),
        }
    )


def _items(rooms: pa.Table) -> pa.Table:
    same = ["live_id", "streamer_id", "live_content_category"]
    rooms = rooms.group_by(same, use_threads=False).aggregate([("start_timestamp", "min"), ("end_timestamp", "max")])
    start = micros(rooms["start_timestamp_min"])
    return pa.table(
        {
            "item_id": rooms["live_id"].cast(pa.string()),
            "author_id": rooms["streamer_id"].cast(pa.string()),
            "kind": pa.repeat("livestream", rooms.num_rows),
            "category": pc.replace_substring(rooms["live_content_category"], "/", " "),
            "created_ts": start,
            "live_from": start,
            "live_until": micros(rooms["end_timestamp_max"]),
            "policy": pa.repeat("ALLOW", rooms.num_rows),
        }
    )


def _users(path: Path) -> pa.Table:
    users = read_csv(path, _USER)
    return pa.table(
        {
            "user_id": users["user_id"].cast(pa.string()),
            "age_band": users["age"],
            "country": users["country"],
            "device": users["device_brand"],
            "signup_ts": beijing_times(users["reg_timestamp"], path),
        }
    )
