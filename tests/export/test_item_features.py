"""What a catalogue holds of its items' aggregates, each number once, and what a candidate reads of it."""

from __future__ import annotations

import numpy as np
import pytest

from omnifeed.errors import InputError
from omnifeed.export.encode import dense
from omnifeed.export.item_features import OWN, SHARED, WITHIN, ItemFeatures
from omnifeed.features.spec import ITEM_DENSE

ROWS = 5


def columns() -> dict[str, dict[str, np.ndarray]]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    shared = {one.name: rng.random(ROWS) for one in SHARED}
    return {
        scenario: {
            **shared,
            **{one.name: rng.random(ROWS) for one in WITHIN},
            **{one.name: np.full(ROWS, rng.random()) for one in OWN},
        }
        for scenario in ("feed", "search")
    }


def names() -> list[str]:
    return [one.name for one in ITEM_DENSE]


def test_every_column_comes_back_where_the_ranker_reads_it() -> None:
    given = columns()
    assert {*SHARED, *WITHIN, *OWN} == set(ITEM_DENSE)
    features = ItemFeatures.of(given, ROWS)
    rows = np.array([4, 0, 0])
    for scenario, named in given.items():
        np.testing.assert_array_equal(features.rows(scenario, rows), dense(named, ITEM_DENSE, ROWS)[rows])


def test_an_unknown_scenario_reads_what_is_the_items_alone() -> None:
    given = columns()
    found = ItemFeatures.of(given, ROWS).rows("new", np.arange(ROWS))
    known = dense(given["feed"], ITEM_DENSE, ROWS)
    for place, feature in enumerate(ITEM_DENSE):
        the_items = feature.source in ("item_daily", "item_monthly")
        np.testing.assert_array_equal(found[:, place], known[:, place] if the_items else 0)


def test_without_a_scenario_everything_is_a_default() -> None:
    features = ItemFeatures.of({}, ROWS)
    np.testing.assert_array_equal(features.rows("feed", np.arange(ROWS)), dense({}, ITEM_DENSE, ROWS))
    assert features.trending("feed").tolist() == [0] * ROWS


def test_a_further_row_is_as_the_former_or_as_its_scenario() -> None:
    given = columns()
    features = ItemFeatures.of(given, ROWS)
    more = features.extended(np.array([2, 0]))
    former, moved, unknown = more.rows("search", np.array([1, ROWS, ROWS + 1]))
    np.testing.assert_array_equal(moved, former)
    place = {name: at for at, name in enumerate(names())}
    for feature in ITEM_DENSE:
        source = feature.name if feature.source == "scenario_daily" else feature.fallback
        expected = np.float32(given["search"][source][0]) if source else 0
        assert unknown[place[feature.name]] == expected
    np.testing.assert_array_equal(features.rows("search", np.arange(ROWS)), more.rows("search", np.arange(ROWS)))


def test_rows_can_be_taken() -> None:
    features, order = ItemFeatures.of(columns(), ROWS), np.array([3, 1])
    np.testing.assert_array_equal(features.taken(order).rows("feed", np.arange(2)), features.rows("feed", order))


@pytest.mark.parametrize(
    ("scenario", "name", "value", "says"),
    [
        ("search", "item_views_7d", 7.0, r"'item_views_7d' differs between 'search' and another"),
        ("feed", "scenario_click_rate_7d", 7.0, r"'scenario_click_rate_7d' differs between items of 'feed'"),
    ],
)
def test_a_number_that_is_two_is_refused(scenario: str, name: str, value: float, says: str) -> None:
    given = columns()
    given[scenario][name] = np.append(given[scenario][name][:-1], value)
    with pytest.raises(InputError, match=says):
        ItemFeatures.of(given, ROWS)


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="has 2 rows for 5 items"):
        ItemFeatures.of({"feed": {"item_views_7d": np.zeros(2)}}, ROWS)
