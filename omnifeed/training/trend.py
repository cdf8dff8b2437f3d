"""How much what trends should weigh in retrieval, by scenario: fitted on the validation days as calibration is.

An engaged item's log-odds against the rest of the catalogue are taken as scale * cosine + slope * log(1 + trend); the
most likely slope / scale is the trend's weight beside the cosine. It stays inside the network, so that ONNX holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import minimize

from omnifeed.export.encode import DAY_US, Floats, Ints
from omnifeed.model.network import Network
from omnifeed.model.parts import TorchParts
from omnifeed.training.batching import request_inputs
from omnifeed.training.dataset import TrainingData, micros
from omnifeed.training.packing import parquet

Doubles = npt.NDArray[np.float64]

TRENDING = "item_scenario_trending"
MIN_REQUESTS = 20  # of a scenario, with an engaged item, from which it has a say in what an unknown one gets
REQUESTS = 1000  # of a scenario that are looked at, at most
ITEMS = 8192  # of the catalogue that they are compared with, at most; the engaged ones are always among them
#: Weight of the squared distance from the centre, in (log scale, slope): one over twice their variance between the
#: larger tabs of KuaiRand-Pure.
PRIOR = 3.0
BATCH = 128


@dataclass(slots=True)
class Trends:
    """The raw trending feature of a training set's items, as of every midnight of its valid and test days."""

    folder: Path
    data: TrainingData
    _columns: dict[tuple[int, str], Floats] = field(default_factory=dict)
    _scenarios: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        table = parquet(self.folder / "item_features.parquet").read(["day_ts", "item_id", "scenario", TRENDING])
        rows, days = self.data.items.rows(table["item_id"]), micros(table["day_ts"], 0)
        value = np.nan_to_num(table[TRENDING].cast(pa.float32()).to_numpy())
        self._scenarios = tuple(pc.unique(table["scenario"]).to_pylist())
        for name in self._scenarios:
            of_scenario = pc.equal(table["scenario"], name).to_numpy()
            for day in np.unique(days):
                chosen = of_scenario & (days == day)
                column = np.zeros(len(self.data.items.created), np.float32)
                column[rows[chosen]] = value[chosen]
                self._columns[int(day), name] = column

    def column(self, day: int, scenario: str) -> Floats:
        """Of every item, float32 [M + 1], as of a midnight; zeros where it is not known."""
        blank = np.zeros(len(self.data.items.created), np.float32)
        return self._columns.get((day, scenario), blank)

    def of(self, requests: Ints, items: Ints | None = None) -> Floats:
        """Of these items, by default all, for these requests, each at its last midnight in its scenario.

        Returns:
            float32 [R, items]. An unknown scenario has the sum over all that the features know.
        """
        data = self.data
        items = np.arange(len(data.items.created)) if items is None else items
        result = np.empty((len(requests), len(items)), np.float32)
        for row, request in enumerate(requests):
            scenario = int(data.requests.scenario[request])
            day = int(data.requests.ts[request]) // DAY_US * DAY_US
            names = (data.spec.scenarios[scenario - 1],) if scenario else self._scenarios
            result[row] = np.stack([self.column(day, name)[items] for name in names]).sum(0)
        return result


@dataclass(frozen=True, slots=True)
class Choices:
    """R requests, M items on offer, P engagements."""

    cosine: Doubles  # [R, M]
    grown: Doubles  # [R, M], log(1 + trend)
    eligible: npt.NDArray[np.bool_]  # [R, M]; every engaged item is
    request: Ints  # [P], row
    item: Ints  # [P], column


