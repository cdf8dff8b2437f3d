"""KuaiSAR on a fixture: rows written by hand in the schema that its page publishes. The real files are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnifeed.config import Config
from omnifeed.datasets.source import Source, load_tables
from omnifeed.errors import InputError
from omnifeed.pipelines.cli import settings
from omnifeed.quality.validate import validate
from omnifeed.tables import SCHEMAS, read_tables, write_tables

RECOMMENDED = (
    "user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,search,search_item_related"
)
SEARCHED = (
    "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source,item_id,click_cnt,"
    "item_type"
)
LEVELS = ",".join(
    f"{level}_level_category_{part}"
    for level in ("first", "second", "third", "fourth")
    for part in ("id", "name", "name_en")
)
START_MS = 1_684_742_000_000  # 2023-05-22 07:53:20 UTC


def recommended(user: int = 1, item: int = 10, after_ms: int = 0, acts: str = "1,0,0,0", played: str = "4500.0") -> str:
    return f"{user},{item},{played},45400.0,2023-05-22 15:53:20,{float(START_MS + after_ms)},{acts},0,0"


def searched(item: int = 11, clicks: int = 0, kind: str = "VIDEO", session: int = 1, words: str = "[20, 34]") -> str:
    return f'1,{session},2023-05-22 16:00:00,{START_MS + 400_000},"{words}",USER_INPUT,{item},{clicks},{kind}'


def described(
    item: int, author: int = 7, caption: str = "[34, 5]", day: str = "2023-04-22", first: str = "Funny"
) -> str:
    return f'{item},"{caption}",{author},NORMAL,{day},LongImport,9,x,{first},136,y,Funny joke,0,z,empty,0,z,empty'


ITEMS = [described(10), described(11, author=0, caption="[]", day="1970-01-01"), described(12, first="empty")]


def archive(folder: Path, log: list[str], searches: list[str], items: list[str] = ITEMS) -> Config:
    folder.mkdir(exist_ok=True)
    (folder / "rec_inter.csv").write_text("\n".join([RECOMMENDED, *log]) + "\n")
    (folder / "src_inter.csv").write_text("\n".join([SEARCHED, *searches]) + "\n")
    header = f"item_id,caption,author_id,item_type,upload_time,upload_type,{LEVELS}"
    (folder / "item_features.csv").write_text("\n".join([header, *items]) + "\n")
    (folder / "user_features.csv").write_text(
        "user_id,search_active_level,rec_active_level,onehot_feat1,onehot_feat2\n1,1,1,0,3\n2,0,4,2,7\n"
    )
    (folder / "social_network.csv").write_text("user_id,user_follow_id\n1,2\n")
    return settings("kuaisar", str(folder), None)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    log = [recommended(), recommended(after_ms=30_000, item=12, acts="0,0,0,0"), recommended(user=2, acts="1,1,1,1")]
    results = [searched(clicks=2), searched(item=10), searched(item=900, kind="LIVE"), searched(item=5, kind="USER")]
    return load_tables(archive(tmp_path, log, results))


def test_both_logs_become_events_of_their_scenario(source: Source) -> None:
    events = source.tables.events
    assert events.schema.types == SCHEMAS["events"].types
    rows = {(row["user_id"], row["scenario"], row["item_id"]): row for row in events.to_pylist()}
    shared = rows["2", "recommendation", "10"]
    assert [shared[name] for name in ("click", "share", "like", "follow", "long_view", "order")] == [True] * 4 + [
        None
    ] * 2
    assert (shared["dwell_ms"], shared["query"], shared["arm"], shared["viewed"]) == (4_500, None, "log", True)
    assert shared["ts"].isoformat() == "2023-05-22T07:53:20+00:00"
    assert (shared["observed_ts"] - shared["ts"]).total_seconds() == 60
    found = rows["1", "search", "11"]
    assert (found["click"], found["like"], found["query"], found["dwell_ms"]) == (True, None, "20 34", None)
    assert rows["1", "search", "10"]["click"] is False
    assert source.now == 1_684_800_000_000_000  # 2023-05-23 00:00 UTC


def test_a_search_session_is_a_request_and_recommendations_are_grouped_by_time(source: Source) -> None:
    events = source.tables.events.to_pandas()
    sizes = events.groupby(["user_id", "scenario"])["request_id"].agg(["nunique", "size"])
    assert sizes.loc[("1", "search")].tolist() == [1, 3]
    assert sizes.loc[("1", "recommendation")].tolist() == [1, 2]
    assert events.groupby("request_id")["user_id"].nunique().max() == 1


def test_results_that_are_no_content_are_left_out_and_counted(source: Source) -> None:
    assert "5" not in source.tables.events["item_id"].to_pylist()
    assert "1 results that are no content left out" in source.description


def test_a_livestream_that_only_a_search_shows_becomes_an_item_that_is_never_on_air(source: Source) -> None:
    items = {row["item_id"]: row for row in source.tables.items.to_pylist()}
    live = items["900"]
    assert (live["kind"], live["live_from"], live["title"], live["policy"]) == ("livestream", None, None, "ALLOW")
    assert live["created_ts"].isoformat() == "2023-05-22T08:00:00+00:00"  # first seen


def test_items_are_described_and_padding_is_none(source: Source) -> None:
    items = {row["item_id"]: row for row in source.tables.items.to_pylist()}
    assert (items["10"]["author_id"], items["10"]["category"], items["10"]["title"]) == (
        "7",
        "Funny/Funny joke",
        "34 5",
    )
    assert items["10"]["created_ts"].isoformat() == "2023-04-21T16:00:00+00:00"  # midnight in Beijing
    assert (items["11"]["author_id"], items["11"]["title"]) == (None, None)
    assert items["11"]["created_ts"].isoformat() == "2023-05-22T08:00:00+00:00"  # first seen, not 1970
    assert items["12"]["category"] is None
    assert {name: row["duration_s"] for name, row in items.items() if name in ("10", "11")} == {"10": 45.4, "11": None}


@pytest.mark.parametrize("name", ["rec_inter.csv", "src_inter.csv", "item_features.csv", "user_features.csv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    config = archive(tmp_path, [recommended()], [searched()])
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"holds no {name}"):
        load_tables(config)


def test_a_missing_column_and_a_value_of_another_type_are_named(tmp_path: Path) -> None:
    config = archive(tmp_path, [recommended()], [searched()])
    (tmp_path / "rec_inter.csv").write_text(RECOMMENDED.replace("timestamp", "moment") + "\n" + recommended() + "\n")
    with pytest.raises(InputError, match=r"rec_inter\.csv has no column 'timestamp'"):
        load_tables(config)
    archive(tmp_path, [recommended(), recommended(acts="maybe,0,0,0")], [searched()])
    with pytest.raises(InputError, match=r"rec_inter\.csv is not readable CSV.*Row #3.*int64.*'maybe'"):
        load_tables(config)
    archive(tmp_path, [recommended()], [searched()], [described(10, day="yesterday")])
    with pytest.raises(InputError, match=r"item_features\.csv.*yesterday"):
        load_tables(config)


def test_bad_rows_go_to_quarantine_and_the_rest_is_accepted(tmp_path: Path) -> None:
    log = [recommended(after_ms=n * 100_000) for n in range(90)]
    unknown_item, unknown_user, copy = recommended(item=777), recommended(user=99), log[0]
    no_time = recommended().replace(f"{float(START_MS)}", "")
    config = archive(tmp_path / "raw", [*log, unknown_item, unknown_user, copy, no_time], [searched()])
    source = load_tables(config)
    write_tables(source.tables, tmp_path / "tables")
    folders = (tmp_path / name for name in ("tables", "accepted", "quarantine"))
    report = validate(*folders, tmp_path / "page.html", config, source.now, tmp_path / "profile.json")
    assert report.quarantined["events"] == 4
    assert read_tables(tmp_path / "accepted").events.num_rows == 91
    assert {failure.contract for failure in report.failures} >= {
        "item_id is in the accepted items",
        "user_id is in the accepted users",
        "ts is not null",
    }
