from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.serving.recommend.slate import (
    DEPTH,
    Slate,
    category_levels,
    diversified,
    explored,
    fill,
    likeness,
    values,
)

DRAWS = 8_000
NOBODY = np.full(300, -1)  # items without a creator
ITEM = st.tuples(st.floats(-5, 5), st.integers(-1, 2), st.booleans())


def filled(scores: np.ndarray, authors: np.ndarray, k: int, new: np.ndarray | None = None, **other: Any) -> Slate:
    usual = {"creator_limit": 3, "new_every": 0, "temperature": 0.5, "request_id": "r", "sampled": False}
    return fill(scores, authors, np.zeros(len(scores), bool) if new is None else new, k, **{**usual, **other})


def test_an_order_counts_by_its_price_and_a_task_without_weight_counts_nothing() -> None:
    probabilities = np.array([[0.5, 0.1], [0.5, 0.1], [0.5, 0.1]], np.float32)
    price = np.array([np.nan, 16.0, 0.0])
    same = np.ones(len(price), np.float32)
    scores = values(probabilities, ("click", "order"), {"order": 2.0}, price, 0.5, same, 7.0)
    np.testing.assert_allclose(scores, [0.2, 0.8, 0.0], rtol=1e-6)


def test_of_two_items_with_one_value_the_nearer_to_the_request_comes_first_and_harm_is_never_lifted() -> None:
    probabilities = np.array([[0.2, 0.0], [0.2, 0.0], [0.0, 0.5], [0.0, 0.5]], np.float32)
    cosine = np.array([0.1, 0.6, 0.1, 0.6], np.float32)
    price = np.full(4, np.nan)
    scores = values(probabilities, ("click", "hide"), {"click": 1.0, "hide": -1.0}, price, 0.5, cosine, 7.0)
    assert scores[1] / scores[0] == pytest.approx(np.exp(7 * 0.5), rel=1e-5)
    assert scores[2] == scores[3] == pytest.approx(-0.5)


# --- filling ---


@given(st.lists(ITEM, min_size=0, max_size=40), st.integers(1, 20), st.integers(1, 4), st.integers(0, 5), st.booleans())
def test_a_slate_holds_each_place_once_and_a_creator_beyond_the_limit_only_at_its_end(
    items: list[tuple[float, int, bool]], k: int, limit: int, every: int, sampled: bool
) -> None:
    scores = np.array([score for score, _, _ in items], np.float32)
    authors, new = np.array([[author, new] for _, author, new in items], np.int64).reshape(-1, 2).T
    slate = filled(scores, authors, k, new > 0, creator_limit=limit, new_every=every, sampled=sampled)
    assert len(set(slate.places)) == len(slate.places) == len(slate.kept) == min(k, len(items))
    assert (slate.propensities is not None) == sampled
    assert all(0 < value <= 1 for value in slate.propensities or ())
    taken: Counter[int] = Counter()
    over = False
    for place in slate.places:
        taken[authors[place]] += 1
        if authors[place] >= 0 and taken[authors[place]] > limit:
            over = True
        else:
            assert not over, "somebody within the limit came after one beyond it"


def test_without_exploration_the_best_come_first() -> None:
    slate = filled(np.array([0.1, 0.9, 0.5], np.float32), NOBODY[:3], 2)
    assert (slate.places, slate.kept, slate.propensities) == ((1, 2), (False, False), None)


def test_the_last_of_every_so_many_places_is_a_new_item_s_and_any_other_s_where_there_is_none_left() -> None:
    scores = np.linspace(1, 0, 40)
    new = np.isin(np.arange(40), (3, 30, 31))
    slate = filled(scores, NOBODY[:40], 20, new, new_every=5)
    kept = [place for place, kept in zip(slate.places, slate.kept, strict=True) if kept]
    assert set(kept) <= {3, 30, 31}
    assert [n for n, kept in enumerate(slate.kept) if kept] == [4, 9, 14][: len(kept)]
    ordinary = [place for place in slate.places if place not in kept]
    assert ordinary == sorted(ordinary), "the others come by score"
    assert set(slate.places) >= {3, 30, 31}
    assert filled(scores, NOBODY[:40], 20, new) == filled(scores, NOBODY[:40], 20, np.zeros(40, bool), new_every=5)


def test_a_kept_place_goes_round_among_the_new_and_prefers_the_better() -> None:
    scores = np.array([5.0, 4.0, 3.0, 1.0, 0.0, -1.0])
    new = np.array([False, False, False, True, True, True])
    drawn = Counter(filled(scores, NOBODY[:6], 3, new, new_every=3, request_id=str(n)).places[2] for n in range(2_000))
    assert set(drawn) == {3, 4, 5}
    assert drawn[3] > drawn[4] > drawn[5] > 0


