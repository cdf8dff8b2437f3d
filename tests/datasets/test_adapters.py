"""The other sources: the world, Amazon sequences, Open Bandit, and the user's own parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from omnifeed.config import Config, DataConfig, WorldConfig
from omnifeed.datasets.amazon import END_TS
from omnifeed.datasets.source import DAY_US, SOURCES, load_tables
from omnifeed.errors import InputError
from omnifeed.tables import SCHEMAS, Tables, write_tables
from omnifeed.world.market import World

TINY = WorldConfig(users=60, items=120, creators=20, history_days=2, requests_per_user_day=1.0, livestreams_per_day=20)


def configured(source: str, path: Path | str = "") -> Config:
    return Config(data=DataConfig(source=source, path=str(path)), world=TINY)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return World(TINY).tables()


@pytest.fixture
def own(tmp_path: Path, tables: Tables) -> Path:
    write_tables(tables, tmp_path / "own")
    return tmp_path / "own"


def test_the_world_ends_at_its_history_and_names_its_held_out_users() -> None:
    source = load_tables(configured("world"))
    world = World(TINY)
    assert source.now == world.day_start(2)
    assert source.holdout_users == world.holdout_users()
    assert source.tables.events.equals(world.tables().events)


def test_unknown_sources_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.source is 'csv'") as caught:
        load_tables(configured("csv"))
    assert all(name in caught.value.action for name in SOURCES)
    for source in SOURCES[1:]:
        with pytest.raises(InputError, match=r"data\.path"):
            load_tables(configured(source, tmp_path / "nowhere"))
        with pytest.raises(InputError, match="holds"):
            load_tables(configured(source, tmp_path))


def test_own_parquet_comes_back_as_written(own: Path, tables: Tables) -> None:
    source = load_tables(configured("parquet", own))
    assert source.tables.events.sort_by("event_id").equals(tables.events.sort_by("event_id"))
    assert source.tables.items.equals(tables.items)
    assert source.now == World(TINY).day_start(2)


def test_own_parquet_in_one_file_without_observed_ts_gets_the_delay(own: Path, tables: Tables) -> None:
    pq.write_table(tables.events.drop_columns(["observed_ts", "hide"]), own / "events.parquet")
    events = load_tables(configured("parquet", own)).tables.events
    late = pc.subtract(events["observed_ts"].cast(pa.int64()), events["ts"].cast(pa.int64()))
    assert pc.unique(late).to_pylist() == [60_000_000]
    assert events["hide"].null_count == events.num_rows
    assert events.schema.types == SCHEMAS["events"].types


@pytest.mark.parametrize("column", ["event_id", "ts", "user_id"])
def test_own_parquet_without_a_required_column_is_refused_by_name(own: Path, tables: Tables, column: str) -> None:
    pq.write_table(tables.events.drop_columns([column]), own / "events.parquet")
    with pytest.raises(InputError, match=f"events.parquet: the events table has no column '{column}'"):
        load_tables(configured("parquet", own))


def test_own_parquet_of_a_wrong_type_is_refused_by_name(own: Path, tables: Tables) -> None:
    place = tables.events.column_names.index("click")
    wrong = pa.array(["maybe"] * tables.events.num_rows)
    pq.write_table(tables.events.set_column(place, "click", wrong), own / "events.parquet")
    with pytest.raises(InputError, match="column 'click'"):
        load_tables(configured("parquet", own))


def test_own_parquet_that_is_corrupt_empty_or_missing_is_refused(own: Path, tables: Tables) -> None:
    (own / "events.parquet").write_bytes(b"PAR1 this is not parquet")
    with pytest.raises(InputError, match=r"events\.parquet is not a readable parquet file"):
        load_tables(configured("parquet", own))
    pq.write_table(tables.events.slice(0, 0), own / "events.parquet")
    with pytest.raises(InputError, match="holds no events"):
        load_tables(configured("parquet", own))
    (own / "events.parquet").unlink()
    (own / "items.parquet").unlink()
    with pytest.raises(InputError, match=r"items\.parquet does not exist"):
        load_tables(configured("parquet", own))


@pytest.mark.parametrize(
    ("folder", "interactions", "users", "items"),
    [("beauty", 198_502, 22_363, 12_101), ("toys", 167_597, 19_412, 11_924)],
)
def test_amazon_times_make_leave_one_out(shared: Path, folder: str, interactions: int, users: int, items: int) -> None:
    """Sizes as published for the 5-core sets."""
    path = shared / "amazon2014_5core" / folder
    source = load_tables(configured("amazon", path))
    tables = source.tables
    assert (tables.events.num_rows, tables.users.num_rows, tables.items.num_rows) == (interactions, users, items)
    events = tables.events.select(["user_id", "item_id"]).to_pandas()
    ts = tables.events["ts"].cast(pa.int64()).to_numpy()
    for begin in (END_TS - DAY_US, END_TS - 2 * DAY_US):  # the test day, then the validation day
        assert ((ts >= begin) & (ts < begin + DAY_US)).sum() == users
    lines = [line.split() for line in next(path.glob("*.txt")).read_text().splitlines()]
    order = events.assign(ts=ts).sort_values(["user_id", "ts"]).groupby("user_id")["item_id"].agg(list)
    for line in lines[:200]:
        assert order[line[0]] == line[1:]
    assert source.now == END_TS


def test_open_bandit_keeps_arms_propensities_and_campaigns(shared: Path) -> None:
    """6 files of 10,000 rows, 38 to 69 clicks each: its README."""
    source = load_tables(configured("open_bandit", shared / "open_bandit_small"))
    events = source.tables.events.to_pandas()
    assert len(events) == 60_000
    clicks = events.groupby(["arm", "scenario"])["click"].sum()
    assert set(clicks.index) == {(arm, name) for arm in ("random", "bts") for name in ("all", "men", "women")}
    assert (clicks.min(), clicks.max()) == (38, 69)
    assert ((events["propensity"] > 0) & (events["propensity"] <= 1)).all()
    random = events[(events["arm"] == "random") & (events["scenario"] == "men")]
    assert random["propensity"].nunique() == 1
    assert set(events["position"]) == {0, 1, 2}
    assert events["user_id"].nunique() == len(events)
    assert set(events["item_id"]) <= set(source.tables.items["item_id"].to_pylist())
    assert source.now == 1_575_158_400_000_000  # 2019-12-01
