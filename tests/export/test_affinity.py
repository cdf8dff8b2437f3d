"""What a user did before with an item, its creator, its category and in a scenario, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnifeed.config import Config
from omnifeed.export.affinity import LIFT_WEIGHT, PRIOR_RATE, RATE_WEIGHT, affinity, item_keys
from omnifeed.export.encode import ACTIONS, DAY_US, EncodeSpec, UserRow, encode_items, encode_request, unknown_item
from omnifeed.features.spec import AFFINITY_FEATURES

SPEC = EncodeSpec.from_config(Config())
NOW = 1_772_409_600_000_000
CATALOGUE = {
    "item_id": ["tea", "cup", "pot", "hat"],
    "author_id": ["ann", "ann", "bob", None],
    "category": ["home/drinks", "home/ware", "home/ware", None],
}
ROWS = {item: row for row, item in enumerate(CATALOGUE["item_id"], start=1)}
KEYS = item_keys({n: np.concatenate([unknown_item(SPEC)[n], v]) for n, v in encode_items(CATALOGUE, SPEC).items()})


def of(events: list[tuple[str, str, str, int]], item: str, scenario: str = "search") -> dict[str, float]:
    """The features of one candidate; events are (item, action, scenario, days ago)."""
    items, actions, scenarios, days = zip(*events, strict=True) if events else ((), (), (), ())
    user = UserRow(
        {}, items, [1 + ACTIONS.index(a) for a in actions], scenarios, [NOW - int(day * DAY_US) for day in days]
    )
    request = encode_request("u", scenario, None, NOW, user, ROWS, SPEC)
    found = affinity(KEYS, request, np.array([[ROWS.get(item, 0)]]), request["scenario"], np.array([NOW]))
    assert found.dtype == np.float32
    return dict(zip(AFFINITY_FEATURES, found[0, 0].tolist(), strict=True))


def test_a_user_without_history_has_no_lift_and_the_prior_rates() -> None:
    found = of([], "tea")
    rates = {"click_rate", "long_view_rate"}
    assert all(found[name] == pytest.approx(PRIOR_RATE) for name in rates)
    assert all(value == 0 for name, value in found.items() if name not in rates)


def test_lifts_are_above_what_the_user_does_anyway() -> None:
    events = [("tea", "long_view", "search", 3), ("cup", "none", "search", 2), ("pot", "none", "livestream", 1)]
    found = of(events, "tea")
    rate = (1 + PRIOR_RATE * RATE_WEIGHT) / (3 + RATE_WEIGHT)
    assert found["click_rate"] == found["long_view_rate"] == pytest.approx(rate)
    assert found["long_view_lift_item"] == pytest.approx((1 - rate) / (1 + LIFT_WEIGHT))
    assert found["long_view_lift_author"] == pytest.approx((1 - 2 * rate) / (2 + LIFT_WEIGHT))  # tea and cup are ann's
    assert found["click_lift_scenario"] == pytest.approx((1 - 2 * rate) / (2 + LIFT_WEIGHT))
    assert (found["recency_item"], found["recency_author"]) == (pytest.approx(1 / 4), pytest.approx(1 / 3))
    assert found["seen_log_category"] == pytest.approx(np.log(2))  # the deepest level: drinks, not home


def test_what_is_unknown_matches_nothing() -> None:
    events = [("hat", "click", "search", 1), ("no such item", "click", "search", 1)]
    for item in ("hat", "neither"):
        found = of(events, item)
        assert found["seen_log_author"] == found["seen_log_category"] == 0
    assert of(events, "neither")["seen_log_item"] == 0
    assert of(events, "hat")["seen_log_item"] == pytest.approx(np.log(2))


def test_clicks_of_an_unknown_surface_count_as_views_alone() -> None:
    found = of([("tea", "none", "elsewhere", 1)] * 4, "tea")
    assert found["click_rate"] == pytest.approx(PRIOR_RATE)
    assert found["long_view_rate"] < PRIOR_RATE
    assert found["seen_log_scenario"] == 0


def test_a_rejection_is_no_engagement() -> None:
    assert of([("tea", "reject", "search", 1)], "tea")["click_lift_item"] < 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_batches_of_any_padding_give_each_request_its_own(seed: int) -> None:
    """Padding on the right and other candidates beside it change nothing, to the bit."""
    rng = np.random.default_rng(seed)
    size, pad = int(rng.integers(1, 12)), int(rng.integers(0, 5))
    hist = {
        "hist_row": rng.integers(0, 5, (1, size)),
        "hist_action": rng.integers(1, 8, (1, size)),
        "hist_scenario": rng.integers(0, 4, (1, size)),
        "hist_ts": np.sort(NOW - rng.integers(0, 9 * DAY_US, (1, size))),
        "hist_mask": np.ones((1, size), bool),
    }
    padded = {name: np.pad(value, ((0, 0), (0, pad))) for name, value in hist.items()}
    rows, now = rng.integers(0, 5, (1, 4)), np.array([NOW])
    alone = [affinity(KEYS, hist, rows[:, k : k + 1], np.array([2]), now)[:, 0] for k in range(4)]
    np.testing.assert_array_equal(affinity(KEYS, padded, rows, np.array([2]), now)[0], np.concatenate(alone))
