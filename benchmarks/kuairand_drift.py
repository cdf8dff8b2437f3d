"""Which calibration holds on KuaiRand-Pure when days differ: chosen on the days before the test week alone.

    python benchmarks/kuairand_drift.py
    python benchmarks/kuairand_drift.py test [SEEDS]

What is frozen at a midnight is calibrated on the day after it and judged on all days from then to 05-01, for four such
midnights (the ends of 04-26 to 04-29). A logistic regression of the network's dense features stands for the network,
which is no better on these rows (results/kuairand_run.json) and takes a thousand times as long. The error is
|log(predicted / observed)| over a fold's days. Writes results/kuairand_drift.json.

`test` reads the test week with the networks that benchmarks/kuairand_ranking.py trained, weights untouched, and what
was found on the days before: results/kuairand_calibration.json.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kuairand_ranking as kr
import numpy as np
from record import row, write_result
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from omnifeed.evaluation.metrics import AreaUnderCurve, poisson_weights
from omnifeed.evaluation.scorer import EvaluationSet, NetworkScorer
from omnifeed.export.encode import DAY_US, EncodeSpec
from omnifeed.features.spec import ITEM_DENSE, REQUEST_TIME_FEATURES, USER_DENSE
from omnifeed.features.training_set import SPLITS
from omnifeed.model.network import load_network
from omnifeed.model.parts import TorchParts
from omnifeed.model.ranker import parents
from omnifeed.training.calibration import calibrate
from omnifeed.training.dataset import TrainingData, load_training_set

Array = np.ndarray[Any, Any]
NAMES = [feature.name for feature in ITEM_DENSE]
NAMES += [*REQUEST_TIME_FEATURES, *(feature.name for feature in USER_DENSE)]
#: Counts, ages and gaps: as the log grows their level moves by itself and says nothing of the day's rate.
LEVEL = np.array([not any(part in name for part in ("rate", "lift")) for name in NAMES])
FOLDS = (3, 4, 5, 6)  # the calibrating day of each, counted from 04-24
SHIPPED = "one day, as shipped"
MOVED = "levels moved back every midnight"
LARGE = ("tab_1", "tab_0", "tab_4")  # with at least kr.MIN_ROWS rows in the test week
STRENGTH = 0.01  # scikit-learn's C
BATCH = 1024  # requests that a network answers at a time; most have one impression


@dataclass(frozen=True, slots=True)
class Days:
    """Impressions of several days."""

    inputs: Array  # [N, NAMES]
    labels: Array  # int8 [N, tasks]
    scenario: Array
    day: Array  # from 0
    rate: Array  # [N, tasks], the scenario's own of the last 7 days
    scenarios: int

    @staticmethod
    def of(data: TrainingData) -> Days:
        requests, shown = data.requests, data.impressions
        request = np.repeat(np.arange(len(requests)), np.diff(requests.first))
        day = requests.ts[request] // DAY_US
        inputs = np.concatenate([shown.dense, requests.user_dense[request]], 1)
        rate = inputs[:, [NAMES.index(f"scenario_{task}_rate_7d") for task in kr.TASKS]]
        scenarios = len(data.spec.scenarios) + 1
        return Days(inputs, shown.labels, requests.scenario[request], day - day.min(), rate, scenarios)

    def fit(self, first: int, stop: int, logits: Array) -> tuple[Array, Array]:
        """The library's calibration, on days first..stop-1."""
        rows = (self.day >= first) & (self.day < stop)
        chosen = logits[rows].astype(np.float32), self.labels[rows], self.scenario[rows]
        return calibrate(*chosen, self.scenarios, parents(kr.TASKS))

    def apply(self, fitted: tuple[Array, Array], logits: Array) -> Array:
        scale, bias = fitted
        return expit(logits * scale[self.scenario] + bias[self.scenario])

    def daily(self, logits: Array, first: int) -> Array:
        """Calibrated anew every midnight, on the day before; days up to `first` by that day's."""
        result = self.apply(self.fit(first, first + 1, logits), logits)
        for day in range(first + 2, int(self.day.max()) + 1):
            asked = self.day == day
            result[asked] = self.apply(self.fit(day - 1, day, logits), logits)[asked]
        return result

    def drift(self, first: int) -> Array:
        """How far each day's levels have moved, [days, NAMES]: the mean of the day before less that before `first`.

        0 for days before `first`.
        """
        usual = self.inputs[self.day < first].mean(0)
        result = np.zeros((int(self.day.max()) + 1, len(NAMES)), np.float32)
        for day in range(first, len(result)):
            result[day] = np.where(LEVEL, self.inputs[self.day == day - 1].mean(0) - usual, 0)
        return result


