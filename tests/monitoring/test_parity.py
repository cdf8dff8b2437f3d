"""The named parity test: what the server logged, computed again from the lake by the code that makes training rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from export.releases import NOW, catalogue_columns, workshop

from monitoring.trial import Rows, ask_everybody, prepared, settings
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.encode import DAY_US
from omnifeed.features.spec import ITEM_DENSE, ITEM_PLAIN_FEATURES, REQUEST_TIME_FEATURES, USER_DENSE
from omnifeed.home import Home
from omnifeed.monitoring.parity import HISTORY
from omnifeed.monitoring.watch import State, Watch, watch

LATER = NOW + DAY_US


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return prepared(tmp_path_factory.mktemp("standing") / "home")


@pytest.fixture
def home(standing: Home, tmp_path: Path) -> Home:
    shutil.copytree(standing.root, tmp_path / "home")
    return Home(tmp_path / "home")


def looked(home: Home, rows: Rows) -> Watch:
    ask_everybody(home, rows)
    return watch(home, settings(), LATER)


def differing(found: Watch) -> set[str]:
    return {each.skew.feature for each in found.skew if each.skew.differing}


def test_every_feature_that_was_served_is_what_training_would_have_seen(home: Home) -> None:
    found = looked(home, Rows(home))
    names = {feature.name for feature in (*USER_DENSE, *ITEM_DENSE)} | {*REQUEST_TIME_FEATURES, *HISTORY}
    names -= {*ITEM_PLAIN_FEATURES}  # as they were then is not kept
    assert {each.skew.feature for each in found.skew} == names
    assert {each.skew.requests for each in found.skew} == {40}
    assert differing(found) == set()
    assert [age.alarm for age in found.ages] == [False] * 3
    assert found.state is State.QUIET  # no reference yet: the parity test needs none
    assert "distributions 10" in found.untested[0]


def in_percent(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value * 100 if name == "user_click_rate_28d" else value for name, value in row.items()}


def without_daily(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("user_") or "history" in name}


def newest_first(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value[::-1] if name in HISTORY else value for name, value in row.items()}


def a_day_old(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "user_daily_as_of": NOW - 3 * DAY_US}


@pytest.mark.parametrize(
    ("spoil", "features", "old"),
    [
        (in_percent, {"user_click_rate_28d"}, set()),
        (without_daily, {"user_views_28d", "user_clicks_28d", "user_click_rate_28d"}, {"user_daily"}),
        (newest_first, set(HISTORY) - {"history_scenario"}, set()),
        (a_day_old, {"user_views_28d"}, {"user_daily"}),
    ],
)
def test_a_fault_between_store_and_model_is_named_by_feature(
    home: Home, spoil: Any, features: set[str], old: set[str]
) -> None:
    found = looked(home, Rows(home, spoil))
    alarms = {each.skew.feature for each in found.skew if each.alarm}
    assert alarms >= features
    assert alarms <= {feature.name for feature in USER_DENSE} | set(HISTORY)
    assert {age.view for age in found.ages if age.alarm} == old
    assert found.state is State.FAULT


def test_item_features_of_another_day_are_found(home: Home) -> None:
    items, features = catalogue_columns(workshop() / "training_set")
    write_snapshot(home, items, {scenario: {} for scenario in features}, NOW)  # every feature: a default
    found = looked(home, Rows(home))
    assert {"item_views_7d", "item_scenario_trending"} <= {each.skew.feature for each in found.skew if each.alarm}
    assert not {feature.name for feature in USER_DENSE} & differing(found)


def test_what_the_catalogue_does_not_know_any_more_is_no_skew(home: Home) -> None:
    """After the requests prices rise, and what u5 clicked is taken away."""
    rows = Rows(home)
    ask_everybody(home, rows)
    items, features = catalogue_columns(workshop() / "training_set")
    gone = set(rows.rows["u5"].history_item)
    assert gone
    kept = [place for place, item in enumerate(items["item_id"]) if item not in gone]
    items = {name: [column[place] for place in kept] for name, column in items.items()}
    features = {
        scenario: {n: [c[place] for place in kept] for n, c in named.items()} for scenario, named in features.items()
    }
    items["price"] = [99.0] * len(kept)
    write_snapshot(home, items, features, NOW)
    assert differing(watch(home, settings(), LATER)) == set()


def test_events_that_the_pushes_have_not_brought_yet_are_counted_and_are_no_skew(home: Home) -> None:
    """Rows as of NOW; one user clicked since, and what they clicked is known before they ask again."""
    folder = home.experiments / "trial"
    (folder / "exposures").mkdir(parents=True)
    line = {"request_id": "x", "item_id": "i3", "user_id": "u5", "scenario": "search", "release": "1", "position": 0}
    (folder / "exposures" / "a.jsonl").write_text(json.dumps({**line, "ts": NOW + 1, "arm": "champion"}) + "\n")
    (folder / "outcomes").mkdir()
    seen = {"request_id": "x", "item_id": "i3", "name": "viewed", "value": 1.0, "ts": NOW + 1, "observed_ts": NOW + 2}
    (folder / "outcomes" / "a.jsonl").write_text(json.dumps(seen) + "\n")
    found = looked(home, Rows(home))
    assert differing(found) == set()
    assert found.behind == 2  # both requests of u5
