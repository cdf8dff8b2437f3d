from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.errors import InputError, IntegrityError, UnavailableError
from omnifeed.export.catalogue import KEPT, current_version, load_snapshot, write_snapshot
from omnifeed.export.encode import dense
from omnifeed.export.item_features import TRENDING, WITHIN
from omnifeed.export.strings import Strings
from omnifeed.features.spec import ITEM_DENSE
from omnifeed.home import Home

NOW = 1_772_409_600_000_000


def item(**columns: Any) -> dict[str, list[Any]]:
    """One item, shown unless a column says otherwise."""
    usual = {"item_id": "i", "author_id": "a", "kind": "product", "created_ts": NOW - 1, "policy": "ALLOW"}
    return {name: [value] for name, value in {**usual, **columns}.items()}


def shown(tmp_path: Path, now: int = NOW, blocked: tuple[str, ...] = (), **columns: Any) -> bool:
    home = Home(tmp_path)
    write_snapshot(home, item(**columns), {}, NOW, blocked)
    return bool(load_snapshot(home).eligible(now)[0])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, True),
        ({"policy": "INTERSTITIAL"}, True),
        ({"policy": "DROP"}, False),
        ({"stock": 0}, False),
        ({"stock": 1}, True),
        ({"stock": None}, True),
        ({"created_ts": NOW}, True),
        ({"created_ts": NOW + 1}, False),
        ({"kind": "livestream"}, False),
        ({"kind": "livestream", "live_from": NOW}, True),
        ({"kind": "livestream", "live_from": NOW + 1}, False),
        ({"kind": "livestream", "live_from": NOW - 2, "live_until": NOW}, False),
        ({"kind": "livestream", "live_from": NOW - 2, "live_until": NOW + 1}, True),
        ({"kind": "video", "live_until": NOW - 1}, True),
    ],
)
def test_what_may_be_shown(tmp_path: Path, columns: dict[str, Any], expected: bool) -> None:
    assert shown(tmp_path, **columns) is expected


def test_a_blocked_author_is_not_shown(tmp_path: Path) -> None:
    assert not shown(tmp_path, blocked=("a",))
    assert shown(tmp_path, blocked=("b",))


@given(st.lists(st.none() | st.text(max_size=8), max_size=20))
def test_strings_come_back_as_they_were(values: list[str | None]) -> None:
    assert list(Strings.of(values)) == values


def test_a_snapshot_comes_back_with_times_prices_and_features(tmp_path: Path) -> None:
    home = Home(tmp_path)
    items = {
        "item_id": ["я", "b"],
        "kind": ["video", "product"],
        "policy": ["ALLOW", "ALLOW"],
        "created_ts": [datetime(2026, 3, 2, microsecond=7, tzinfo=UTC), NOW],
        "title": [None, "直播"],
        "price": [None, 2.5],
    }
    features = {"search": {"item_views_7d": [3.0, None], "item_scenario_trending": [0.0, 9.0]}}
    version = write_snapshot(home, items, features, NOW)
    loaded = load_snapshot(home)
    assert (loaded.version, current_version(home), len(loaded)) == (version, version, 2)
    assert loaded.columns([0, 1])["title"] == [None, "直播"]
    assert loaded.created_ts.tolist() == [NOW + 7, NOW]
    assert np.isnan(loaded.price[0])
    np.testing.assert_array_equal(
        loaded.features.rows("search", np.arange(2)), dense(features["search"], ITEM_DENSE, 2)
    )
    np.testing.assert_allclose(loaded.features.trending("search"), np.log1p([0, 9]), rtol=1e-6)


def test_the_largest_authors_are_the_fewest_with_half_of_the_views(tmp_path: Path) -> None:
    home, authors = Home(tmp_path), ["a", "b", None, "a", "c", "d"]
    items = {
        "item_id": list("012345"),
        "author_id": authors,
        "kind": ["product"] * 6,
        "policy": ["ALLOW"] * 6,
        "created_ts": [NOW - 1] * 6,
    }
    views = {"item_views_28d": [3.0, 4.0, 99.0, 2.0, 3.0, None]}  # a 5, b 4, c 3, d none: half of 12 is 6
    write_snapshot(home, items, {"search": views}, NOW)
    rows = np.arange(6)
    assert load_snapshot(home).of_tail(rows) == [False, False, None, False, True, True]
    write_snapshot(home, items, {}, NOW + 1)
    assert load_snapshot(home).of_tail(rows) == [True, True, None, True, True, True]  # nobody has any


def test_an_unknown_scenario_reads_the_daily_aggregates_and_the_largest_trend(tmp_path: Path) -> None:
    home = Home(tmp_path)
    by_scenario = {
        name: {"item_views_7d": [5.0], "item_scenario_views_7d": [4.0], "item_scenario_trending": [trend]}
        for name, trend in (("feed", 1.0), ("search", 7.0))
    }
    write_snapshot(home, item(), by_scenario, NOW)
    loaded = load_snapshot(home)
    values = dict(
        zip((feature.name for feature in ITEM_DENSE), loaded.features.rows("new", np.array([0]))[0], strict=True)
    )
    assert values["item_views_7d"] == pytest.approx(np.log1p(5))
    assert values["item_scenario_views_7d"] == 0
    assert WITHIN[TRENDING].name == "item_scenario_trending"
    assert loaded.features.trending("new")[0] == pytest.approx(np.log1p(7))


def test_the_pointer_names_the_last_snapshot_and_old_ones_go(tmp_path: Path) -> None:
    home = Home(tmp_path)
    versions = [write_snapshot(home, item(price=float(n)), {}, NOW + n) for n in range(KEPT + 3)]
    assert load_snapshot(home).version == versions[-1]
    assert len(list(home.catalogue.glob("*.npz"))) == KEPT
    assert write_snapshot(home, item(price=1.0), {}, NOW + 1) == versions[1]  # the name is that of the content
    assert load_snapshot(home).price[0] == 1.0


@pytest.mark.parametrize(
    "items",
    [
        {**item(), "item_id": ["i", "i"]},
        item(policy="SOMETIMES"),
        item(kind="podcast"),
        item(created_ts=None),
        {**item(), "title": ["one", "two"]},
    ],
)
def test_what_is_no_catalogue_is_refused_and_the_former_stays(tmp_path: Path, items: dict[str, list[Any]]) -> None:
    home = Home(tmp_path)
    version = write_snapshot(home, item(), {}, NOW)
    with pytest.raises(InputError):
        write_snapshot(home, items, {}, NOW + 1)
    assert load_snapshot(home).version == version


def test_features_must_be_aligned(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 rows for 1 items"):
        write_snapshot(Home(tmp_path), item(), {"feed": {"item_views_7d": [1.0, 2.0]}}, NOW)


def test_none_and_damage_are_told_apart(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(UnavailableError):
        load_snapshot(home)
    version = write_snapshot(home, item(), {}, NOW)
    path = home.catalogue / f"{version}.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(IntegrityError):
        load_snapshot(home)
