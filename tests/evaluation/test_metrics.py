"""Metrics against scikit-learn and against the slow, obvious way of computing them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score, roc_curve

from omnifeed.evaluation.metrics import (
    AreaUnderCurve,
    calibration,
    calibration_curve,
    grouped_auc,
    log_loss,
    poisson_weights,
    positive_ranks,
    retrieval_metrics,
    roc_points,
)

USERS = 30


@pytest.fixture(params=[0, 1, 2])
def rows(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(request.param)
    owner = rng.integers(0, USERS, 600)
    scores = np.round(rng.random(600), 2).astype(np.float32)  # with ties
    labels = (rng.random(600) < 0.2 + 0.4 * scores).astype(np.int8)
    return scores, labels, owner


def test_auc_is_that_of_scikit_learn_with_ties(rows: tuple[np.ndarray, ...]) -> None:
    scores, labels, owner = rows
    assert AreaUnderCurve.of(scores, labels, owner).value() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_a_resampled_auc_is_the_auc_with_the_users_weights(rows: tuple[np.ndarray, ...]) -> None:
    scores, labels, owner = rows
    weights = poisson_weights(USERS, 7, 0)
    found = AreaUnderCurve.of(scores, labels, owner).resampled(weights)
    expected = [roc_auc_score(labels, scores, sample_weight=w[owner]) for w in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_auc_of_one_class_or_of_nothing_is_not_defined() -> None:
    assert np.isnan(AreaUnderCurve.of(np.array([0.1, 0.2]), np.array([1, 1]), np.array([0, 1])).value())
    empty = AreaUnderCurve.of(np.zeros(0), np.zeros(0), np.zeros(0))
    assert np.isnan(empty.value())
    assert np.isnan(empty.resampled(np.ones((2, 1)))).all()


def test_log_loss_is_that_of_scikit_learn_and_calibration_a_ratio_of_means(rows: tuple[np.ndarray, ...]) -> None:
    scores, labels, owner = rows
    p = np.clip(scores, 0.01, 0.99)
    ratio = log_loss(p, labels, owner, USERS)
    assert ratio.value() == pytest.approx(sklearn_log_loss(labels, p.astype(float)), rel=1e-6)
    weights = poisson_weights(USERS, 3, 1)
    expected = [sklearn_log_loss(labels, p.astype(float), sample_weight=w[owner]) for w in weights]
    np.testing.assert_allclose(ratio.resampled(weights), expected, rtol=1e-6)
    assert calibration(p, labels, owner, USERS).value() == pytest.approx(p.mean() / labels.mean(), rel=1e-6)


def test_grouped_auc_is_the_mean_of_the_groups_weighted_by_rows(rows: tuple[np.ndarray, ...]) -> None:
    scores, labels, owner = rows
    group = owner * 3 + np.arange(len(owner)) % 3
    value, total = 0.0, 0
    for g in np.unique(group):
        mine = group == g
        if 0 < labels[mine].sum() < mine.sum():
            value += roc_auc_score(labels[mine], scores[mine]) * mine.sum()
            total += mine.sum()
    assert grouped_auc(scores, labels, group, owner, USERS).value() == pytest.approx(value / total, abs=1e-12)


def test_ranks_count_ties_against_the_positive_and_skip_what_is_not_eligible() -> None:
    scores = np.array([[0.0, 0.9, 0.5, 0.5, 0.1, 0.7]])
    eligible = np.array([[False, True, True, True, True, False]])
    request, item = np.array([0, 0]), np.array([2, 4])
    assert positive_ranks(scores, eligible, request, item).tolist() == [2, 3]
    constant = positive_ranks(np.zeros((1, 6)), np.ones((1, 6), bool), np.array([0]), np.array([3]))
    assert constant.tolist() == [5]


def test_retrieval_metrics_are_those_of_the_sorted_list() -> None:
    rng = np.random.default_rng(0)
    requests, items, ks = 40, 60, (1, 5, 10, 100)
    scores = rng.random((requests, items))
    eligible = rng.random((requests, items)) < 0.7
    pairs = sorted({(r, int(i)) for r in range(requests) for i in rng.integers(0, items, 3)})
    request, item = np.array(pairs).T
    found = retrieval_metrics(positive_ranks(scores, eligible, request, item), request, requests, ks)
    for r in range(requests):
        mine = item[request == r]
        allowed = np.flatnonzero(eligible[r] | np.isin(np.arange(items), mine))
        ranking = allowed[np.argsort(-scores[r, allowed])]
        hits = np.isin(ranking, mine)
        assert found.reciprocal_rank[r] == pytest.approx(1 / (1 + np.flatnonzero(hits)[0]))
        for k in ks:
            assert found.recall[k][r] == pytest.approx(hits[:k].sum() / len(mine))
            gains = (hits[:k] / np.log2(np.arange(2, len(hits[:k]) + 2))).sum()
            ideal = (1 / np.log2(np.arange(2, min(k, len(mine)) + 2))).sum()
            assert found.ndcg[k][r] == pytest.approx(gains / ideal)


def test_the_roc_curve_lies_on_scikit_learns(rows: tuple[np.ndarray, ...]) -> None:
    scores, labels, _ = rows
    found = roc_points(scores, labels, points=500)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(found["fpr"], fpr, atol=1e-12)
    np.testing.assert_allclose(found["tpr"], tpr, atol=1e-12)
    assert len(roc_points(scores, labels, points=20)["fpr"]) <= 20


def test_the_calibration_curve_adds_up(rows: tuple[np.ndarray, ...]) -> None:
    scores, labels, _ = rows
    curve = calibration_curve(scores, labels)
    assert sum(curve["rows"]) == len(scores)
    assert np.dot(curve["observed"], curve["rows"]) == pytest.approx(labels.sum())
    assert curve["predicted"] == sorted(curve["predicted"])


def test_the_bootstrap_interval_of_an_auc_covers_as_often_as_it_says() -> None:
    """200 draws of 60 users; the 95 % interval must hold the true AUC in 88 to 99 % of them (binomial limits)."""
    rng = np.random.default_rng(5)
    truth = AreaUnderCurve.of(*_draw(rng, 4_000)).value()
    covered = 0
    for draw in range(200):
        values = AreaUnderCurve.of(*_draw(rng, 60)).resampled(poisson_weights(60, 100, draw))
        low, high = np.percentile(values, [2.5, 97.5])
        covered += int(low <= truth <= high)
    assert 0.88 <= covered / 200 <= 0.99


def _draw(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    owner = np.repeat(np.arange(users), 8)
    score = rng.normal(0, 1, users * 8) + rng.normal(0, 0.5, users)[owner]
    label = rng.random(users * 8) < 1 / (1 + np.exp(-score))
    return score, label.astype(np.int8), owner
