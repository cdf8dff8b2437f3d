"""KuaiLive on a fixture: rows written by hand in the schema that its page publishes. The real files are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omnifeed.config import Config
from omnifeed.datasets.source import Source, load_tables
from omnifeed.errors import InputError
from omnifeed.pipelines.cli import settings
from omnifeed.quality.validate import validate
from omnifeed.tables import SCHEMAS, read_tables, write_tables

START_MS = 1_746_374_400_000  # 2025-05-04 16:00 UTC, midnight in Beijing
ROOM = "p_date,live_id,streamer_id,live_type,start_timestamp,end_timestamp,live_content_category,live_name_id"
USER = (
    "user_id,age,gender,country,device_brand,device_price,reg_timestamp,fans_num,follow_num,first_watch_live_timestamp,"
    "accu_watch_live_cnt,accu_watch_live_duration,is_live_streamer,is_photo_author,onehot_feat0"
)
ROOMS = [
    f"20250505,50,7,1,{START_MS - 1000},{START_MS + 3_600_000},shop,0",
    f"20250506,50,7,1,{START_MS - 1000},{START_MS + 7_200_000},shop,0",  # the same room, its row of the next day
    f"20250505,51,8,1,{START_MS},{START_MS + 600_000},game,3",
]


def act(user: int = 1, room: int = 50, after_ms: int = 0, *more: Any) -> str:
    return ",".join(map(str, (user, room, 7, START_MS + after_ms, *more)))


def archive(folder: Path, clicks: list[str], rooms: list[str] = ROOMS, **acts: list[str]) -> Config:
    folder.mkdir(exist_ok=True)
    shown = "user_id,live_id,streamer_id,timestamp"
    for name, header in (
        ("click", f"{shown},watch_live_time"),
        ("negative", shown),
        ("comment", shown),
        ("like", shown),
        ("gift", f"{shown},gift_price"),
    ):
        rows = clicks if name == "click" else acts.get(name, [])
        (folder / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "room.csv").write_text("\n".join([ROOM, *rooms]) + "\n")
    users = ["1,18-23,M,China,APPLE,5000+,2023-05-03,0-10,10-100,2023-05-03,0-50000,0-1,0,0,0"]
    users.append(users[0].replace("1,18-23", "2,24-30"))
    (folder / "user.csv").write_text("\n".join([USER, *users]) + "\n")
    return settings("kuailive", str(folder), None)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return load_tables(
        archive(
            tmp_path,
            clicks=[act(1, 50, 0, 2_000), act(1, 50, 600_000, 400_000), act(2, 51, 0, 50)],
            negative=[act(1, 51, 30_000)],
            comment=[act(1, 50, 1_000), act(2, 50, 1_000)],  # user 2 never entered room 50
            like=[act(1, 50, 700_000)],
            gift=[act(1, 50, 600_000, 2), act(1, 50, 1_200_000, 5)],
        )
    )


def rows(source: Source) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {
        (row["user_id"], row["item_id"], int(row["ts"].timestamp() * 1000) - START_MS): row
        for row in source.tables.events.to_pylist()
    }


def test_entries_and_rooms_passed_by_are_impressions(source: Source) -> None:
    assert source.tables.events.schema.types == SCHEMAS["events"].types
    found = rows(source)
    assert {key: row["click"] for key, row in found.items()} == {
        ("1", "50", 0): True,
        ("1", "50", 600_000): True,
        ("2", "51", 0): True,
        ("1", "51", 30_000): False,
    }
    passed = found["1", "51", 30_000]
    assert [passed[name] for name in ("like", "comment", "order", "gmv", "dwell_ms", "viewed")] == [
        *(False, False, False, 0.0, None, True)
    ]
    assert passed["request_id"] == found["1", "50", 0]["request_id"] != found["1", "50", 600_000]["request_id"]
    assert source.now == 1_746_403_200_000_000  # 2025-05-05 00:00 UTC


def test_an_act_belongs_to_the_last_entry_before_it_and_one_without_is_counted(source: Source) -> None:
    found = rows(source)
    first, second = found["1", "50", 0], found["1", "50", 600_000]
    assert [first[name] for name in ("comment", "like", "order", "gmv", "dwell_ms")] == [True, False, False, 0.0, 2_000]
    assert [second[name] for name in ("comment", "like", "order", "gmv")] == [False, True, True, 7.0]
    assert "1 acts without an entry left out" in source.description


def test_outcomes_are_known_when_watching_is_over_and_the_last_act_has_happened(source: Source) -> None:
    late = {key: (row["observed_ts"] - row["ts"]).total_seconds() for key, row in rows(source).items()}
    assert late["1", "50", 0] == 60  # the delay: two seconds were watched
    assert late["1", "50", 600_000] == 600  # the last gift, after 400 s of watching
    assert late["1", "51", 30_000] == 60


def test_a_room_is_one_livestream_from_its_first_start_to_its_last_end(source: Source) -> None:
    items = {row["item_id"]: row for row in source.tables.items.to_pylist()}
    assert sorted(items) == ["50", "51"]
    room = items["50"]
    assert (room["kind"], room["author_id"], room["category"], room["title"]) == ("livestream", "7", "shop", None)
    assert (room["live_until"] - room["live_from"]).total_seconds() == 7_201
    assert room["created_ts"] == room["live_from"]
    user = source.tables.users.to_pylist()[0]
    assert (user["age_band"], user["country"], user["device"]) == ("18-23", "China", "APPLE")
    assert user["signup_ts"].isoformat() == "2023-05-02T16:00:00+00:00"  # midnight in Beijing


@pytest.mark.parametrize("name", ["click", "negative", "comment", "like", "gift", "room", "user"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    config = archive(tmp_path, [act(1, 50, 0, 9)])
    (tmp_path / f"{name}.csv").unlink()
    with pytest.raises(InputError, match=rf"holds no {name}\.csv"):
        load_tables(config)


def test_a_missing_column_and_a_value_of_another_type_are_named(tmp_path: Path) -> None:
    config = archive(tmp_path, [act(1, 50, 0, 9)])
    (tmp_path / "room.csv").write_text(ROOM.replace("end_timestamp", "end") + "\n" + ROOMS[0] + "\n")
    with pytest.raises(InputError, match=r"room\.csv has no column 'end_timestamp'"):
        load_tables(config)
    archive(tmp_path, [act(1, 50, 0, 9)], gift=[act(1, 50, 1, "a rose")])
    with pytest.raises(InputError, match=r"gift\.csv is not readable CSV.*Row #2.*'a rose'"):
        load_tables(config)
    archive(tmp_path, [])
    with pytest.raises(InputError, match="holds no events"):
        load_tables(config)


def test_bad_rows_go_to_quarantine_and_the_rest_is_accepted(tmp_path: Path) -> None:
    clicks = [act(1, 50, n * 100_000, 5) for n in range(90)]
    bad = [act(1, 999, 0, 5), act(3, 50, 0, 5), act(1, 51, 1, -5), act(2, 51, 0, 5).replace(str(START_MS), "")]
    rooms = [*ROOMS, *(f"20250505,{n},8,1,{START_MS},{START_MS + 9},game,3" for n in range(60, 90))]
    rooms.append(f"20250505,52,8,1,{START_MS},{START_MS - 9},game,3")  # ends before it starts
    config = archive(tmp_path / "raw", [*clicks, *bad], rooms)
    source = load_tables(config)
    write_tables(source.tables, tmp_path / "tables")
    folders = (tmp_path / name for name in ("tables", "accepted", "quarantine"))
    report = validate(*folders, tmp_path / "page.html", config, source.now, tmp_path / "profile.json")
    assert (report.quarantined["events"], report.quarantined["items"]) == (4, 1)
    assert read_tables(tmp_path / "accepted").events.num_rows == 90
