"""The offline comparison: challenger against champion on the same rows, and whether the challenger may meet users.

Offline metrics only keep a clearly worse model out; which one is better is for the experiment to say. A metric fails
when even the kinder end of its 95 % interval is a relative loss beyond the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnifeed.config import Config, EvaluationConfig
from omnifeed.errors import InputError
from omnifeed.evaluation.measure import ALL, Metrics, Population, measure
from omnifeed.evaluation.metrics import (
    AreaUnderCurve,
    Doubles,
    Metric,
    calibration_curve,
    middle,
    poisson_weights,
    roc_points,
)
from omnifeed.evaluation.scorer import EvaluationSet, Progress, Scored, Scorer
from omnifeed.training.dataset import TrainingData

MIN_JUDGED = 50  # rows of each class, or requests with an engaged item, from which a scenario is judged


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of one model in one scenario ("all" for all of them), with its 95 % interval over users."""

    model: str
    scenario: str
    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Challenger against champion in a metric, resampled together; relative = challenger / champion - 1."""

    scenario: str
    metric: str
    champion: float
    challenger: float
    relative: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the comparison found."""

    blessed: bool
    reasons: tuple[str, ...]
    metrics: tuple[Estimate, ...]
    differences: tuple[Difference, ...]
    roc: dict[str, list[float]]  # of the challenger's first task
    calibration: dict[str, dict[str, list[float]]]  # curve of the challenger by task
    models: dict[str, str]  # "champion" and "challenger" -> name
    split: str
    rows: int
    requests: int
    users: int
    scenario_rows: dict[str, int]  # of `rows`, by scenario; ALL first

    def value(self, model: str, metric: str, scenario: str = ALL) -> float:
        """One metric's value; NaN where it was not measured. `model` is a name in `models`' values."""
        for row in self.metrics:
            if (row.model, row.scenario, row.metric) == (model, scenario, metric):
                return row.value
        return float("nan")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; metrics as `by_model` nests them."""
        return {
            **{name: getattr(self, name) for name in ("blessed", "roc", "calibration", "models", "split")},
            **{name: getattr(self, name) for name in ("rows", "requests", "users", "scenario_rows")},
            "reasons": list(self.reasons),
            "metrics": by_model(self.metrics),
            "differences": [
                {**asdict(row), "low": finite(row.low), "high": finite(row.high)} for row in self.differences
            ],
        }


def evaluate(
    training_set: Path,
    challenger: Scorer,
    champion: Scorer,
    config: Config,
    split: str = "test",
    progress: Progress = lambda label, done, total: None,
) -> Evaluation:
    """Score both models on every request of a split and compare them.

    Args:
        training_set: folder that materialize wrote.
        split: "valid" or "test".

    Raises:
        InputError: the split has no rows, or the models have one name.
    """
    if challenger.name == champion.name:
        raise InputError(f"Both models are named {champion.name!r}.", "Give each scorer a name of its own.")
    rows = EvaluationSet(training_set, config.model.tasks, split)
    data = rows.data()
    if not len(data.requests):
        raise InputError(f"{training_set} has no {split} rows.", f"Give a log that reaches into the {split} days.")
    population = Population.of(data)
    weights = poisson_weights(population.users, config.evaluation.bootstrap, config.training.seed)
    scored, measured, resampled = {}, {}, {}
    for scorer in (champion, challenger):
        scored[scorer.name] = scorer.score(rows, progress)
        measured[scorer.name] = measure(scored[scorer.name], data, population, config.evaluation.top_k, progress)
        resampled[scorer.name] = {key: metric.resampled(weights) for key, metric in measured[scorer.name].items()}
    rows_of_table = [row for name in measured for row in estimates(name, measured[name], resampled[name])]
    differences = tuple(
        compared(key, measured, resampled, champion.name, challenger.name)
        for key, metric in measured[challenger.name].items()
        if math.isfinite(metric.value()) and _defined(measured[champion.name], key)
    )
    blessed, reasons = bless(measured[challenger.name], differences, population, config.evaluation, data.tasks)
    roc, curves = _pictures(scored[challenger.name], data)
    return Evaluation(
        blessed=blessed,
        reasons=reasons,
        metrics=tuple(rows_of_table),
        differences=differences,
        roc=roc,
        calibration=curves,
        models={"champion": champion.name, "challenger": challenger.name},
        split=split,
        rows=len(data.impressions.item),
        requests=len(data.requests),
        users=population.users,
        scenario_rows={
            name: int(mask[population.impression_request].sum()) for name, mask in population.scenarios.items()
        },
    )


def by_model(rows: Iterable[Estimate]) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """JSON-ready form of estimates: {model: {scenario: {metric: {value, low, high}}}}."""
    nested: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for row in rows:
        nested.setdefault(row.model, {}).setdefault(row.scenario, {})[row.metric] = {
            "value": row.value,
            "low": finite(row.low),
            "high": finite(row.high),
        }
    return nested


def estimates(model: str, metrics: Metrics, resampled: dict[tuple[str, str], Doubles]) -> list[Estimate]:
    """The defined metrics of one model as rows of a table."""
    values = {key: metric.value() for key, metric in metrics.items()}
    return [
        Estimate(model, *key, value, *interval(resampled[key])) for key, value in values.items() if math.isfinite(value)
    ]


def finite(value: float) -> float | None:
    """The value, or None where it is not defined: JSON has no NaN."""
    return value if math.isfinite(value) else None


def interval(values: Doubles) -> tuple[float, float]:
    """The central 95 % of resampled values, undefined ones left out."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def compared(
    key: tuple[str, str],
    measured: dict[str, Metrics],
    resampled: dict[str, dict[tuple[str, str], Doubles]],
    champion: str,
    challenger: str,
) -> Difference:
    """The paired relative difference of one metric."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = resampled[challenger][key] / resampled[champion][key] - 1
    before, after = measured[champion][key].value(), measured[challenger][key].value()
    return Difference(*key, before, after, after / before - 1, *interval(relative))


def bless(
    challenger: Metrics,
    differences: tuple[Difference, ...],
    population: Population,
    config: EvaluationConfig,
    tasks: tuple[str, ...],
) -> tuple[bool, tuple[str, ...]]:
    """Whether the challenger may meet users, and why, in sentences.

    The primary metrics are the AUC of the first task that has labels of both classes, and recall at the middle
    cut-off, overall and in every scenario
    with at least MIN_JUDGED rows of each class, or requests with an engaged item.
    """
    task = next((name for name in tasks if _defined(challenger, (ALL, f"auc_{name}"))), tasks[0])
    auc, recall = f"auc_{task}", f"recall@{middle(config.top_k)}"
    failures, passes = [], []
    overall = challenger.get((ALL, auc))
    area = overall.value() if overall else float("nan")
    if not area >= config.min_auc:
        failures.append(f"Its AUC of {task} is {area:.3f}, below the floor of {config.min_auc:g}.")
    for row in differences:
        if row.metric not in (auc, recall) or _evidence(challenger[row.scenario, row.metric]) < MIN_JUDGED:
            continue
        where = "over all scenarios" if row.scenario == ALL else f"in {row.scenario}"
        figures = (
            f"{row.metric} {where} is {row.challenger:.4f} against the champion's {row.champion:.4f}, "
            f"{row.relative:+.1%} ({row.low:+.1%} to {row.high:+.1%})"
        )
        if row.high < -config.max_relative_loss:
            failures.append(f"{figures}: a loss of more than {config.max_relative_loss:.1%} is certain.")
        elif row.scenario == ALL:
            passes.append(f"{figures}: no loss of more than {config.max_relative_loss:.1%} is shown.")
    return not failures, tuple(failures or passes or ["Nothing can be compared with the champion; the floor is met."])


def _defined(metrics: Metrics, key: tuple[str, str]) -> bool:
    return key in metrics and math.isfinite(metrics[key].value()) and metrics[key].value() != 0


def _evidence(metric: Metric) -> float:
    if isinstance(metric, AreaUnderCurve):
        return float(min(metric.label.sum(), (1 - metric.label).sum()))
    return float(metric.denominator.sum())


def _pictures(scored: Scored, data: TrainingData) -> tuple[dict[str, list[float]], dict[str, dict[str, list[float]]]]:
    curves = {}
    roc: dict[str, list[float]] = {"fpr": [], "tpr": [], "threshold": []}
    for task, probability in scored.probabilities.items():
        labels = data.impressions.labels[:, data.tasks.index(task)]
        known = labels >= 0
        if not roc["fpr"] and 0 < labels[known].sum() < known.sum():
            roc = roc_points(probability[known], labels[known])
        if known.any():
            curves[task] = calibration_curve(probability[known], labels[known])
    return roc, curves
