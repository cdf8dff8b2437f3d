"""KuaiRand-Pure: real short-video impressions with twelve feedback signals (Gao et al., CIKM 2022).

Two layouts: the public archive's CSV files (`log_standard_*.csv`, `user_features_pure.csv`,
`video_features_basic_pure.csv`, also inside `data/`) and parquet files of the same columns, which may come with one row
of earlier history a user.

What is decided here:
- Scenarios are the anonymous tabs, "tab_<n>"; nobody outside knows which surface a tab is.
- The log has no request ids: rows of one user in one tab are grouped by time (`omnifeed.datasets.requests`). Pure is a
  sample of the full log: most requests hold one row.
- Event ids are hashes of all columns: exact duplicate rows collide, for validation to find; near duplicates do not.
- Times are `time_ms`; `date` contradicts it on 0.9 % of rows. Stay times, profile visits and the video statistics,
  which are known only after the exposure or over the whole month, are not read.
- The earlier history has an order, the last time and the total length, no times in between. It becomes events before
  the log with scenario and arm "history", at even distances that fit the total length: the order is real, the times are
  synthetic. They feed histories and must train nothing. Entries whose video the table of videos lacks (the small sample
  leaves many out) are dropped. Their long_view is the re-host's broader label; likes of videos no longer among the last
  fifty watched are dropped too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.datasets.csv_file import read_csv, row_ids
from omnifeed.datasets.requests import Ints, request_ids
from omnifeed.datasets.source import LOG_ARM, Source, folder_of, midnight_after, required
from omnifeed.errors import InputError
from omnifeed.tables import TS, Tables, conform, read_parquet

HISTORY = "history"
SCENARIOS = (*(f"tab_{tab}" for tab in range(15)), HISTORY)
_HISTORY_START_MS = 1_649_433_600_000  # 2022-04-09 00:00 in China, where the history begins
_OUTCOMES = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "share": "is_forward",
    "comment": "is_comment",
    "hide": "is_hate",
}
_LOG = ("user_id", "video_id", "time_ms", "tab", "play_time_ms", *_OUTCOMES.values())
_VIDEO = ("video_id", "author_id", "upload_dt", "tag")
_PAST = ("user_id", "history_len", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq")


def load(config: Config) -> Source:
    """The log, the videos and the users of `data.path`; nobody is held out.

    Raises:
        InputError: a file is missing or unreadable, or lacks a column.
    """
    folder = folder_of(config)
    folder = folder / "data" if (folder / "data").is_dir() else folder
    delay_us = config.data.observation_delay_s * 1_000_000
    log_files = _files(folder, "log_standard_*", "kuairand_log_*")
    log = pa.concat_tables([_read(path) for path in log_files], promote_options="default")
    now = midnight_after(pc.multiply(log["time_ms"].cast(pa.int64()), 1000), log_files[0])
    events = [conform(_log_events(log, delay_us), "events", str(log_files[0]))]
    video_file = _files(folder, "video_features_basic_*", "kuairand_videos*")[0]
    items = conform(_items(required(_read(video_file), _VIDEO, video_file)), "items", str(video_file))
    past = sorted([*folder.glob("user_history_*.parquet"), *folder.glob("kuairand_history.parquet")])
    for path in past:
        rows = _past_events(required(_read(path), _PAST, path), dict(_first_times(log)), delay_us)
        events.append(conform(rows.filter(pc.is_in(rows["item_id"], items["item_id"])), "events", str(path)))
    user_file = _files(folder, "user_features_*", "kuairand_users*")[0]
    users = required(_read(user_file), ("user_id",), user_file)
    tables = Tables(
        events=pa.concat_tables(events).sort_by("ts").combine_chunks(),
        items=items,
        users=conform(pa.table({"user_id": users["user_id"].cast(pa.string())}), "users", str(user_file)),
    )
    what = f"KuaiRand-Pure, {log.num_rows:,} logged impressions"
    return Source(tables, frozenset(), now, what + (", earlier history at synthetic times" if past else ""))


def _files(folder: Path, *stems: str) -> list[Path]:
    found = sorted(path for stem in stems for end in ("parquet", "csv") for path in folder.glob(f"{stem}.{end}"))
    if not found:
        raise InputError(f"{folder} holds no {stems[0]}.csv or .parquet.", "Give the folder of the KuaiRand files.")
    return found


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        table = read_parquet(path)
    else:
        texts = [name for name in ("tag", "upload_dt") if "video" in path.name]
        table = read_csv(path, dict.fromkeys(texts, pa.string()), every=True)
    return required(table, _LOG, path).append_column("row", pa.array(row_ids(table))) if "log" in path.name else table


def _log_events(log: pa.Table, delay_us: int) -> pa.Table:
    user, tab, time_us = (log[name].to_numpy().astype(np.int64) for name in ("user_id", "tab", "time_ms"))
    time_us = time_us * 1000
    scenario = pc.binary_join_element_wise("tab", log["tab"].cast(pa.string()), "_")
    yes = np.ones(len(user), bool)
    return pa.table(
        {
            "event_id": log["row"],
            "request_id": request_ids(user, tab, time_us, delay_us),
            "user_id": log["user_id"].cast(pa.string()),
            "item_id": log["video_id"].cast(pa.string()),
            "scenario": scenario,
            "ts": time_us,
            "served": yes,
            "viewed": yes,
            **{name: pc.equal(log[column], 1) for name, column in _OUTCOMES.items()},
            "dwell_ms": log["play_time_ms"],
            "arm": pa.repeat(LOG_ARM, len(user)),
            "observed_ts": time_us + delay_us,
        }
    )


def _first_times(log: pa.Table) -> list[tuple[int, int]]:
    first = log.group_by("user_id").aggregate([("time_ms", "min")])
    return list(zip(first["user_id"].to_pylist(), first["time_ms_min"].to_pylist(), strict=True))


def _past_events(past: pa.Table, first_ms: dict[int, int], delay_us: int) -> pa.Table:
    users: list[int] = []
    videos: list[int] = []
    likes: list[bool] = []
    longs: list[bool] = []
    times: list[Ints] = []
    for row in past.to_pylist():
        watched = row["watch_seq"]
        end = min(row["last_time_ms"], first_ms.get(row["user_id"], row["last_time_ms"] + 1) - 1 - delay_us // 1000)
        step = max(end - _HISTORY_START_MS, 0) / max(row["history_len"], 1)
        times.append((end - step * np.arange(len(watched) - 1, -1, -1)).astype(np.int64))
        users += [row["user_id"]] * len(watched)
        videos += watched
        likes += _marked(watched, row["like_seq"])
        longs += _marked(watched, row["long_watch_seq"])
    ts = np.concatenate(times) * 1000 if times else np.zeros(0, np.int64)
    places = np.concatenate([np.arange(len(part)) for part in times]) if times else ts
    names = [f"{HISTORY}-{user}-{place}" for user, place in zip(users, places, strict=True)]
    yes = np.ones(len(users), bool)
    return pa.table(
        {
            "event_id": names,
            "request_id": names,
            "user_id": [str(user) for user in users],
            "item_id": [str(video) for video in videos],
            "scenario": pa.repeat(HISTORY, len(users)),
            "ts": ts,
            "served": yes,
            "viewed": yes,
            "long_view": longs,
            "like": likes,
            "arm": pa.repeat(HISTORY, len(users)),
            "observed_ts": ts + delay_us,
        }
    )


def _marked(watched: list[int], chosen: list[int]) -> list[bool]:
    """Which watched entries are among the chosen; of a video watched more often than chosen, the latest."""
    left = Counter(chosen)
    marks = []
    for video in reversed(watched):
        marks.append(left[video] > 0)
        left[video] -= 1
    return marks[::-1]


def _items(videos: pa.Table) -> pa.Table:
    tags = [None if tag is None else tag.split(",")[0] for tag in videos["tag"].to_pylist()]
    count = videos.num_rows
    known = "video_duration" in videos.column_names
    milliseconds = videos["video_duration"].cast(pa.float64()) if known else pa.nulls(count, pa.float64())
    return pa.table(
        {
            "item_id": videos["video_id"].cast(pa.string()),
            "author_id": videos["author_id"].cast(pa.string()),
            "kind": pa.repeat("video", count),
            "category": pa.array(tags, pa.string()),  # the first tag; the others are not a path
            "duration_s": pc.divide(milliseconds, 1000.0),
            "created_ts": videos["upload_dt"].cast(pa.date32()).cast(TS),
            "policy": pa.repeat("ALLOW", count),
        }
    )
