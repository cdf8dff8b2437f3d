"""The trend's weight beside the cosine is found where it is known, per scenario, and absent where there is no data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omnifeed.config import Config
from omnifeed.export.encode import DAY_US
from omnifeed.model.network import Network
from omnifeed.training.dataset import TrainingData, load_training_set
from omnifeed.training.trend import Choices, Trends, fit_choices, trend_weights
from training.synthetic import small_config


def drawn(scale: float, slope: float, requests: int, seed: int) -> Choices:
    """Engagements drawn from the softmax that is fitted."""
    rng = np.random.default_rng(seed)
    cosine = rng.uniform(-1, 1, (requests, 60))
    grown = np.log1p(rng.poisson(2, (requests, 60)))
    eligible = rng.random((requests, 60)) < 0.8
    logit = np.where(eligible, scale * cosine + slope * grown, -np.inf)
    item = (logit + rng.gumbel(size=logit.shape)).argmax(1)
    return Choices(cosine, grown, eligible, np.arange(requests), item)


def test_a_known_choice_rule_is_recovered() -> None:
    scale, slope = fit_choices(drawn(8.0, 0.6, 4_000, 0), (14.0, 0.0), 0.5)
    assert scale == pytest.approx(8.0, rel=0.05)
    assert slope == pytest.approx(0.6, rel=0.1)


def test_a_trend_that_keeps_people_away_weighs_nothing() -> None:
    assert fit_choices(drawn(8.0, -0.5, 2_000, 1), (14.0, 0.0), 0.5)[1] == 0


def test_little_data_stays_near_the_centre() -> None:
    scale, slope = fit_choices(drawn(8.0, 3.0, 1, 2), (14.0, 0.1), 1e6)
    assert (scale, slope) == (pytest.approx(14.0, rel=1e-3), pytest.approx(0.1, abs=1e-3))


def test_every_scenario_has_its_own_weight(training_set: Path) -> None:
    config = small_config()
    data = load_training_set(training_set, config.model.tasks, ("train", "valid"))
    network = Network(config.model, data.spec, data.tasks).eval()
    weights = trend_weights(network, training_set, data, seed=0)
    assert weights.shape == (len(data.spec.scenarios) + 1,)
    assert (weights >= 0).all()
    assert len(set(weights[1:])) > 1
    assert weights.tolist() == trend_weights(network, training_set, data, seed=0).tolist()


def test_without_validation_rows_the_trend_weighs_nothing(training_set: Path) -> None:
    config: Config = small_config()
    data = load_training_set(training_set, config.model.tasks, ("train",))
    network = Network(config.model, data.spec, data.tasks).eval()
    assert not trend_weights(network, training_set, data, seed=0).any()


def test_a_trend_is_that_of_the_last_midnight_in_the_request_s_scenario(training_set: Path) -> None:
    data: TrainingData = load_training_set(training_set, small_config().model.tasks, ("valid",))
    trends = Trends(training_set, data)
    items = np.arange(2, len(data.items.created))
    found = trends.of(np.arange(3), items)
    for row in range(3):
        day = int(data.requests.ts[row]) // DAY_US * DAY_US
        scenario = data.spec.scenarios[int(data.requests.scenario[row]) - 1]
        assert found[row].tolist() == trends.column(day, scenario)[items].tolist()
    assert found.max() > 0
    assert not trends.column(0, data.spec.scenarios[0]).any()


def test_a_network_that_knows_no_scenario_takes_what_trends_anywhere(training_set: Path) -> None:
    config = small_config()
    known = load_training_set(training_set, config.model.tasks, ("valid",))
    blind = load_training_set(training_set, config.model.tasks, ("valid",), replace(known.spec, scenarios=()))
    found, trends = Trends(training_set, blind).of(np.arange(3)), Trends(training_set, known)
    for row in range(3):
        day = int(blind.requests.ts[row]) // DAY_US * DAY_US
        everywhere = [trends.column(day, name) for name in known.spec.scenarios]
        assert found[row] == pytest.approx(np.sum(everywhere, axis=0))
    network = Network(config.model, blind.spec, blind.tasks).eval()
    assert trend_weights(network, training_set, blind, seed=0).shape == (1,)