def logits_of(days: Days, inputs: Array, stop: int) -> Array:
    """Of all rows, by a regression on those of the days before `stop`."""
    x = np.concatenate([inputs, np.eye(days.scenarios, dtype=np.float32)[days.scenario]], 1)
    rows = days.day < stop
    mean, deviation = x[rows].mean(0), x[rows].std(0)
    x = ((x - mean) * np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)).clip(-6, 6)
    models = [LogisticRegression(C=STRENGTH, max_iter=200).fit(x[rows], label[rows]) for label in days.labels.T]
    return np.stack([model.decision_function(x) for model in models], 1)


def followed(days: Days, logits: Array, first: int) -> Array:
    """Calibrated on one day, then moved with the scenario's own rate of the last seven days."""
    moved = logit(days.rate.clip(0.005, 0.995))
    for scenario in np.unique(days.scenario):
        rows = days.scenario == scenario
        moved[rows] -= moved[rows & (days.day == first)].mean(0) if (rows & (days.day == first)).any() else moved[rows]
    return expit(logit(days.apply(days.fit(first, first + 1, logits), logits)) + moved)


def pooled(days: Days, logits: Array, first: int) -> Array:
    """One scale and bias for all tabs."""
    scale, bias = days.fit(first, first + 1, logits)
    return expit(logits * scale[0] + bias[0])


METHODS: dict[str, Callable[[Days, Array, int], Array]] = {
    "none": lambda days, logits, first: expit(logits),
    SHIPPED: lambda days, logits, first: days.apply(days.fit(first, first + 1, logits), logits),
    "one day, all tabs pooled": pooled,
    "that day and 1 before": lambda days, logits, first: days.apply(days.fit(first - 1, first + 1, logits), logits),
    "that day and 3 before": lambda days, logits, first: days.apply(days.fit(first - 3, first + 1, logits), logits),
    "one day, then with the tab's rate": followed,
    "anew every midnight": lambda days, logits, first: days.daily(logits, first),
}


def judged(days: Days, p: Array, first: int) -> dict[tuple[str, str], float]:
    """log(predicted / observed) of the days after `first`, by tab and task."""
    found = {}
    for tab in LARGE:
        rows = (days.day > first) & (days.scenario == int(tab.removeprefix("tab_")) + 1)
        for index, task in enumerate(kr.TASKS):
            found[tab, task] = float(np.log(p[rows, index].mean() / days.labels[rows, index].mean()))
    return found


def before(folder: Path) -> None:
    """Judge every calibration on the days before the test week."""
    _, training_set = kr.prepare(folder, kr.config_of())
    days = Days.of(load_training_set(training_set, kr.TASKS, ("train", "valid")))
    begun = time.process_time()
    errors: dict[tuple[str, str], list[dict[tuple[str, str], float]]] = {}
    areas: dict[tuple[str, str], list[float]] = {}
    for first in FOLDS:
        for inputs_name, inputs in (
            ("as they are", days.inputs),
            (MOVED, days.inputs - days.drift(first)[days.day]),
        ):
            logits = logits_of(days, inputs, first)
            for method, answer in METHODS.items():
                errors.setdefault((inputs_name, method), []).append(judged(days, answer(days, logits, first), first))
            after = np.flatnonzero(days.day > first)
            for index, task in enumerate(kr.TASKS):
                area = AreaUnderCurve.of(logits[after, index], days.labels[after, index], after).value()
                areas.setdefault((inputs_name, task), []).append(area)
    rows = []
    for (inputs_name, method), folds in errors.items():
        labels = {"inputs": inputs_name, "calibrated": method}
        for tab, task in folds[0]:
            values = [fold[tab, task] for fold in folds]
            rows.append(row(f"error_{task}", float(np.abs(values).mean()), **labels, scenario=tab))
            rows.append(row(f"signed_{task}", float(np.mean(values)), **labels, scenario=tab))
    for (inputs_name, task), values in areas.items():
        rows.append(row(f"auc_{task}", float(np.mean(values)), inputs=inputs_name, scenario="all"))
    rows.append(row("cpu_seconds", round(time.process_time() - begun, 1)))
    write_result(
        "kuairand_drift",
        "KuaiRand-Pure: which calibration holds on later days, judged before the test week",
        rows,
        data="../shared/data/kuairand_pure (CC BY-SA 4.0)",
        seeds=[],
        notes=[
            "Rows of 04-24 to 05-01 alone. A logistic regression of the network's dense features is fitted on the days "
            "before 04-27, 04-28, 04-29 or 04-30, calibrated on that day, judged on all later ones to 05-01: mean over "
            "these four of |log(predicted / observed)|, and of the same with its sign.",
            f"tab_0 has about {int((days.scenario == 1).sum() / (days.day.max() + 1)):,} rows a day and few positives: "
            "its errors, of long views above all, are mostly chance.",
            "Levels are counts, ages and gaps, as against rates and lifts. Moved back: from the calibrating day on, by "
            "how far their mean over the impressions of the day before is from that of the training days. No label is "
            "read for it.",
        ],
        libraries=("numpy", "scikit-learn", "scipy"),
    )


