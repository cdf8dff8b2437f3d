"""A history is the prefix of what was known, whoever asks and whenever."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from features.market import START, events_table, small_market
from omnifeed.config import Config
from omnifeed.engine import DuckDBEngine
from omnifeed.export.encode import ACTIONS, DAY_US
from omnifeed.features.aggregates import AS_OF
from omnifeed.features.history import histories_asof, known_events, pack
from omnifeed.tables import TS

LISTS = ("history_item", "history_action", "history_scenario", "history_ts")


def with_length(length: int) -> Config:
    return Config(features=dataclasses.replace(Config().features, history_length=length))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 12), at=st.integers(0, 8 * DAY_US))
def test_the_packed_prefix_is_the_history_of_that_time(seed: int, length: int, at: int) -> None:
    events, t = small_market(seed).events, START + at
    engine = DuckDBEngine()
    whole = {
        row["user_id"]: row for row in pack(engine.collect(known_events(engine.events([events]), 2**60))).to_pylist()
    }
    prefixes = {}
    for user, row in whole.items():
        size = sum(observed < t for observed in row["history_observed_ts"])
        if size:
            prefixes[user] = {name: row[name][:size][-length:] for name in LISTS}
    asof = histories_asof([events], t, with_length(length))
    assert {row["user_id"]: {name: row[name] for name in LISTS} for row in asof.to_pylist()} == prefixes
    assert set(asof[AS_OF].cast(pa.int64()).to_pylist()) <= {t}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), at=st.integers(0, 8 * DAY_US))
def test_what_is_observed_later_changes_nothing(seed: int, at: int) -> None:
    events, t = small_market(seed).events, START + at
    past = events.filter(pc.less(events["observed_ts"], pa.scalar(t).cast(TS)))
    assert histories_asof([events], t, Config()).equals(histories_asof([past], t, Config()))


def test_order_is_by_observation_then_time_then_id() -> None:
    events = events_table(
        [
            {"event_id": "b", "item_id": "second", "ts": START + 3, "observed_ts": START + 9},
            {"event_id": "a", "item_id": "first", "ts": START + 3, "observed_ts": START + 9},
            {"event_id": "c", "item_id": "late", "ts": START + 1, "observed_ts": START + 10, "order": True},
            {"event_id": "d", "item_id": "unseen", "ts": START + 1, "viewed": False},
            {
                "event_id": "e",
                "item_id": "hidden",
                "ts": START + 4,
                "observed_ts": START + 8,
                "hide": True,
                "click": True,
            },
        ]
    )
    (row,) = histories_asof([events], START + 11, Config()).to_pylist()
    assert row["history_item"] == ["hidden", "first", "second", "late"]
    assert [ACTIONS[action - 1] for action in row["history_action"]] == ["reject", "none", "none", "order"]
    assert row["history_ts"] == [START + 4, START + 3, START + 3, START + 1]
    (earlier,) = histories_asof([events], START + 10, Config()).to_pylist()
    assert "late" not in earlier["history_item"]


def test_synthetic_history_counts_and_users_can_be_picked() -> None:
    events = events_table([{"ts": START, "user_id": user, "arm": "history", "click": None} for user in ("u1", "u2")])
    assert histories_asof([events], START + DAY_US, Config())["user_id"].to_pylist() == ["u1", "u2"]
    assert histories_asof([events], START + DAY_US, Config(), users={"u2", "u9"})["user_id"].to_pylist() == ["u2"]
    assert histories_asof([events], START, Config()).num_rows == 0
