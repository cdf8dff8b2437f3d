"""The sequential tests: what may be looked at every day, and how often that rings false."""

from __future__ import annotations

import math

import numpy as np
import pytest
from experiment_logs import CONFIG, START, experiment
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln
from scipy.stats import chi2

from omnifeed.experiment import trust
from omnifeed.experiment.estimate import effect, null_standard_error, sample_ratio_p_value
from omnifeed.experiment.evidence import ALL, ArmNumbers, Evidence, LogCounts, UserGroup
from omnifeed.experiment.metrics import METRICS
from omnifeed.experiment.sequential import (
    CONCENTRATIONS,
    log_sample_ratio_evidence,
    sequential_sample_ratio_p_value,
)
from omnifeed.experiment.verdict import judge

DAY = 86_400_000_000
users = st.integers(0, 3_000)
weights = st.floats(0.01, 0.99)


@given(users, users, weights)
def test_the_evidence_is_the_mean_bayes_factor(champion: int, challenger: int, weight: float) -> None:
    """Against scipy's beta function: the Beta-binomial likelihood over the binomial one."""
    against = [
        betaln(c * weight + champion, c * (1 - weight) + challenger) - betaln(c * weight, c * (1 - weight))
        for c in CONCENTRATIONS
    ]
    planned = champion * math.log(weight) + challenger * math.log1p(-weight)
    expected = np.logaddexp.reduce(np.array(against) - planned) - math.log(len(CONCENTRATIONS))
    assert log_sample_ratio_evidence(champion, challenger, weight) == pytest.approx(expected, rel=1e-9, abs=1e-7)


@given(users, users, weights)
def test_a_user_who_comes_as_planned_leaves_the_expected_evidence_as_it_is(a: int, b: int, weight: float) -> None:
    """The martingale that the test rests on, exactly: w E(a + 1, b) + (1 - w) E(a, b + 1) = E(a, b)."""
    here = log_sample_ratio_evidence(a, b, weight)
    after = (log_sample_ratio_evidence(a + 1, b, weight), log_sample_ratio_evidence(a, b + 1, weight))
    mean = weight * math.exp(after[0] - here) + (1 - weight) * math.exp(after[1] - here)
    assert mean == pytest.approx(1, abs=1e-6)


def test_daily_looks_ring_false_less_often_than_alpha_where_a_chi_square_test_does_not() -> None:
    random, alpha, share = np.random.default_rng(5), 0.05, 0.9
    champion = random.binomial(500, share, size=(2_000, 14)).cumsum(axis=1)
    total = 500 * np.arange(1, 15)
    p_values = np.vectorize(lambda a, n: sequential_sample_ratio_p_value(int(a), int(n - a), share))(champion, total)
    ever = (p_values.min(axis=1) <= alpha).mean()
    fixed = chi2.sf((champion - total * share) ** 2 / (total * share * (1 - share)), 1)
    assert ever <= alpha
    assert (fixed.min(axis=1) <= alpha).mean() > 2 * alpha


@pytest.mark.parametrize(("total", "found"), [(5_000, False), (200_000, True)])
def test_a_split_that_is_off_by_one_percent_is_found_once_there_are_enough_users(total: int, found: bool) -> None:
    champion = round(0.51 * total)
    assert (sequential_sample_ratio_p_value(champion, total - champion, 0.5) <= 0.001) is found


def test_a_missing_arm_is_told_from_chance() -> None:
    assert sequential_sample_ratio_p_value(8, 0, 0.5) > 0.001
    assert sequential_sample_ratio_p_value(30, 0, 0.5) < 0.001
    assert sequential_sample_ratio_p_value(200, 0, 0.99) > 0.001


def test_before_the_horizon_the_looks_and_the_stages_share_srm_alpha_and_at_it_the_test_is_the_usual_one() -> None:
    groups = tuple(UserGroup("day", str(day), arm, 50) for day in range(2) for arm in ("champion", "challenger"))
    arms = tuple(arm_of(100 + 30 * side, name) for side, name in enumerate(("champion", "challenger")))
    evidence, section = Evidence(LogCounts(exposures_used=1), arms, groups=groups), CONFIG.experiment
    early = trust.splits(evidence, 0.5, section, trust.Looks(days=7, stages=4))
    closed = trust.splits(evidence, 0.5, section, None)
    assert [(split.dimension, split.threshold) for split in early] == [
        ("all", 0.001 / 4), ("day", 0.001 / 28), ("day", 0.001 / 28),
    ]  # fmt: skip
    assert [split.threshold for split in closed] == [0.001, 0.0005, 0.0005]
    assert early[0].p_value == sequential_sample_ratio_p_value(100, 130, 0.5)
    assert closed[0].p_value == sample_ratio_p_value(100, 130, 0.5)


def arm_of(users: int, name: str, mean: float = 1.0, variance: float = 4.0) -> ArmNumbers:
    means = dict.fromkeys(("gmv_per_user", "orders_per_user", "hides_per_user"), mean)
    spread = dict.fromkeys(means, variance)
    return ArmNumbers(ALL, name, users, means, spread, {}, {}, {})


@pytest.mark.parametrize(("users", "spread"), [(2, 1e4), (3, 1e6)])
def test_two_users_give_no_estimate_and_no_crash(users: int, spread: float) -> None:
    champion, challenger = arm_of(900, "champion", 0.01), arm_of(users, "challenger", 1e-4, spread)
    found = effect(champion, challenger, METRICS["orders_per_user"], 0.05)
    assert (found.low, found.high) == (None, None)


def test_a_few_users_of_whom_none_bought_are_no_harm_shown() -> None:
    """They have no variance of their own; the champion's says how little six users mean."""
    champion, challenger = arm_of(600, "champion"), arm_of(6, "challenger", mean=0.0, variance=0.0)
    expected = math.sqrt(4 / 600 + 4 / 6)
    found = null_standard_error(champion, challenger, METRICS["orders_per_user"])
    assert found == pytest.approx(expected, rel=1e-6)
    few, many = (
        judge(
            experiment(share=0.01), CONFIG, START + DAY,
            Evidence(LogCounts(exposures_used=1), (arm_of(99 * users, "champion"), arm_of(users, "challenger", 0, 0))),
        )
        for users in (6, 600)
    )  # fmt: skip
    assert few.verdict.value == "HOLD"
    assert many.verdict.value == "REJECT"
