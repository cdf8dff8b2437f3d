"""Aggregates as of a midnight are what a plain recomputation from that past gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.market import MINUTE_US, START, events_table, small_market
from omnifeed.config import Config
from omnifeed.engine import DuckDBEngine
from omnifeed.export.encode import DAY_US
from omnifeed.features.aggregates import AS_OF, daily_table, item_features_asof, user_features_asof
from omnifeed.features.spec import ITEM_DENSE, Source, of
from omnifeed.tables import TS

VIEWS: dict[Source, tuple[list[str], int]] = {
    "user_daily": (["user_id"], 28),
    "item_daily": (["item_id"], 7),
    "item_monthly": (["item_id"], 28),
    "item_scenario_daily": (["item_id", "scenario"], 7),
    "scenario_daily": (["scenario"], 7),
}
LABELS = ("click", "long_view", "like", "order", "hide")


def recompute(events: pa.Table, source: Source, day: int) -> pd.DataFrame:
    """The view at one midnight, straight from the definition, in pandas."""
    keys, window = VIEWS[source]
    frame = events.to_pandas()
    frame["ts"] = events["ts"].cast(pa.int64()).to_numpy()
    frame["observed_ts"] = events["observed_ts"].cast(pa.int64()).to_numpy()
    frame = frame[frame["viewed"] != False]  # noqa: E712 - null is seen
    if source != "item_monthly":
        frame = frame[frame["arm"] != "history"]
    known = frame[frame["observed_ts"] < day]
    recent = known[known["ts"] >= day - window * DAY_US]
    rows = []
    for entity in sorted(set(known[keys].itertuples(index=False, name=None))):
        mine = recent[(recent[keys] == list(entity)).all(axis=1)]
        age = (day - mine["ts"] - 1) // DAY_US
        yes = {label: mine[label].map(lambda value: value is True).astype(float) for label in LABELS}
        prefix = source.rpartition("_")[0]
        pool = recent[recent["scenario"] == entity[1]] if source == "item_scenario_daily" else recent
        overall = {label: pool[label].dropna().astype(float).mean() for label in LABELS}
        score = yes["click"] + 5 * yes["long_view"] + 20 * yes["order"]
        row = {
            f"{prefix}_views_1d": (age == 0).sum(),
            f"{prefix}_views_7d": (age < 7).sum(),
            f"{prefix}_views_28d": len(mine),
            f"{prefix}_gmv_{window}d": mine["gmv"].sum(),
            f"{prefix}_active_days_{window}d": age.nunique(),
            f"{prefix}_trending": (score * 0.7**age).sum(),
        }
        for label in LABELS:
            prior = 0.0 if np.isnan(overall[label]) else overall[label]
            row[f"{prefix}_{label}s_{window}d"] = yes[label].sum()
            row[f"{prefix}_{label}_rate_{window}d"] = (yes[label].sum() + 20 * prior) / (mine[label].notna().sum() + 20)
        rows.append({**dict(zip(keys, entity, strict=True)), **{f.name: float(row[f.name]) for f in of(source)}})
    return pd.DataFrame(rows, columns=[*keys, *(f.name for f in of(source))])


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), source=st.sampled_from(sorted(VIEWS)), day=st.integers(1, 36))
def test_aggregates_equal_a_plain_recomputation(seed: int, source: Source, day: int) -> None:
    events = small_market(seed).events
    engine = DuckDBEngine()
    midnights = [START + DAY_US * offset for offset in (day, day + 1)]
    table = daily_table(engine, engine.events([events]), source, midnights)
    for at in midnights:
        expected = recompute(events, source, at)
        got = table.filter(pc.equal(table[AS_OF], pa.scalar(at).cast(TS))).drop_columns([AS_OF]).to_pandas()
        pd.testing.assert_frame_equal(got, expected, check_dtype=False, rtol=1e-6, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), source=st.sampled_from(sorted(VIEWS)), day=st.integers(1, 5))
def test_what_is_observed_later_changes_nothing(seed: int, source: Source, day: int) -> None:
    events = small_market(seed).events
    at = START + DAY_US * day
    past = events.filter(pc.less(events["observed_ts"], pa.scalar(at).cast(TS)))
    engine = DuckDBEngine()
    full, cut = (daily_table(engine, engine.events([table]), source, [at]) for table in (events, past))
    assert full.equals(cut)


def test_an_outcome_known_exactly_at_midnight_waits_for_the_next() -> None:
    events = events_table([{"ts": START + 5, "observed_ts": START + DAY_US}])
    first = user_features_asof([events], START + DAY_US)
    second = user_features_asof([events], START + 2 * DAY_US)
    assert first.num_rows == 0
    assert second["user_views_7d"].to_pylist() == [1.0]


def test_trending_loses_three_tenths_a_day() -> None:
    events = events_table(
        [
            {"ts": START, "click": True, "long_view": True},  # 6 points, two whole days before the midnight
            {"ts": START + DAY_US, "click": True, "order": True},  # 21 points, the day before
        ]
    )
    table = item_features_asof([events], START + 2 * DAY_US, Config())
    trending = dict(zip(table["scenario"].to_pylist(), table["item_scenario_trending"].to_pylist(), strict=True))
    assert trending == {"livestream": 0.0, "short_video": 0.0, "search": pytest.approx(21 + 0.7 * 6)}


def test_an_entity_whose_views_left_the_window_reads_the_prior() -> None:
    events = events_table(
        [
            {"ts": START, "item_id": "old", "click": True},
            *({"ts": START + 8 * DAY_US + n, "item_id": "new", "click": n == 0} for n in range(4)),
        ]
    )
    table = item_features_asof([events], START + 9 * DAY_US, Config())
    rates = dict(zip(table["item_id"].to_pylist(), table["item_click_rate_7d"].to_pylist(), strict=True))
    assert rates["old"] == pytest.approx(0.25)
    assert rates["new"] == pytest.approx((1 + 20 * 0.25) / 24)


def test_unknown_labels_count_neither_as_views_nor_as_outcomes_of_a_rate() -> None:
    events = events_table([{"ts": START, "click": None}, {"ts": START, "click": True}])
    table = user_features_asof([events], START + DAY_US)
    assert table["user_views_28d"].to_pylist() == [2.0]
    assert table["user_click_rate_28d"].to_pylist() == [1.0]  # (1 + 20 * 1) / (1 + 20)


def test_synthetic_history_and_unseen_rows_are_left_out() -> None:
    events = events_table(
        [{"ts": START, "arm": "history"}, {"ts": START, "viewed": False}, {"ts": START + MINUTE_US, "viewed": None}]
    )
    assert user_features_asof([events], START + DAY_US)["user_views_28d"].to_pylist() == [1.0]


def test_the_month_of_an_item_counts_synthetic_history() -> None:
    events = events_table(
        [
            {"ts": START, "arm": "history", "click": None, "long_view": True},
            {"ts": START + MINUTE_US, "click": True},
        ]
    )
    row = item_features_asof([events], START + DAY_US, Config()).to_pylist()[0]
    assert (row["item_views_7d"], row["item_views_28d"]) == (1.0, 2.0)
    assert row["item_click_rate_28d"] == pytest.approx(1.0)  # one click of one that is known
    assert row["item_long_view_rate_28d"] == pytest.approx(0.5)


def test_an_item_of_which_nothing_is_known_reads_the_rates_of_its_scenario() -> None:
    rows = [{"ts": START + n, "scenario": "search", "click": n == 0} for n in range(4)]
    rows += [{"ts": START + n, "scenario": "livestream", "click": True} for n in range(4)]
    table = item_features_asof([events_table(rows)], START + DAY_US, Config(), item_ids=["new"])
    rates = {row["scenario"]: row for row in table.to_pylist()}
    of_search = (1 + 20 * 5 / 8) / 24  # drawn to the rate over all scenarios
    for name in ("item_click_rate_7d", "item_click_rate_28d", "item_scenario_click_rate_7d"):
        assert rates["search"][name] == pytest.approx(of_search)
        assert rates["livestream"][name] > rates["search"][name]
        assert rates["short_video"][name] == 0.0  # of a scenario without events nothing is known either
    assert rates["search"]["item_scenario_views_7d"] == 0.0


def test_the_catalogue_has_every_scenario_of_the_configuration() -> None:
    config = Config(data=dataclasses.replace(Config().data, scenarios=("tab0", "tab1")))
    events = events_table([{"ts": START, "item_id": item, "scenario": "tab1"} for item in ("b", "a")])
    table = item_features_asof([events], START + DAY_US, config)
    assert table.column_names == ["item_id", "scenario", *(feature.name for feature in ITEM_DENSE)]
    assert table.select(["item_id", "scenario"]).to_pylist() == [
        {"item_id": item, "scenario": name} for item in ("a", "b") for name in ("tab0", "tab1")
    ]
    assert table["item_views_7d"].to_pylist() == [1.0] * 4
    assert table["item_scenario_views_7d"].to_pylist() == [0.0, 1.0, 0.0, 1.0]
