"""Calibration recovers a known distortion, scenario by scenario, and falls back where there is little data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from omnifeed.training.calibration import calibrate, fit_affine


def test_a_known_distortion_is_undone() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-1, 1, 40_000)
    labels = (rng.random(40_000) < expit(truth)).astype(float)
    scale, bias = fit_affine((truth - 0.7) / 2.0, labels, np.ones(40_000))
    assert scale == pytest.approx(2.0, abs=0.06)
    assert bias == pytest.approx(0.7, abs=0.06)


def test_each_scenario_gets_its_own_and_a_small_one_the_pooled() -> None:
    rng = np.random.default_rng(1)
    scenario = np.concatenate([np.full(8_000, 1), np.full(8_000, 2), np.full(30, 3)])
    truth = rng.normal(-1, 1, len(scenario)) + np.where(scenario == 2, 1.5, 0)
    shown = truth - np.where(scenario == 2, 1.5, 0)
    labels = (rng.random(len(scenario)) < expit(truth)).astype(np.int8)[:, None]
    scale, bias = calibrate(shown[:, None].astype(np.float32), labels, scenario, 5, (-1,))
    assert bias[1, 0] == pytest.approx(0, abs=0.15)
    assert bias[2, 0] == pytest.approx(1.5, abs=0.15)
    for small in (0, 3, 4):  # unknown, thirty rows, none
        assert (scale[small, 0], bias[small, 0]) == (scale[0, 0], bias[0, 0])
    predicted = expit(shown * scale[scenario, 0] + bias[scenario, 0])
    for name in (1, 2):
        of_scenario = scenario == name
        assert predicted[of_scenario].mean() == pytest.approx(labels[of_scenario].mean(), rel=0.01)


def test_a_conditional_task_is_calibrated_as_a_product() -> None:
    rng = np.random.default_rng(2)
    click_logit, order_logit = rng.normal(-1, 1, 60_000), rng.normal(-1, 1, 60_000)
    click = rng.random(60_000) < expit(click_logit)
    order = click & (rng.random(60_000) < expit(order_logit))
    logits = np.stack([click_logit + 1.0, order_logit - 2.0], 1).astype(np.float32)
    labels = np.stack([click, order], 1).astype(np.int8)
    scale, bias = calibrate(logits, labels, np.ones(60_000, np.int64), 2, (-1, 0))
    assert bias[1] == pytest.approx([-1.0, 2.0], abs=0.1)
    p = expit(logits[:, 0] * scale[1, 0] + bias[1, 0]) * expit(logits[:, 1] * scale[1, 1] + bias[1, 1])
    assert p.mean() == pytest.approx(order.mean(), rel=0.02)


def test_unknown_labels_take_no_part() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, (2_000, 1)).astype(np.float32)
    labels = (rng.random((2_000, 1)) < expit(logits)).astype(np.int8)
    hidden = np.concatenate([labels, np.full((500, 1), -1, np.int8)])
    padded = np.concatenate([logits, np.full((500, 1), 9.0, np.float32)])
    assert np.array_equal(
        calibrate(logits, labels, np.ones(2_000, np.int64), 2, (-1,)),
        calibrate(padded, hidden, np.ones(2_500, np.int64), 2, (-1,)),
    )
