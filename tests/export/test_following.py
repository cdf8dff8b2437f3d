"""A catalogue that follows its deltas is the catalogue that a snapshot of the same items would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnifeed.export.catalogue import load_snapshot, write_snapshot
from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.delta import Change, append_delta, change_of, sequences
from omnifeed.export.following import applied, bridged, compact, later, load_catalogue
from omnifeed.features.spec import ITEM_DENSE
from omnifeed.home import Home

NOW = 1_772_409_600_000_000
NEW = {"kind": "video", "created_ts": NOW - 1, "policy": "ALLOW"}


def items(count: int, **columns: Any) -> dict[str, list[Any]]:
    usual = {"kind": "product", "created_ts": NOW - 1, "policy": "ALLOW", "title": "a lamp", "author_id": "a"}
    return {"item_id": [f"i{n}" for n in range(count)], **{n: [v] * count for n, v in {**usual, **columns}.items()}}


def snapshot(home: Home, count: int = 3, now: int = NOW, **columns: Any) -> Catalogue:
    write_snapshot(home, items(count, **columns), {"feed": {"item_views_7d": [float(n) for n in range(count)]}}, now)
    return load_snapshot(home)


def change(home: Home, item_id: str, now: int = NOW + 1, **values: Any) -> None:
    append_delta(home, [change_of({"item_id": item_id, **values})], now=now)


def shown(catalogue: Catalogue, now: int = NOW, locale: str | None = None) -> set[str]:
    rows = np.flatnonzero(catalogue.eligible_within(len(catalogue), now, locale))
    found = [str(catalogue.texts["item_id"][int(row)]) for row in rows]
    assert len(found) == len(set(found)), "an item is shown from two rows"
    return set(found)


def test_stock_policy_and_times_are_written_in_place(tmp_path: Path) -> None:
    home = Home(tmp_path)
    before = snapshot(home)
    change(home, "i0", stock=0)
    change(home, "i1", policy="DROP")
    after = load_catalogue(home)
    assert shown(after) == {"i2"}
    assert shown(before) == {"i0", "i1", "i2"}  # a request that took the former state sees it to its end
    assert len(after) == len(before)
    assert (after.base, after.sequence) == (before.base, 2)
    change(home, "i0", stock=None)
    change(home, "i1", policy="INTERSTITIAL")
    assert shown(load_catalogue(home)) == {"i0", "i1", "i2"}


def test_a_new_price_is_a_new_row_with_the_former_s_features(tmp_path: Path) -> None:
    home = Home(tmp_path)
    before = snapshot(home)
    change(home, "i2", price=9.5)
    after = load_catalogue(home)
    assert (len(after), after.rows["i2"], after.row("i2", len(before))) == (4, 4, 3)
    assert after.price[3] == 9.5
    assert np.isnan(before.price[2])
    assert np.isnan(after.price[2])
    np.testing.assert_array_equal(
        after.features.rows("feed", np.array([3]))[0], after.features.rows("feed", np.array([2]))[0]
    )
    assert shown(after) == {"i0", "i1", "i2"}
    # Whoever has encoded the first three rows only still shows it, and hides it as quickly as the others.
    assert after.eligible_within(3, NOW).tolist() == [True] * 3
    change(home, "i2", stock=0)
    sold_out = load_catalogue(home)
    assert sold_out.eligible_within(3, NOW).tolist() == [True, True, False]
    assert shown(sold_out) == {"i0", "i1"}


def test_the_same_values_again_make_no_row(tmp_path: Path) -> None:
    home = Home(tmp_path)
    snapshot(home)
    change(home, "i0", title="a lamp", price=None)
    assert len(load_catalogue(home)) == 3


def test_a_new_item_is_there_and_one_that_is_half_told_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path)
    snapshot(home)
    change(home, "new", **NEW, title="a kite", author_id="b")
    change(home, "half", stock=4)
    after = load_catalogue(home)
    assert shown(after) == {"i0", "i1", "i2", "new"}
    assert after.features.rows("feed", np.array([3]))[0].tolist() == [0.0] * len(ITEM_DENSE)
    assert "half" not in after.rows
    assert "half" in caplog.text


def test_a_block_holds_for_later_items_and_later_snapshots_until_it_is_lifted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    snapshot(home)
    append_delta(home, now=NOW + 1, block=["a"])
    change(home, "new", **NEW, author_id="a")
    change(home, "i1", author_id="b")
    assert shown(load_catalogue(home)) == {"i1"}
    snapshot(home, now=NOW + 10)
    assert shown(load_catalogue(home), NOW + 10) == set()
    append_delta(home, now=NOW + 11, unblock=["a"])
    assert shown(load_catalogue(home), NOW + 10) == {"i0", "i1", "i2"}


def test_what_a_delta_dropped_stays_dropped_whatever_tables_say_until_a_delta_lifts_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    snapshot(home)
    change(home, "i0", policy="DROP")
    snapshot(home, now=NOW + 10)
    assert shown(load_catalogue(home)) == {"i1", "i2"}
    change(home, "i0", now=NOW + 11, policy="ALLOW")
    snapshot(home, now=NOW + 20)
    assert shown(load_catalogue(home)) == {"i0", "i1", "i2"}


def test_a_snapshot_takes_in_what_it_describes_and_leaves_later_deltas_on_top(tmp_path: Path) -> None:
    home = Home(tmp_path)
    snapshot(home)
    change(home, "i0", now=NOW + 5, stock=0)
    change(home, "i1", now=NOW + 15, stock=0)
    assert snapshot(home, now=NOW + 10).sequence == 1  # whose table says that i0 is in stock again
    assert shown(load_catalogue(home), NOW + 20) == {"i0", "i2"}


def test_locales_bind_an_item_to_its_languages(tmp_path: Path) -> None:
    home = Home(tmp_path)
    snapshot(home, locales=None)
    change(home, "i0", locales=["de"])
    change(home, "i1", locales=["de-AT", "en"])
    catalogue = load_catalogue(home)
    for locale, expected in {
        None: {"i0", "i1", "i2"},
        "de": {"i0", "i2"},
        "de-AT": {"i0", "i1", "i2"},
        "en-US": {"i1", "i2"},
        "zh-CN": {"i2"},
    }.items():
        assert shown(catalogue, locale=locale) == expected
    change(home, "i0", locales=None)
    assert "i0" in shown(load_catalogue(home), locale="zh-CN")
    compact(home)
    assert shown(load_snapshot(home), locale="en-US") == {"i0", "i1", "i2"}


def test_a_damaged_delta_is_left_out_and_the_later_ones_hold(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = snapshot(home)
    for n in range(3):
        change(home, f"i{n}", stock=0)
    (home.catalogue / "deltas" / f"{2:012d}").write_bytes(b"nothing")
    assert shown(load_catalogue(home)) == {"i1"}
    assert shown(applied(first, *later(home, 0))) == {"i1"}


def test_compacting_changes_nothing_that_a_request_sees(tmp_path: Path) -> None:
    home = Home(tmp_path)
    snapshot(home)
    change(home, "i0", price=2.0)
    change(home, "i1", policy="DROP")
    change(home, "new", **NEW, author_id="b", title="直播")
    append_delta(home, now=NOW + 2, block=["b"])
    before = load_catalogue(home)
    compact(home)
    after = load_catalogue(home)
    assert (after.sequence, after.now, len(after)) == (4, before.now, 4)
    assert shown(after) == shown(before) == {"i0", "i2"}
    assert after.blocked_authors == {"b"}
    assert after.dropped_items == {"i1"}
    for item in before.rows:
        old, new = before.rows[item] - 1, after.rows[item] - 1
        assert before.encoded[old] == after.encoded[new]
        np.testing.assert_array_equal(
            before.features.rows("feed", np.array([old]))[0], after.features.rows("feed", np.array([new]))[0]
        )
    assert sequences(home) == [1, 2, 3, 4]  # young enough for a snapshot that describes an earlier moment


def test_a_former_snapshot_s_rows_are_filtered_by_the_current_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    former = snapshot(home, 4)
    write_snapshot(home, {**items(3), "item_id": ["i3", "i1", "i2"], "stock": [None, 0, 5]}, {}, NOW + 1)
    change(home, "i2", now=NOW + 2, price=4.0, policy="DROP")
    assert shown(bridged(former, load_catalogue(home))) == {"i3"}
    write_snapshot(home, {name: [] for name in items(0)}, {}, NOW + 3)
    assert shown(bridged(former, load_snapshot(home))) == set()


ITEMS = st.sampled_from([f"i{n}" for n in range(5)] + ["new-1", "new-2"])
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "stock": st.none() | st.integers(0, 2),
        "policy": st.sampled_from(["ALLOW", "INTERSTITIAL", "DROP"]),
        "price": st.none() | st.floats(0, 9),
        "title": st.none() | st.text(max_size=3),
        "author_id": st.none() | st.sampled_from("ab"),
        "kind": st.sampled_from(["livestream", "video"]),
        "created_ts": st.integers(NOW - 2, NOW + 2),
        "live_from": st.none() | st.integers(NOW - 2, NOW + 2),
        "live_until": st.none() | st.integers(NOW - 2, NOW + 2),
    },
)
STEP = st.tuples(st.lists(st.tuples(ITEMS, VALUES), max_size=3), st.sets(st.sampled_from("ab")), st.booleans())


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEP, max_size=6), batch=st.booleans())
def test_deltas_one_by_one_or_together_come_to_what_a_snapshot_of_the_result_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], batch: bool
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    catalogue = snapshot(home, 5)
    names = [name for name in items(1) if name != "item_id"]
    truth: dict[str, dict[str, Any]] = {f"i{n}": {name: items(1)[name][0] for name in names} for n in range(5)}
    blocked: set[str] = set()
    for changes, authors, lift in steps:
        append_delta(
            home,
            [Change(item, values) for item, values in changes],
            now=NOW,
            block=() if lift else authors,
            unblock=[*authors, "nobody"] if lift else ["nobody"],
        )
        for item, values in changes:
            if item in truth or {"kind", "created_ts", "policy"} <= values.keys():
                truth.setdefault(item, {}).update(values)
        blocked = blocked - authors if lift else blocked | authors
        if not batch:
            catalogue = applied(catalogue, *later(home, catalogue.sequence))
    if batch:
        catalogue = applied(catalogue, *later(home, catalogue.sequence))
    columns = {name: [truth[item].get(name) for item in truth] for name in {n for row in truth.values() for n in row}}
    other = Home(home.root / "other")
    write_snapshot(other, {"item_id": list(truth), **columns}, {}, NOW, blocked)
    expected = load_snapshot(other)
    for moment in (NOW - 1, NOW, NOW + 1):
        assert shown(catalogue, moment) == shown(expected, moment)
    assert set(catalogue.rows) == set(truth)
    for item in truth:
        assert catalogue.encoded[catalogue.rows[item] - 1] == expected.encoded[expected.rows[item] - 1]


def test_who_has_not_encoded_a_new_kind_or_creator_hides_by_it_all_the_same(tmp_path: Path) -> None:
    home = Home(tmp_path)
    before = snapshot(home)
    change(home, "i0", kind="livestream", live_from=NOW + 5)
    change(home, "i1", author_id="b")
    append_delta(home, now=NOW + 1, block=["b"])
    after = load_catalogue(home)
    assert len(after) == 5
    assert after.eligible_within(3, NOW).tolist() == [False, False, True]
    assert bridged(before, after).eligible(NOW).tolist() == [False, False, True]
