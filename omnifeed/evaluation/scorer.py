"""What answers an offline comparison: a network through its three parts, or release 0's trending formula.

Both see the same impressions and the same requests of a training set's split, encoded as a server would encode them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from omnifeed.export.encode import EncodeSpec, Floats, Ints
from omnifeed.export.trending import retrieval_scores, trending_scores
from omnifeed.features.spec import ITEM_DENSE
from omnifeed.features.training_set import TrainingSet
from omnifeed.model.parts import Parts
from omnifeed.training.batching import candidates, request_inputs
from omnifeed.training.dataset import TrainingData, load_training_set
from omnifeed.training.trend import Trends

Progress = Callable[[str, int, int], None]

#: The smoothed rate that stands for a task's probability where there is no network.
RATES = {
    "click": "item_scenario_click_rate_7d",
    "long_view": "item_scenario_long_view_rate_7d",
    "order": "item_scenario_order_rate_7d",
    "hide": "item_hide_rate_7d",
}


@dataclass(slots=True)
class EvaluationSet:
    """One split of a training set, encoded on demand for each scorer's own encoding."""

    folder: Path
    tasks: tuple[str, ...]
    split: str
    _own: EncodeSpec = field(init=False)
    _encoded: dict[EncodeSpec, TrainingData] = field(default_factory=dict)
    _trends: dict[EncodeSpec, Trends] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._own = TrainingSet.load(self.folder).encode

    def data(self, spec: EncodeSpec | None = None) -> TrainingData:
        """The split under an encoding, by default the training set's; rows stand in the same order under any."""
        spec = spec or self._own
        if spec not in self._encoded:
            self._encoded[spec] = load_training_set(self.folder, self.tasks, (self.split,), spec)
        return self._encoded[spec]

    def trends(self, spec: EncodeSpec | None = None) -> Trends:
        """What trended at every midnight of the split, in the scenarios that an encoding knows."""
        spec = spec or self._own
        if spec not in self._trends:
            self._trends[spec] = Trends(self.folder, self.data(spec))
        return self._trends[spec]


@dataclass(frozen=True, slots=True)
class Scored:
    """A scorer's answers to one evaluation set."""

    probabilities: Mapping[str, Floats]  # by task, [N] impressions; a task that it cannot answer is absent
    retrieval: Callable[[Ints], Floats] | None  # rows of requests -> [R, M + 1] scores of all items; None: cannot
    calibrated: bool = True  # false: the probabilities are scores, of which only the order means anything


class Scorer(Protocol):
    """Something that ranks impressions and retrieves from the catalogue."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    def score(self, rows: EvaluationSet, progress: Progress) -> Scored:
        """Answer every request of the set."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkScorer:
    """A network, run through `Parts`: PyTorch or the ONNX bundle."""

    parts: Parts
    spec: EncodeSpec
    tasks: tuple[str, ...]
    name: str = "network"
    batch_requests: int = 128

    def score(self, rows: EvaluationSet, progress: Progress = lambda label, done, total: None) -> Scored:
        """Encode all items once, then every request with its own candidates."""
        data = rows.data(self.spec)
        inputs, count = data.items.inputs, len(data.items.created)
        encoded = [
            self.parts.item_encoder({name: value[start : start + 4096] for name, value in inputs.items()})
            for start in range(0, count, 4096)
        ]
        item_vec = np.concatenate([part["item_vec"] for part in encoded])
        item_key = np.concatenate([part["item_key"] for part in encoded])
        user_vec = np.zeros((len(data.requests), item_key.shape[1]), np.float32)
        trend_weight = np.zeros((len(data.requests), 1), np.float32)
        answers = np.zeros((len(data.impressions.item), len(self.tasks)), np.float32)
        width = np.diff(data.requests.first)
        order = np.lexsort((width, data.requests.prefix.clip(max=self.spec.history_length)))
        for start in range(0, len(order), self.batch_requests):
            progress(f"score {self.name}", start, len(order))
            part = order[start : start + self.batch_requests]
            request = request_inputs(data, part)
            request["hist_vec"] = item_vec[request.pop("hist_row")]
            user = self.parts.user_encoder(request)
            user_vec[part], trend_weight[part] = user["user_vec"], user["trend_weight"]
            shown = candidates(data, part)
            ranked = self.parts.ranker(
                {
                    "states": user["states"],
                    "states_mask": user["states_mask"],
                    "request_state": user["request_state"],
                    "scenario": request["scenario"],
                    "cand_vec": item_vec[shown["item"]],
                    "cand_dense": shown["cand_dense"],
                }
            )["probabilities"]
            real = shown["impression"] >= 0
            answers[shown["impression"][real]] = ranked[real]
        progress(f"score {self.name}", len(order), len(order))
        columns = {task: np.ascontiguousarray(answers[:, index]) for index, task in enumerate(self.tasks)}

        def retrieve(requests: Ints) -> Floats:
            cosine: Floats = user_vec[requests] @ item_key.T
            weight = trend_weight[requests]
            return (
                retrieval_scores(cosine, np.log1p(rows.trends(self.spec).of(requests)), weight)
                if weight.any()
                else cosine
            )

        return Scored(columns, retrieve)


@dataclass(frozen=True, slots=True)
class TrendingScorer:
    """Release 0: the formula of `omnifeed.export.trending` over the day's trending feature."""

    name: str = "trending"

    def score(self, rows: EvaluationSet, progress: Progress = lambda label, done, total: None) -> Scored:
        """Probabilities are the item's smoothed rates in the scenario, as of the day."""
        data = rows.data()
        names = [feature.name for feature in ITEM_DENSE]
        answers = {
            task: np.ascontiguousarray(data.impressions.dense[:, names.index(feature)])
            for task, feature in RATES.items()
        }
        text = data.items.inputs["text"]

        def retrieve(requests: Ints) -> Floats:
            result = rows.trends().of(requests)
            for row, request in enumerate(requests):
                query = int(data.requests.query[request])
                result[row] = trending_scores(result[row], text @ data.queries[query] if query else None)
            return result

        return Scored({task: answers[task] for task in rows.tasks if task in answers}, retrieve)
