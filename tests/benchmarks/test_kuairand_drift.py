"""What follows the days reads the day before, and moves no rate."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kuairand_drift as drift

ROWS, DAYS, FIRST = 10_000, 5, 2  # rows of a day


def days(rng: np.random.Generator, growth: float = 0.0) -> tuple[drift.Days, np.ndarray]:
    """Inputs whose every column grows by so much a day, and logits that miss by 0.1 more on each."""
    day = np.repeat(np.arange(DAYS), ROWS)
    inputs = rng.normal(size=(len(day), len(drift.NAMES))) + growth * day[:, None]
    truth = rng.normal(-1, 1, (len(day), 2))
    labels = (rng.random(truth.shape) < expit(truth)).astype(np.int8)
    made = drift.Days(inputs, labels, np.ones(len(day), np.int64), day, np.full(truth.shape, 0.3), 2)
    return made, truth - 0.1 * day[:, None]


def test_levels_move_back_by_what_the_day_before_says_and_rates_stay() -> None:
    made, _ = days(np.random.default_rng(0), growth=0.5)
    moved = made.drift(FIRST)
    assert not moved[:FIRST].any()
    usual = made.inputs[made.day < FIRST].mean(0)
    for day in range(FIRST, DAYS):
        yesterday = made.inputs[made.day == day - 1].mean(0)
        np.testing.assert_allclose(moved[day][drift.LEVEL], (yesterday - usual)[drift.LEVEL], rtol=1e-5)
        assert not moved[day][~drift.LEVEL].any()
    names = np.array(drift.NAMES)
    assert {"age_days_log", "seen_log", "user_views_7d"} <= set(names[drift.LEVEL])
    assert {"item_click_rate_7d", "click_lift_item", "click_rate"} <= set(names[~drift.LEVEL])


def test_a_calibration_made_anew_follows_a_drift_that_a_frozen_one_misses() -> None:
    made, logits = days(np.random.default_rng(1))
    frozen, daily = drift.METHODS[drift.SHIPPED](made, logits, FIRST), made.daily(logits, FIRST)
    last = made.day == DAYS - 1
    level = {name: p[last].mean() / made.labels[last].mean() for name, p in (("frozen", frozen), ("daily", daily))}
    assert 0.86 < level["frozen"] < 0.91, level  # two days behind
    assert 0.92 < level["daily"] < 0.97, level  # one
    np.testing.assert_array_equal(frozen[made.day <= FIRST], daily[made.day <= FIRST])
