"""KuaiSAR: the same users' recommendations and searches in one short-video app (Sun et al., CIKM 2023).

Read as its page publishes it: `rec_inter.csv`, `src_inter.csv`, `item_features.csv`, `user_features.csv`. Words are
anonymous numbers; a query and a caption that share a word share its number, so they match as texts of numbers.

What is decided here:
- Scenarios are "recommendation" and "search". A search is one search session; recommendations have no request ids and
  are grouped by time (`omnifeed.datasets.requests`).
- Search results that are users, music or advertisements are no content that anybody recommends, and their ids are
  numbers of other things: they are left out and counted. Livestreams and products are not in the table of items: they
  become items without text that exist since the log first shows them; a livestream without times is never on air, so
  it is history and candidate of the log, and is never recommended.
- An upload at 1970-01-01 is padding, as is author 0: the item then exists since the log first shows it.
- A recommendation's click, like, follow and forward are outcomes; a search knows clicks alone. The activity levels of
  users are of the whole month and are not read, nor are the encrypted features and the social network, for which the
  canonical tables have no place.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.datasets.csv_file import beijing_times, micros, read_csv, row_ids
from omnifeed.datasets.requests import request_ids
from omnifeed.datasets.source import LOG_ARM, Source, folder_of, midnight_after
from omnifeed.tables import TS, Tables, conform

SCENARIOS = ("recommendation", "search")
#: What a search may show, as a canonical kind; USER, MUSIC and ADVERT are left out.
SHOWN = {"VIDEO": "video", "IMAGE_ATLAS": "video", "LIVE": "livestream", "COMMODITY": "product"}
_NOTHING = pa.scalar(None, pa.string())
_OUTCOMES = {"click": "click", "like": "like", "follow": "follow", "share": "forward"}
_RECOMMENDED = {
    "user_id": pa.int64(),
    "item_id": pa.int64(),
    "playing_time": pa.float64(),
    "duration_ms": pa.float64(),
    "timestamp": pa.float64(),
    **dict.fromkeys(_OUTCOMES.values(), pa.int64()),
}
_SEARCHED = {
    "user_id": pa.int64(),
    "search_session_id": pa.int64(),
    "search_session_timestamp": pa.float64(),
    "keyword": pa.string(),
    "item_id": pa.int64(),
    "click_cnt": pa.int64(),
    "item_type": pa.string(),
}
_LEVELS = tuple(f"{level}_level_category_name_en" for level in ("first", "second", "third"))
_ITEM = {
    "item_id": pa.int64(),
    "caption": pa.string(),
    "author_id": pa.int64(),
    "upload_time": pa.string(),
    **dict.fromkeys(_LEVELS, pa.string()),
}


def load(config: Config) -> Source:
    """Both logs, the items and the users of `data.path`; nobody is held out.

    Raises:
        InputError: a file is missing or unreadable, lacks a column, or has a value of another type.
    """
    folder = folder_of(config)
    delay_us = config.data.observation_delay_s * 1_000_000
    recommended = read_csv(folder / "rec_inter.csv", _RECOMMENDED)
    searched = read_csv(folder / "src_inter.csv", _SEARCHED)
    content = searched.filter(pc.is_in(searched["item_type"], value_set=pa.array(list(SHOWN))))
    events = pa.concat_tables(
        [
            conform(_recommendations(recommended, delay_us), "events", "rec_inter.csv"),
            conform(_searches(content, delay_us), "events", "src_inter.csv"),
        ]
    )
    now = midnight_after(events["ts"], folder)
    users = read_csv(folder / "user_features.csv", {"user_id": pa.int64()})
    tables = Tables(
        events=events.sort_by("ts").combine_chunks(),
        items=conform(_items(folder / "item_features.csv", recommended, content, events), "items", "item_features.csv"),
        users=conform(pa.table({"user_id": users["user_id"].cast(pa.string())}), "users", "user_features.csv"),
    )
    left_out = searched.num_rows - content.num_rows
    what = (
        f"KuaiSAR, {recommended.num_rows:,} recommended and {content.num_rows:,} found items; {left_out:,} results "
        "that are no content left out"
    )
    return Source(tables, frozenset(), now, what)


def _recommendations(log: pa.Table, delay_us: int) -> pa.Table:
    ts = micros(log["timestamp"])
    user, moment = (pc.fill_null(column, 0).to_numpy() for column in (log["user_id"], ts))
    return pa.table(
        {
            **_shown(log, SCENARIOS[0], ts, delay_us),
            "request_id": request_ids(user, np.zeros_like(user), moment, delay_us),
            **{name: pc.greater(log[column], 0) for name, column in _OUTCOMES.items()},
            "dwell_ms": pc.round(log["playing_time"]).cast(pa.int64()),
        }
    )


def _searches(log: pa.Table, delay_us: int) -> pa.Table:
    user, session = (log[name].cast(pa.string()) for name in ("user_id", "search_session_id"))
    return pa.table(
        {
            **_shown(log, SCENARIOS[1], micros(log["search_session_timestamp"]), delay_us),
            "request_id": pc.binary_join_element_wise(user, SCENARIOS[1], session, "-"),
            "query": _words(log["keyword"]),
            "click": pc.greater(log["click_cnt"], 0),
        }
    )


def _shown(log: pa.Table, scenario: str, ts: pa.ChunkedArray, delay_us: int) -> dict[str, object]:
    yes = np.ones(log.num_rows, bool)
    return {
        "event_id": row_ids(log.append_column("scenario", pa.repeat(scenario, log.num_rows))),
        "user_id": log["user_id"].cast(pa.string()),
        "item_id": log["item_id"].cast(pa.string()),
        "scenario": pa.repeat(scenario, log.num_rows),
        "ts": ts,
        "served": yes,
        "viewed": yes,
        "arm": pa.repeat(LOG_ARM, log.num_rows),
        "observed_ts": pc.add(ts, delay_us),
    }


def _words(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """`[20, 34, 3]` as the text `20 34 3`; null where there is no word."""
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(numbers, "[^0-9]+", " "))
    return pc.if_else(pc.equal(words, ""), _NOTHING, words)


def _items(path: Path, recommended: pa.Table, content: pa.Table, events: pa.Table) -> pa.Table:
    described = read_csv(path, _ITEM)
    uploaded = described["upload_time"]
    padding = pc.starts_with(uploaded, "1970-")
    described = pa.table(
        {
            "item_id": described["item_id"].cast(pa.string()),
            "author_id": pc.if_else(
                pc.equal(described["author_id"], 0), _NOTHING, described["author_id"].cast(pa.string())
            ),
            "kind": pa.repeat("video", described.num_rows),
            "category": _paths([described[level] for level in _LEVELS]),
            "title": _words(described["caption"]),
            "created_ts": beijing_times(pc.if_else(padding, _NOTHING, uploaded), path),
        }
    )
    kinds = pc.index_in(content["item_type"], value_set=pa.array(list(SHOWN)))
    found = pa.table(
        {"item_id": content["item_id"].cast(pa.string()), "kind": pa.array(list(SHOWN.values())).take(kinds)}
    )
    others = found.filter(pc.not_equal(found["kind"], "video")).group_by("item_id").aggregate([("kind", "min")])
    others = others.rename_columns(["item_id", "kind"])
    others = others.filter(pc.invert(pc.is_in(others["item_id"], value_set=described["item_id"])))
    items = pa.concat_tables([described, others], promote_options="default")
    first = events.group_by("item_id").aggregate([("ts", "min")])
    seen = first["ts_min"].take(pc.index_in(items["item_id"], value_set=first["item_id"]))
    created = pc.coalesce(items["created_ts"], seen, pa.scalar(0, TS))
    items = items.set_column(items.column_names.index("created_ts"), "created_ts", created)
    lengths = recommended.group_by("item_id").aggregate([("duration_ms", "max")])
    place = pc.index_in(items["item_id"], value_set=lengths["item_id"].cast(pa.string()))
    items = items.append_column("duration_s", pc.divide(lengths["duration_ms_max"].take(place), 1000.0))
    return items.append_column("policy", pa.repeat("ALLOW", items.num_rows))


def _paths(levels: list[pa.ChunkedArray]) -> pa.Array:
    """Category paths, which end at the first level that is null or "empty"; a slash inside a name becomes a space."""
    paths = []
    for names in zip(*(level.to_pylist() for level in levels), strict=True):
        known = itertools.takewhile(lambda name: name not in (None, "", "empty"), names)
        paths.append("/".join(name.replace("/", " ") for name in known) or None)
    return pa.array(paths, pa.string())
