"""KuaiRand: the parquet at hand and the public archive's CSV give the same canonical events."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from omnifeed.config import Config, DataConfig
from omnifeed.datasets.kuairand import SCENARIOS, load
from omnifeed.datasets.requests import MAX_REQUEST
from omnifeed.datasets.source import Source, load_tables
from omnifeed.errors import InputError
from omnifeed.tables import SCHEMAS

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USER_HEADER = "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num"
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
START_MS = 1_650_816_000_000  # 2022-04-24 16:00 UTC


def log_line(user: int = 0, video: int = 5, after_ms: int = 0, tab: int = 1, click: int = 0) -> str:
    return f"{user},{video},20220425,0,{START_MS + after_ms},{click},0,1,0,0,1,1,61802,49866,0,0,0,0,{tab}"


def archive(folder: Path, log: list[str], header: str = LOG_HEADER) -> Config:
    (folder / "log_standard_4_22_to_5_08_pure.csv").write_text("\n".join([header, *log]) + "\n")
    (folder / "user_features_pure.csv").write_text(f"{USER_HEADER}\n0,full_active,0,1,1,514\n1,high_active,0,0,0,3\n")
    (folder / "video_features_basic_pure.csv").write_text(
        f"{VIDEO_HEADER}\n5,700,NORMAL,2022-04-10,Web,0.0,87433.0,720.0,1280.0,91,9.0,39\n"
        f'6,701,AD,2022-04-11,Web,0.0,,720.0,1280.0,91,9.0,"12,4"\n'
        f"7,702,AD,2022-04-11,Web,0.0,,720.0,1280.0,91,9.0,\n"
    )
    return Config(data=DataConfig(source="kuairand", path=str(folder)))


@pytest.fixture(scope="module")
def pure(shared: Path) -> Source:
    return load_tables(Config(data=DataConfig(source="kuairand", path=str(shared / "kuairand_pure"))))


def logged(source: Source) -> pa.Table:
    return source.tables.events.filter(pc.equal(source.tables.events["arm"], "log"))


def test_columns_of_the_public_archive_map_to_the_canonical_ones(tmp_path: Path) -> None:
    source = load(archive(tmp_path, [log_line(click=1)]))
    row = source.tables.events.to_pylist()[0]
    assert source.tables.events.schema.types == SCHEMAS["events"].types
    assert (row["user_id"], row["item_id"], row["scenario"], row["arm"]) == ("0", "5", "tab_1", "log")
    assert [row[name] for name in ("click", "long_view", "like", "follow", "share", "comment", "hide")] == [
        *(True, True, False, True, False, False, True)
    ]
    assert (row["served"], row["viewed"], row["position"], row["dwell_ms"], row["order"]) == (
        *(True, True, None),
        61_802,
        None,
    )
    assert row["ts"].isoformat() == "2022-04-24T16:00:00+00:00"  # time_ms, not the date column
    assert (row["observed_ts"] - row["ts"]).total_seconds() == 60
    items = source.tables.items.to_pylist()
    assert [item["category"] for item in items] == ["39", "12", None]
    assert items[0]["created_ts"].isoformat() == "2022-04-10T00:00:00+00:00"
    assert {item["kind"] for item in items} == {"video"}
    assert {item["title"] for item in items} == {None}
    assert source.tables.users["user_id"].to_pylist() == ["0", "1"]
    assert source.holdout_users == frozenset()
    assert source.now == 1_650_844_800_000_000  # 2022-04-25 00:00 UTC


def test_the_archive_as_unpacked_with_its_data_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    inner = archive(tmp_path / "data", [log_line()])
    outer = dataclasses.replace(inner, data=dataclasses.replace(inner.data, path=str(tmp_path)))
    assert load(outer).tables.events.equals(load(inner).tables.events)


def test_exact_duplicates_collide_and_near_duplicates_do_not(tmp_path: Path) -> None:
    source = load(archive(tmp_path, [log_line(), log_line(), log_line(click=1)]))
    assert source.tables.events.num_rows == 3
    assert pc.count_distinct(source.tables.events["event_id"]).as_py() == 2


def test_a_request_is_one_user_in_one_tab_within_the_observation_delay(tmp_path: Path) -> None:
    rows = [log_line(after_ms=ms) for ms in (0, 30_000, 60_000, 60_001, 130_000)]
    rows += [log_line(after_ms=0, tab=2), log_line(user=1)]
    events = load(archive(tmp_path, rows)).tables.events.to_pandas()
    groups = events.groupby("request_id")
    first = groups["ts"].transform("min")
    assert sorted(groups.size()) == [1, 1, 1, 1, 3]
    assert (groups[["user_id", "scenario"]].nunique() == 1).all(axis=None)
    assert (events["ts"] <= first + (events["observed_ts"] - events["ts"])).all()


def test_a_request_has_at_most_twenty_items(tmp_path: Path) -> None:
    events = load(archive(tmp_path, [log_line(after_ms=ms) for ms in range(45)])).tables.events
    sizes = events.group_by("request_id").aggregate([("event_id", "count")])["event_id_count"].to_pylist()
    assert sorted(sizes) == [5, MAX_REQUEST, MAX_REQUEST]


def test_a_missing_column_and_a_broken_file_are_named(tmp_path: Path) -> None:
    config = archive(tmp_path, [log_line()], header=LOG_HEADER.replace("time_ms,is_click", "moment,is_click"))
    with pytest.raises(InputError, match=r"log_standard.*no column 'time_ms'"):
        load(config)
    config = archive(tmp_path, [log_line(), "1,2"])
    with pytest.raises(InputError, match="not readable CSV"):
        load(config)
    (tmp_path / "user_features_pure.csv").unlink()
    archive_without_users = archive(tmp_path, [log_line()])
    (tmp_path / "user_features_pure.csv").unlink()
    with pytest.raises(InputError, match="user_features"):
        load(archive_without_users)


def test_the_published_numbers_of_the_log_at_hand(pure: Source) -> None:
    """228,329 rows, 5,460 exact duplicates, 7,583 videos, 27,285 users, 15 tabs: its README and FACTS."""
    log = logged(pure)
    assert log.num_rows == 228_329
    assert log.num_rows - pc.count_distinct(log["event_id"]).as_py() == 5_460
    assert (pure.tables.items.num_rows, pure.tables.users.num_rows) == (7_583, 27_285)
    assert set(pc.unique(pure.tables.events["scenario"]).to_pylist()) == set(SCENARIOS)
    assert pure.now == 1_652_054_400_000_000  # 2022-05-09 00:00 UTC
    assert round(pc.mean(log["click"].cast(pa.int8())).as_py(), 4) == 0.4419


def test_history_comes_before_each_users_log_and_is_flagged(pure: Source) -> None:
    events = pure.tables.events.select(["user_id", "ts", "observed_ts", "arm", "scenario", "click"]).to_pandas()
    past = events[events["arm"] == "history"]
    assert len(past) == 817_187  # ids in all watch_seq, from the README
    assert (past["scenario"] == "history").all()
    assert past["click"].isna().all()
    first = events[events["arm"] == "log"].groupby("user_id")["ts"].min()
    known = past.groupby("user_id")["observed_ts"].max()
    both = known.index.intersection(first.index)
    assert (known[both] < first[both]).all()


def test_history_keeps_the_order_of_the_source(pure: Source, shared: Path) -> None:
    folder = shared / "kuairand_pure"
    source_row = pq.read_table(folder / "user_history_4_09_to_4_24.parquet").slice(0, 1).to_pylist()[0]
    events = pure.tables.events
    mine = events.filter(
        pc.and_(pc.equal(events["user_id"], str(source_row["user_id"])), pc.equal(events["arm"], "history"))
    )
    assert mine["item_id"].to_pylist() == [str(video) for video in source_row["watch_seq"]]
    liked = [item for item, like in zip(mine["item_id"].to_pylist(), mine["like"].to_pylist(), strict=True) if like]
    assert set(liked) == {str(v) for v in source_row["like_seq"]} & {str(v) for v in source_row["watch_seq"]}
    last = mine["ts"].cast(pa.int64()).to_pylist()[-1]
    assert last == source_row["last_time_ms"] * 1000


def test_the_small_sample_resolves_its_ids(shared: Path) -> None:
    tables = load(Config(data=DataConfig(source="kuairand", path=str(shared / "kuairand_small")))).tables
    assert pc.all(pc.is_in(tables.events["item_id"], tables.items["item_id"])).as_py()
    assert pc.all(pc.is_in(tables.events["user_id"], tables.users["user_id"])).as_py()