def fit_choices(choices: Choices, centre: tuple[float, float], strength: float) -> tuple[float, float]:
    """The scale and slope under which the engagements are most likely, a softmax over each request's eligible items.

    Args:
        centre: (scale, slope) without data. strength: of the draw to it.

    Returns:
        (scale, slope), scale positive, slope not negative.
    """
    origin = np.array([np.log(centre[0]), centre[1]])
    at = (choices.request, choices.item)

    def objective(x: Doubles) -> tuple[float, Doubles]:
        scale = np.exp(x[0])
        logit = np.where(choices.eligible, scale * choices.cosine + x[1] * choices.grown, -np.inf)
        logit -= logit.max(1, keepdims=True)
        p = np.exp(logit)
        total = p.sum(1, keepdims=True)
        p /= total
        loss = -(logit[at] - np.log(total[choices.request, 0])).sum()
        slopes = [
            ((p * values).sum(1)[choices.request] - values[at]).sum() for values in (choices.cosine, choices.grown)
        ]
        away = x - origin
        return float(loss + strength * (away @ away)), np.array([slopes[0] * scale, slopes[1]]) + 2 * strength * away

    found = minimize(objective, origin, jac=True, method="L-BFGS-B", bounds=[(-2, 5), (0, 20)])
    return float(np.exp(found.x[0])), float(found.x[1])


def trend_weights(network: Network, folder: Path, data: TrainingData, seed: int) -> Doubles:
    """The trend's weight beside the cosine in every scenario, from the valid requests with an engaged item.

    Args:
        network: trained. folder: the training set. data: loaded from it, valid rows among them.
        seed: of the draw of requests and items where there are too many.

    Returns:
        float64 [scenarios + 1]. Row 0, the unknown scenario, has the mean over the scenarios that can be fitted, each
        counted once: a new one is another scenario, not more requests of the largest. A small one is drawn there.
        Zeros without data.
    """
    rng = np.random.default_rng((seed, 7))
    weights = np.zeros(len(data.spec.scenarios) + 1)
    valid = np.flatnonzero(data.requests.shown("valid"))
    valid = valid[data.impressions.engagement[valid] > 0]
    owner = np.searchsorted(data.requests.first, valid, side="right") - 1
    pairs = np.unique(np.stack([owner, data.impressions.item[valid].astype(np.int64)]), axis=1)
    asked = np.unique(pairs[0])
    if len(asked) < MIN_REQUESTS:
        return weights
    parts, trends = TorchParts(network), Trends(folder, data)
    encoded = [
        parts.item_encoder({name: value[start : start + 4096] for name, value in data.items.inputs.items()})
        for start in range(0, len(data.items.created), 4096)
    ]
    vec, key = (np.concatenate([part[name] for part in encoded]) for name in ("item_vec", "item_key"))

    def choices(requests: Ints) -> Choices:
        if len(requests) > REQUESTS:
            requests = np.sort(rng.choice(requests, REQUESTS, replace=False))
        inside = np.isin(pairs[0], requests)
        engaged = pairs[1][inside]
        count = len(data.items.created) - 1
        drawn = 1 + rng.choice(count, min(count, ITEMS), replace=False)
        items = np.union1d(drawn, engaged)
        users = []
        for start in range(0, len(requests), BATCH):
            inputs = request_inputs(data, requests[start : start + BATCH])
            inputs["hist_vec"] = vec[inputs.pop("hist_row")]
            users.append(parts.user_encoder(inputs)["user_vec"])
        ts = data.requests.ts[requests][:, None]
        row, column = np.searchsorted(requests, pairs[0][inside]), np.searchsorted(items, engaged)
        eligible = data.items.available(items, ts)
        eligible[row, column] = True
        return Choices(
            cosine=(np.concatenate(users) @ key[items].T).astype(np.float64),
            grown=np.log1p(trends.of(requests, items).astype(np.float64)),
            eligible=eligible,
            request=row,
            item=column,
        )

    of_scenario = [asked[data.requests.scenario[asked] == scenario] for scenario in range(len(weights))]
    pooled = fit_choices(choices(asked), (1 / network.config.temperature, 0.0), PRIOR)
    large = [fit_choices(choices(one), pooled, PRIOR) for one in of_scenario[1:] if len(one) >= MIN_REQUESTS]
    scales, slopes = zip(*(large or [pooled]), strict=True)
    centre = (float(np.exp(np.log(scales).mean())), float(np.mean(slopes)))
    for scenario, requests in enumerate(of_scenario):
        scale, slope = fit_choices(choices(requests), centre, PRIOR) if scenario and len(requests) else centre
        weights[scenario] = slope / scale
    return weights