@pytest.mark.parametrize("every", [0, 3])
def test_logged_propensities_equal_observed_frequencies(every: int) -> None:
    """Of each place given those above it, also where a creator has reached the limit, and in a place for new items."""
    scores = np.array([1.0, 0.6, 0.3, -0.2, -0.5, -0.7], np.float32)
    authors = np.array([0, 0, 1, -1, 2, 3])
    new = np.array([False, False, False, False, True, True])
    seen: Counter[tuple[int, ...]] = Counter()
    logged: dict[tuple[int, ...], float] = {}
    for draw in range(DRAWS):
        slate = filled(
            scores,
            authors,
            3,
            new,
            creator_limit=1,
            new_every=every,
            temperature=0.8,
            request_id=f"{draw}",
            sampled=True,
        )
        assert slate.propensities is not None
        for length, propensity in enumerate(slate.propensities, start=1):
            prefix = slate.places[:length]
            seen[prefix] += 1
            assert logged.setdefault(prefix, propensity) == propensity
    seen[()] = DRAWS
    assert {prefix[0] for prefix in logged} == set(range(6))
    assert (0, 1) not in seen  # the same creator twice
    thirds = {prefix[2] for prefix in logged if len(prefix) == 3 and not {4, 5} & set(prefix[:2])}
    assert thirds == ({4, 5} if every else set(range(6)))
    for prefix, propensity in logged.items():
        trials = seen[prefix[:-1]]
        error = np.sqrt(propensity * (1 - propensity) / trials)
        assert abs(seen[prefix] / trials - propensity) < 5 * error + 1e-9, prefix  # of about a hundred prefixes


def test_the_propensities_of_the_first_place_add_up_to_one() -> None:
    scores = np.linspace(0, 1, 8).astype(np.float32)
    seen = {}
    for draw in range(5_000):
        slate = filled(scores, NOBODY[:8], 1, temperature=1.0, request_id=str(draw), sampled=True)
        assert slate.propensities is not None
        seen[slate.places[0]] = slate.propensities[0]
    assert sum(seen.values()) == pytest.approx(1.0)


def test_a_sampled_slate_is_the_same_for_the_same_request_and_stays_among_the_best_and_the_new() -> None:
    scores = np.random.default_rng(0).normal(size=300).astype(np.float32)
    order = np.argsort(-scores)
    new = np.isin(np.arange(300), order[-5:])
    best = set(order[:DEPTH].tolist()) | set(order[-5:].tolist())
    for draw in range(200):
        one, same = (
            filled(scores, NOBODY, 10, new, new_every=5, temperature=5.0, request_id=str(draw), sampled=True)
            for _ in range(2)
        )
        assert one == same
        assert set(one.places) <= best


def test_a_temperature_near_zero_is_greedy_and_has_propensities_all_the_same() -> None:
    slate = filled(np.linspace(0, 1, 60), NOBODY[:60], 5, temperature=1e-6, sampled=True)
    assert slate == Slate((59, 58, 57, 56, 55), (False,) * 5, (1.0,) * 5)


def test_the_share_of_explored_requests() -> None:
    share = np.mean([explored(f"request {n}", 0.02) for n in range(20_000)])
    assert abs(share - 0.02) < 4 * np.sqrt(0.02 * 0.98 / 20_000)
    assert not any(explored(str(n), 0.0) for n in range(1_000))
    assert all(explored(str(n), 1.0) for n in range(1_000))


# --- diversity ---


def test_likeness_is_half_the_creator_and_half_the_path() -> None:
    authors = np.array([7, 7, -1, -1])
    categories = category_levels(["home/lamps/desk", "home/lamps/floor/tall", "home", None])
    like = likeness(authors, categories)
    assert like[0].tolist() == pytest.approx([1, 0.5 + 1 / 3, 1 / 6, 0])
    assert like[2, [0, 1, 3]].tolist() == pytest.approx([1 / 6, 1 / 6, 0])
    assert like[3, :3].tolist() == [0, 0, 0]


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(1, 12),
    st.floats(0, 3),
)
def test_the_order_is_that_of_greedy_choice(items: list[tuple[float, int, int]], k: int, strength: float) -> None:
    scores = np.array([score + 0.0123456 * place for place, (score, _, _) in enumerate(items)], np.float32)  # no ties
    authors = np.array([author for _, author, _ in items])
    categories = np.array([[category, category and 10 + author] for _, author, category in items])
    result = diversified(scores, authors, categories, k, strength)
    spread = strength * float(np.sort(scores)[-max(DEPTH, 2 * k) :].std())
    like, chosen = likeness(authors, categories), list[int]()
    for place in np.argsort(-result, kind="stable")[: min(k, len(items))].tolist():
        worth = scores - spread * like[chosen].max(0, initial=0.0)
        assert result[place] == pytest.approx(worth[place], abs=1e-4)
        assert worth[place] >= np.delete(worth, chosen).max() - 1e-4, "it is not the best that greedy choice could take"
        chosen.append(place)
    left = np.delete(np.arange(len(items)), chosen)
    assert result[left] == pytest.approx((scores - spread * like[chosen].max(0))[left], abs=1e-4)


def test_what_repeats_gives_way_to_what_is_nearly_as_good_and_not_to_what_is_worse() -> None:
    scores = np.array([5.0, 4.9, 4.8, 0.0, 0.0, 0.0])
    authors = np.array([1, 1, 2, 3, 4, 5])
    categories = np.array([[1], [1], [2], [3], [4], [5]])
    for strength, order in ((0.0, [0, 1, 2]), (0.3, [0, 2, 1])):
        result = diversified(scores, authors, categories, 3, strength)
        assert np.argsort(-result, kind="stable")[:3].tolist() == order
