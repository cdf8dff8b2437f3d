from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.serving.recommend.slate import EXPLORE_DEPTH, explore, explored, ordered, values

DRAWS = 20_000
NOBODY = np.full(300, -1)  # items without a creator


def test_an_order_counts_by_its_price_and_a_task_without_weight_counts_nothing() -> None:
    probabilities = np.array([[0.5, 0.1], [0.5, 0.1], [0.5, 0.1]], np.float32)
    price = np.array([np.nan, 16.0, 0.0])
    same = np.ones(len(price), np.float32)
    scores = values(probabilities, ("click", "order"), {"order": 2.0}, price, 0.5, same, 7.0)
    np.testing.assert_allclose(scores, [0.2, 0.8, 0.0], rtol=1e-6)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(-1, 2)), min_size=1, max_size=40),
    st.integers(1, 20),
    st.integers(1, 4),
    st.booleans(),
)
def test_a_slate_holds_each_place_once_and_a_creator_beyond_the_limit_only_at_its_end(
    items: list[tuple[float, int]], k: int, limit: int, sampled: bool
) -> None:
    scores = np.array([score for score, _ in items], np.float32)
    authors = np.array([author for _, author in items])
    slate = explore(scores, authors, k, limit, 0.5, "r") if sampled else ordered(scores, authors, k, limit)
    assert len(set(slate.places)) == len(slate.places) == min(k, len(items))
    taken: Counter[int] = Counter()
    over = False
    for place in slate.places:
        taken[authors[place]] += 1
        if authors[place] >= 0 and taken[authors[place]] > limit:
            over = True
        else:
            assert not over, "somebody within the limit came after one beyond it"


def test_of_two_items_with_one_value_the_nearer_to_the_request_comes_first_and_harm_is_never_lifted() -> None:
    probabilities = np.array([[0.2, 0.0], [0.2, 0.0], [0.0, 0.5], [0.0, 0.5]], np.float32)
    cosine = np.array([0.1, 0.6, 0.1, 0.6], np.float32)
    price = np.full(4, np.nan)
    scores = values(probabilities, ("click", "hide"), {"click": 1.0, "hide": -1.0}, price, 0.5, cosine, 7.0)
    assert scores[1] / scores[0] == pytest.approx(np.exp(7 * 0.5), rel=1e-5)
    assert scores[2] == scores[3] == pytest.approx(-0.5)


def test_without_exploration_the_best_come_first() -> None:
    slate = ordered(np.array([0.1, 0.9, 0.5], np.float32), NOBODY[:3], 2, 1)
    assert (slate.places, slate.propensities) == ((1, 2), None)


def test_logged_propensities_equal_observed_frequencies() -> None:
    """First place: the marginal probability. Second: given the first, also where a creator has reached the limit."""
    scores = np.array([1.0, 0.6, 0.3, -0.2, -0.5], np.float32)
    authors = np.array([0, 0, 1, -1, 2])
    firsts: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    logged: dict[tuple[int, ...], float] = {}
    for draw in range(DRAWS):
        slate = explore(scores, authors, 2, 1, 0.8, f"request {draw}")
        assert slate.propensities is not None
        first, second = slate.places
        firsts[first] += 1
        pairs[first, second] += 1
        for key, propensity in (((first,), slate.propensities[0]), ((first, second), slate.propensities[1])):
            assert logged.setdefault(key, propensity) == propensity
    assert {first for first, _ in pairs} == set(range(5))
    assert (0, 1) not in pairs  # the same creator twice
    for (first,), propensity in ((key, p) for key, p in logged.items() if len(key) == 1):
        error = np.sqrt(propensity * (1 - propensity) / DRAWS)
        assert abs(firsts[first] / DRAWS - propensity) < 4 * error
    for (first, second), propensity in ((key, p) for key, p in logged.items() if len(key) == 2):
        trials = firsts[first]
        error = np.sqrt(propensity * (1 - propensity) / trials)
        assert abs(pairs[first, second] / trials - propensity) < 4 * error + 1e-9


def test_the_propensities_of_the_first_place_add_up_to_one() -> None:
    scores = np.linspace(0, 1, 8).astype(np.float32)
    seen = {}
    for draw in range(5_000):
        slate = explore(scores, NOBODY[:8], 1, 1, 1.0, str(draw))
        assert slate.propensities is not None
        seen[slate.places[0]] = slate.propensities[0]
    assert sum(seen.values()) == pytest.approx(1.0)


def test_a_sampled_slate_is_the_same_for_the_same_request_and_stays_among_the_best() -> None:
    scores = np.random.default_rng(0).normal(size=300).astype(np.float32)
    best = set(np.argsort(-scores)[:EXPLORE_DEPTH].tolist())
    for draw in range(200):
        slate = explore(scores, NOBODY, 10, 3, 5.0, str(draw))
        assert slate == explore(scores, NOBODY, 10, 3, 5.0, str(draw))
        assert set(slate.places) <= best


def test_the_share_of_explored_requests() -> None:
    share = np.mean([explored(f"request {n}", 0.02) for n in range(20_000)])
    assert abs(share - 0.02) < 4 * np.sqrt(0.02 * 0.98 / 20_000)
    assert not any(explored(str(n), 0.0) for n in range(1_000))
    assert all(explored(str(n), 1.0) for n in range(1_000))