@dataclass(slots=True)
class Given(EvaluationSet):
    """Rows that are already in memory."""

    given: TrainingData | None = None

    def data(self, spec: EncodeSpec | None = None) -> TrainingData:
        assert self.given is not None
        return self.given


def network_logits(checkpoint: Path, training_set: Path, data: TrainingData) -> Array:
    """Uncalibrated, of kr.TASKS."""
    network = load_network(checkpoint)
    network.ranker.calibration_scale.fill_(1)
    network.ranker.calibration_bias.fill_(0)
    rows = Given(training_set, network.tasks, "test", given=data)
    p = NetworkScorer(TorchParts(network), network.spec, network.tasks, batch_requests=BATCH).score(rows).probabilities
    return logit(np.stack([p[task] for task in kr.TASKS], 1).astype(np.float64).clip(1e-6, 1 - 1e-6))


def test(folder: Path, seeds: int) -> None:
    """Read the test week: each network as it is calibrated, anew every midnight, and with its levels moved back."""
    _, training_set = kr.prepare(folder, kr.config_of())
    days = Days.of(load_training_set(training_set, kr.TASKS, SPLITS))
    asked = load_training_set(training_set, kr.TASKS, SPLITS[1:])
    last = Days.of(asked)
    first = int(days.day.max() - last.day.max())  # the validation day
    drift = days.drift(first)[first:]
    width = asked.impressions.dense.shape[1]
    on = (asked.requests.ts // DAY_US - asked.requests.ts.min() // DAY_US).astype(np.int64)
    back = replace(
        asked,
        impressions=replace(asked.impressions, dense=asked.impressions.dense - drift[last.day, :width]),
        requests=replace(asked.requests, user_dense=asked.requests.user_dense - drift[on, width:]),
    )
    rows = kr.Rows.of(training_set, "test")
    weights = poisson_weights(rows.users, kr.RESAMPLES, kr.config_of().training.seed)
    values: dict[str, list[dict[tuple[str, str], float]]] = {}
    resampled: dict[str, list[dict[tuple[str, str], Any]]] = {}
    for seed in range(seeds):
        checkpoint = folder / "seeds" / str(seed)
        logits, moved = (network_logits(checkpoint, training_set, data) for data in (asked, back))
        print(seed, "answered", flush=True)
        for name, p in (
            ("network", METHODS[SHIPPED](last, logits, 0)),
            ("network, calibrated anew every midnight", last.daily(logits, 0)),
            (f"network, {MOVED}", METHODS[SHIPPED](last, moved, 0)),
            (f"network, {MOVED}, not calibrated", expit(moved)),
        ):
            found = kr.metrics(rows, {task: p[last.day > 0, index] for index, task in enumerate(kr.TASKS)})
            values.setdefault(name, []).append({key: metric.value() for key, metric in found.items()})
            resampled.setdefault(name, []).append({key: metric.resampled(weights) for key, metric in found.items()})
    write_result(
        "kuairand_calibration",
        "KuaiRand-Pure: calibration of the one network in the test week, as frozen and following the days",
        kr.model_rows(values, resampled),
        data="../shared/data/kuairand_pure (CC BY-SA 4.0)",
        seeds=list(range(seeds)),
        notes=[
            "The networks of results/kuairand_ranking.json, weights untouched. The test week had been read for that "
            "table, and was read again for this one, both a second time when the learning rate had changed; what is "
            "compared was chosen in results/kuairand_drift.json.",
            "network: calibrated on 05-01 alone. Anew every midnight: by the labels of the day before. Levels moved "
            "back: counts, ages and gaps of a day, less what their mean of the day before is above that of the "
            "training days; no label is read. Neither is what `omnifeed run` does: they show what a level costs.",
        ],
        libraries=("torch", "numpy", "scipy"),
    )


def main() -> None:
    folder = Path(os.environ.get("OMNIFEED_HOME", ".omnifeed")).absolute() / "kuairand_ranking"
    if sys.argv[1:2] == ["test"]:
        test(folder, int(sys.argv[2]) if sys.argv[2:] else 5)
    elif not sys.argv[1:]:
        before(folder)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
