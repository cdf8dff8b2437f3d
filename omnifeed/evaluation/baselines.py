"""What a model must beat to be worth its place: popularity, per-item rates, logistic regression.

They learn from the rows before the split that is scored, and answer through the same interface as a network, so their
rows stand in the same table with the same intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omnifeed.config import Config
from omnifeed.evaluation.compare import Estimate, estimates
from omnifeed.evaluation.measure import Population, measure
from omnifeed.evaluation.metrics import poisson_weights
from omnifeed.evaluation.scorer import EvaluationSet, Progress, Scored, Scorer
from omnifeed.export.encode import DAY_US, Floats, Ints
from omnifeed.features.training_set import SPLITS
from omnifeed.training.dataset import TrainingData, load_training_set

WEEK_US = 7 * DAY_US
PRIOR_VIEWS = 20.0  # as in the features: an item without views has the rate of all


@dataclass(frozen=True, slots=True)
class Popularity:
    """Engaged impressions of an item in the scenario; a score, not a probability."""

    name: str
    counts: Floats  # [S + 1, M + 1], row 0 all scenarios together

    def score(self, rows: EvaluationSet, progress: Progress) -> Scored:
        """Retrieve and rank by the count."""
        data = rows.data()
        scenario = data.requests.scenario[_request_of(data)]
        count = self.counts[scenario, data.impressions.item]
        answers = {task: (count / (1 + count)).astype(np.float32) for task in rows.tasks if task != "hide"}
        return Scored(answers, lambda requests: self.counts[data.requests.scenario[requests]], calibrated=False)


@dataclass(frozen=True, slots=True)
class ItemRate:
    """The item's own smoothed rate of each task, whatever the scenario."""

    rates: Floats  # [M + 1, tasks]
    name: str = "item rate"

    def score(self, rows: EvaluationSet, progress: Progress) -> Scored:
        """Rank by the rate; no retrieval."""
        item = rows.data().impressions.item
        return Scored({task: self.rates[item, index] for index, task in enumerate(rows.tasks)}, None)


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """A linear model of the dense features of candidate and user, and of the scenario."""

    mean: Floats
    scale: Floats
    weights: Floats  # [features, tasks]; NaN for a task that could not be learned
    bias: Floats  # [tasks]
    name: str = "logistic regression"

    def score(self, rows: EvaluationSet, progress: Progress) -> Scored:
        """Rank by the model; no retrieval."""
        data = rows.data()
        logits = ((_features(data) - self.mean) * self.scale) @ self.weights + self.bias
        probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
        known = np.isfinite(self.bias)
        return Scored({task: probability[:, index] for index, task in enumerate(rows.tasks) if known[index]}, None)


def fit_baselines(training_set: Path, config: Config, split: str) -> tuple[Scorer, ...]:
    """Fit every baseline on the rows of the splits before this one."""
    data = load_training_set(training_set, config.model.tasks, SPLITS[: SPLITS.index(split)])  # type: ignore[arg-type]
    ts = data.requests.ts[_request_of(data)]
    end = (int(ts.max(initial=0)) // DAY_US + 1) * DAY_US
    return (
        Popularity("popularity, all time", _counts(data, ts >= 0)),
        Popularity("popularity, 7 days", _counts(data, ts >= end - WEEK_US)),
        ItemRate(_rates(data)),
        _logistic(data),
    )


def baseline_estimates(
    training_set: Path,
    config: Config,
    split: str = "test",
    progress: Progress = lambda label, done, total: None,
) -> tuple[Estimate, ...]:
    """The baselines' metrics on a split, overall and per scenario, in the form that `Evaluation.metrics` has.

    Args:
        training_set: folder that materialize wrote.
        split: "valid" or "test".
    """
    rows = EvaluationSet(training_set, config.model.tasks, split)
    population = Population.of(rows.data())
    weights = poisson_weights(population.users, config.evaluation.bootstrap, config.training.seed)
    result: list[Estimate] = []
    for scorer in fit_baselines(training_set, config, split):
        scored = scorer.score(rows, progress)
        metrics = measure(scored, rows.data(), population, config.evaluation.top_k, progress)
        result.extend(estimates(scorer.name, metrics, {key: m.resampled(weights) for key, m in metrics.items()}))
    return tuple(result)


def _request_of(data: TrainingData) -> Ints:
    return np.repeat(np.arange(len(data.requests)), np.diff(data.requests.first))


def _counts(data: TrainingData, chosen: np.ndarray) -> Floats:  # type: ignore[type-arg]
    counts = np.zeros((len(data.spec.scenarios) + 1, len(data.items.created)), np.float32)
    chosen = chosen & (data.impressions.engagement > 0)
    np.add.at(counts, (data.requests.scenario[_request_of(data)][chosen], data.impressions.item[chosen]), 1)
    counts[0] = counts.sum(0)
    return counts


def _rates(data: TrainingData) -> Floats:
    result = np.zeros((len(data.items.created), len(data.tasks)), np.float32)
    for index in range(len(data.tasks)):
        known = data.impressions.labels[:, index] >= 0
        item, label = data.impressions.item[known], data.impressions.labels[known, index]
        prior = label.mean() if len(label) else 0.0
        views = np.bincount(item, minlength=len(result))
        hits = np.bincount(item, label, len(result))
        result[:, index] = (hits + prior * PRIOR_VIEWS) / (views + PRIOR_VIEWS)
    return result


def _features(data: TrainingData) -> Floats:
    request = _request_of(data)
    scenario = np.eye(len(data.spec.scenarios) + 1, dtype=np.float32)[data.requests.scenario[request]]
    return np.concatenate([data.impressions.dense, data.requests.user_dense[request], scenario], axis=1)


def _logistic(data: TrainingData) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression as Sklearn

    features = _features(data)
    mean, deviation = features.mean(0), features.std(0)
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0).astype(np.float32)
    standard = (features - mean) * scale
    weights = np.full((features.shape[1], len(data.tasks)), np.nan, np.float32)
    bias = np.full(len(data.tasks), np.nan, np.float32)
    for index in range(len(data.tasks)):
        label = data.impressions.labels[:, index]
        known = label >= 0
        if len(np.unique(label[known])) == 2:
            model = Sklearn(C=1.0, max_iter=500).fit(standard[known], label[known])
            weights[:, index], bias[index] = model.coef_[0], model.intercept_[0]
    return LogisticRegression(mean, scale, weights, bias)
