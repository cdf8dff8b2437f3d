"""What the data contract accepts, what it quarantines, and what stops the pipeline."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnifeed.config import Config, DataConfig, QualityConfig
from omnifeed.errors import ContractBreach, InputError
from omnifeed.tables import read_tables

from .conftest import DAY, NOW, START, Market, event

SPOILED = {  # one way to spoil an event, and the sentence that it breaks
    "event_id is not null": {"event_id": None},
    "user_id is not null": {"user_id": None},
    "served is not null": {"served": None},
    "item_id is in the accepted items": {"item_id": "nobody"},
    "user_id is in the accepted users": {"user_id": "nobody"},
    "ts is not before 2000": {"ts": 5},
    "ts is not in the future": {"ts": NOW, "observed_ts": NOW},
    "observed_ts is not before ts": {"observed_ts": START - 1},
    "scenario is one of livestream, short_video, search": {"scenario": "billboard"},
    "position is zero or more": {"position": -1},
    "dwell_ms is zero or more": {"dwell_ms": -1},
    "gmv is zero or more": {"gmv": float("nan")},
    "propensity is above 0 and at most 1": {"propensity": 0.0},
    "an outcome requires served": {"served": False, "click": True},
}


def spoil_parquet(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.ParquetFile(path).read()), path)


def test_a_clean_table_set_passes_whole(market: Market) -> None:
    market.write()
    report = market.validate()
    assert report.rows == report.accepted == {"items": 30, "users": 20, "events": 600}
    assert report.quarantined == {"items": 0, "users": 0, "events": 0}
    assert report.failures == ()
    before, after = read_tables(market.tables_dir), market.accepted_tables()
    assert after.events.equals(before.events)
    assert after.items.equals(before.items)
    assert after.users.equals(before.users)
    assert json.loads(market.last_profile.read_text()).keys() == {"world"}
    assert json.dumps(report.to_dict())


def test_each_bad_row_goes_to_quarantine_with_the_sentence_it_breaks(market: Market) -> None:
    for number, change in enumerate(SPOILED.values()):
        market.events[10 + number] |= change
    spoiled = market.events[10 : 10 + len(SPOILED)]
    market.write()
    report = market.validate()
    assert report.quarantined == {"items": 0, "users": 0, "events": len(SPOILED)}
    reasons = {
        row["request_id"] + str(row["position"]): row["failed_expectation"] for row in market.quarantined("events")
    }
    assert {reasons[row["request_id"] + str(row["position"])]: True for row in spoiled}.keys() == SPOILED.keys()
    assert {failure.contract for failure in report.failures} == SPOILED.keys()
    future = next(failure for failure in report.failures if "future" in failure.contract)
    assert (future.rows, future.of, future.critical) == (1, 600, False)
    assert future.example == f"event_id '{spoiled[6]['event_id']}': ts = 2026-03-06T00:00:00.000000Z"


def test_a_row_that_breaks_two_contracts_names_both(market: Market) -> None:
    market.events[3] |= {"position": -1, "gmv": -2.0}
    market.write()
    market.validate()
    (row,) = market.quarantined("events")
    assert row["failed_expectation"] == "position is zero or more; gmv is zero or more"
    assert (row["event_id"], row["gmv"], row["query"]) == ("e3", "-2", None)


def test_bad_items_and_users_are_quarantined_and_so_are_the_events_that_refer_to_them(market: Market) -> None:
    market.items[0]["kind"] = "poster"
    market.items[1]["policy"] = "MAYBE"
    market.items[2]["price"] = -1.0
    market.users[0]["signup_ts"] = NOW
    market.write()
    config = Config(quality=QualityConfig(max_bad_share=0.5))
    report = market.validate(config)
    assert report.quarantined["items"] == 3
    assert report.quarantined["users"] == 1
    assert {row["product_ids"] for row in market.quarantined("items")} == {'["i0"]', '["i1"]', '["i2"]'}
    gone = {"i0", "i1", "i2"}
    assert report.quarantined["events"] == sum(
        row["item_id"] in gone or row["user_id"] == "u0" for row in market.events
    )
    assert not gone & set(market.accepted_tables().events["item_id"].to_pylist())


def test_of_duplicate_events_the_first_stays(market: Market) -> None:
    market.events[100:100] = [event(7), event(7)]
    market.events.append(event(8) | {"dwell_ms": 99})
    market.write()
    report = market.validate()
    assert report.accepted["events"] == 600
    contracts = {failure.contract: failure.rows for failure in report.failures}
    assert contracts == {
        "event_id is unique: no copy of an earlier row": 2,
        "event_id is unique: no row that contradicts an earlier one": 1,
    }
    assert [row["event_id"] for row in market.quarantined("events")] == ["e7", "e7", "e8"]
    kept = {row["event_id"]: row["dwell_ms"] for row in market.accepted_tables().events.to_pylist()}
    assert len(kept) == 600
    assert kept["e8"] == 1_500


def test_rows_from_before_the_log_may_carry_the_scenario_history(market: Market) -> None:
    market.events[0] |= {"scenario": "history", "arm": "history"}
    market.events[1] |= {"scenario": "history"}
    market.write()
    market.validate()
    assert [row["event_id"] for row in market.quarantined("events")] == ["e1"]


@pytest.mark.parametrize(
    ("change", "contract", "share"),
    [
        ({"ts": NOW + DAY, "observed_ts": NOW + DAY}, "ts is not in the future", "60 of 600"),
        ({"scenario": "billboard"}, "scenario is one of", "60 of 600"),
    ],
)
def test_too_many_bad_rows_stop_the_pipeline(market: Market, change: dict[str, Any], contract: str, share: str) -> None:
    for row in market.events[:60]:
        row |= change
    market.write()
    with pytest.raises(ContractBreach) as breach:
        market.validate()
    assert "at most 5.0% of a table's rows break their contract" in breach.value.problem
    assert f"{share} rows (10.0%)" in breach.value.problem
    assert contract in breach.value.problem
    assert "event_id 'e" in breach.value.problem
    assert str(market.root / "quarantine") in breach.value.action
    assert not market.accepted.exists()
    assert not market.last_profile.exists()


@pytest.mark.parametrize("name", ["events", "items", "users"])
def test_an_empty_table_stops_the_pipeline(market: Market, name: str) -> None:
    setattr(market, name, [])
    market.write()
    with pytest.raises(ContractBreach, match=f"“{name} has rows”: it is empty"):
        market.validate()


def test_a_missing_column_stops_the_pipeline_by_name(market: Market) -> None:
    path = market.write()
    spoil_parquet(path, lambda rows: rows.drop_columns("item_id"))
    with pytest.raises(ContractBreach) as breach:
        market.validate()
    assert "“every required column is there”: 1 of " in breach.value.problem
    assert f"'events.item_id in {path} (180 rows)': found = null" in breach.value.problem


def test_a_column_of_a_wrong_type_stops_the_pipeline_and_shows_a_value(market: Market) -> None:
    path = market.write()
    prices = pa.array([*["1.5"] * 17, "cheap", *["2"] * 162])
    spoil_parquet(path, lambda rows: rows.set_column(rows.column_names.index("gmv"), "gmv", prices))
    with pytest.raises(ContractBreach) as breach:
        market.validate()
    assert "string does not cast to double: 'cheap' in row 17" in str(breach.value)
    assert f"events.gmv in {path}" in str(breach.value)


def test_an_optional_column_may_be_absent_and_a_castable_type_is_cast(market: Market) -> None:
    path = market.write()
    as_text = pa.array([str(n % 5) for n in range(180)])
    spoil_parquet(path, lambda rows: rows.set_column(rows.column_names.index("position"), "position", as_text))
    spoil_parquet(path, lambda rows: rows.drop_columns("propensity"))
    assert market.validate().accepted["events"] == 600
    assert market.accepted_tables().events["position"].type == pa.int32()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_stops_the_pipeline_by_name(market: Market, damage: str) -> None:
    path = market.write()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path = market.tables_dir / "users.parquet"
        path.unlink()
    with pytest.raises(ContractBreach, match=r"every file is there and readable.*1 of 6 files") as breach:
        market.validate()
    assert str(path) in str(breach.value)
    assert market.page.exists()


@pytest.fixture
def accepted_market(make_market: Callable[[int], Market]) -> Market:
    """A market of which one run was accepted."""
    market = make_market(600)
    market.write()
    market.validate()
    return market


def assert_stops_and_keeps_everything(market: Market, message: str) -> None:
    profile, events = market.last_profile.read_bytes(), market.accepted_tables().events
    with pytest.raises(ContractBreach, match=message) as breach:
        market.validate()
    assert str(market.last_profile) in breach.value.action
    assert market.last_profile.read_bytes() == profile
    assert market.accepted_tables().events.equals(events)


def test_a_volume_drop_stops_the_pipeline(accepted_market: Market) -> None:
    accepted_market.events = [row for number, row in enumerate(accepted_market.events) if number % 5 < 2]
    accepted_market.write()
    assert_stops_and_keeps_everything(
        accepted_market,
        "events a day are within 50%.*1 of .* numbers, for example number 'events a day': change = 150 → 60",
    )


def test_a_label_rate_drop_stops_the_pipeline(accepted_market: Market) -> None:
    for number, row in enumerate(accepted_market.events):
        row["click"] = number % 10 == 0
    accepted_market.write()
    assert_stops_and_keeps_everything(
        accepted_market, "outcome's rate.*'rate of click'.*50.000% of 600 → 10.000% of 600"
    )


def test_a_handful_of_labels_more_or_less_is_noise(accepted_market: Market) -> None:
    for row in accepted_market.events[:7]:
        row["hide"] = True
    accepted_market.write()
    accepted_market.validate()
    for row in accepted_market.events[:7]:
        row["hide"] = False
    accepted_market.write()
    assert accepted_market.validate().failures == ()


def test_a_column_that_is_suddenly_null_stops_the_pipeline(accepted_market: Market) -> None:
    for row in accepted_market.events:
        row["query"] = None
    accepted_market.write()
    assert_stops_and_keeps_everything(accepted_market, "had filled is null now.*'events.query filled'")


def test_another_source_has_its_own_profile(accepted_market: Market) -> None:
    accepted_market.events = accepted_market.events[::5]
    accepted_market.write()
    accepted_market.validate(Config(data=DataConfig(source="parquet")))
    assert json.loads(accepted_market.last_profile.read_text()).keys() == {"parquet", "world"}


@pytest.mark.parametrize("content", ["{", '{"world": {"events_a_day": "many"}}', "[]"])
def test_a_malformed_profile_is_an_input_error_that_names_the_file(market: Market, content: str) -> None:
    market.write()
    market.last_profile.write_text(content)
    with pytest.raises(InputError, match=re.escape(str(market.last_profile))):
        market.validate()


def test_the_page_opens_offline_and_escapes_what_it_shows(market: Market) -> None:
    market.events[1]["scenario"] = "<script>alert(1)</script>"
    market.write()
    market.validate()
    page = market.page.read_text()
    assert not re.search(r"https?:|src=|<link|@import|<script", page)
    assert "&lt;script&gt;alert(1)" in page
    assert "expect_column_values_to_be_unique" in page
    assert "Accepted, 1 row in quarantine" in page
    for row in market.events[:60]:
        row["position"] = -1
    market.write()
    with pytest.raises(ContractBreach):
        market.validate()
    assert "Stopped: 1 critical contract broken" in market.page.read_text()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from([{}, {"dwell_ms": 7}, *SPOILED.values()])),
        min_size=1,
        max_size=20,
    )
)
def test_every_row_is_accepted_or_quarantined_exactly_once(
    make_market: Callable[[int], Market], log: list[tuple[int, dict[str, Any]]]
) -> None:
    market = make_market(1)
    market.events = [event(number) | change | {"request_id": f"row{at}"} for at, (number, change) in enumerate(log)]
    market.write()
    market.last_profile.unlink(missing_ok=True)
    report = market.validate(Config(quality=QualityConfig(max_bad_share=1.0)))
    accepted = market.accepted_tables().events["request_id"].to_pylist()
    quarantined = [row["request_id"] for row in market.quarantined("events")]
    assert sorted(accepted + quarantined) == sorted(f"row{at}" for at in range(len(log)))
    assert report.accepted["events"] == len(accepted)
    assert report.accepted["events"] + report.quarantined["events"] == report.rows["events"] == len(log)
    shutil.rmtree(market.accepted)
