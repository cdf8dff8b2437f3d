"""A scorer's metrics on one evaluation set, overall and per scenario, ready to be resampled by user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.evaluation.metrics import (
    AreaUnderCurve,
    Metric,
    Ratio,
    calibration,
    grouped_auc,
    log_loss,
    positive_ranks,
    retrieval_metrics,
)
from omnifeed.evaluation.scorer import Progress, Scored
from omnifeed.export.encode import DAY_US, Ints
from omnifeed.training.dataset import TrainingData

ALL = "all"
CELLS = 2_000_000  # of one block of requests x items

#: By (scenario, metric).
Metrics = dict[tuple[str, str], Metric]


@dataclass(frozen=True, slots=True)
class Population:
    """Who owns what in an evaluation set."""

    users: int
    request_user: Ints  # [R], 0..users-1
    impression_request: Ints  # [N]
    scenarios: Mapping[str, npt.NDArray[np.bool_]]  # by name, ALL first: which requests

    @staticmethod
    def of(data: TrainingData) -> Population:
        """Users are those with a request; scenarios those with one."""
        known, user = np.unique(data.requests.user, return_inverse=True)
        scenarios = {ALL: np.ones(len(data.requests), bool)}
        for index, name in enumerate(data.spec.scenarios, start=1):
            if (data.requests.scenario == index).any():
                scenarios[name] = data.requests.scenario == index
        rows = np.repeat(np.arange(len(data.requests)), np.diff(data.requests.first))
        return Population(len(known), user.astype(np.int64), rows, scenarios)


def measure(
    scored: Scored, data: TrainingData, population: Population, ks: tuple[int, ...], progress: Progress
) -> Metrics:
    """Every metric of a scorer: auc, grouped_auc, log_loss and calibration by task; recall@k, ndcg@k and mrr.

    Grouped AUC is inside a user's day: across days a user's own rates move against the labels that remain.
    """
    result: Metrics = {}
    request = population.impression_request
    owner = population.request_user[request]
    day = data.requests.ts[request] // DAY_US
    group = owner * (int(day.max(initial=0)) + 1) + day
    for task, probability in scored.probabilities.items():
        labels = data.impressions.labels[:, data.tasks.index(task)]
        for name, requests in population.scenarios.items():
            rows = requests[request] & (labels >= 0)
            p, y, who = probability[rows], labels[rows], owner[rows]
            result[name, f"auc_{task}"] = AreaUnderCurve.of(p, y, who)
            result[name, f"grouped_auc_{task}"] = grouped_auc(p, y, group[rows], who, population.users)
            if not scored.calibrated:
                continue
            result[name, f"log_loss_{task}"] = log_loss(p, y, who, population.users)
            result[name, f"calibration_{task}"] = calibration(p, y, who, population.users)
    if scored.retrieval is not None:
        result |= _retrieval(scored, data, population, ks, progress)
    return result


def engaged_ranks(scored: Scored, data: TrainingData, population: Population, progress: Progress) -> tuple[Ints, Ints]:
    """What users engaged with, and where retrieval over the full catalogue puts it.

    Returns:
        int64 [2, P], request and item of each pair once, ascending; int64 [P], their ranks in the request, 0 the best.
    """
    assert scored.retrieval is not None
    engaged = np.flatnonzero(data.impressions.engagement > 0)
    pairs = np.unique(
        np.stack([population.impression_request[engaged], data.impressions.item[engaged].astype(np.int64)]), axis=1
    )
    requests = np.unique(pairs[0])
    items = data.items
    block = max(1, CELLS // len(items.created))
    ranks: list[Any] = []
    for start in range(0, len(requests), block):
        progress("retrieve", start, len(requests))
        part = requests[start : start + block]
        ts = data.requests.ts[part][:, None]
        eligible = items.available(slice(None), ts)
        eligible[:, 0] = False
        inside = (pairs[0] >= part[0]) & (pairs[0] <= part[-1])
        row = np.searchsorted(part, pairs[0][inside])
        ranks.append(positive_ranks(scored.retrieval(part), eligible, row, pairs[1][inside]))
    return pairs, np.concatenate(ranks) if ranks else np.zeros(0, np.int64)


def _retrieval(
    scored: Scored, data: TrainingData, population: Population, ks: tuple[int, ...], progress: Progress
) -> Metrics:
    pairs, ranks = engaged_ranks(scored, data, population, progress)
    requests = np.unique(pairs[0])
    found = retrieval_metrics(ranks, np.searchsorted(requests, pairs[0]), len(requests), ks)
    values = {f"recall@{k}": found.recall[k] for k in ks} | {f"ndcg@{k}": found.ndcg[k] for k in ks}
    values["mrr"] = found.reciprocal_rank
    owner = population.request_user[requests]
    result: Metrics = {}
    for name, mask in population.scenarios.items():
        chosen = mask[requests]
        count = np.bincount(owner[chosen], minlength=population.users).astype(np.float64)
        for metric, value in values.items():
            result[name, metric] = Ratio(np.bincount(owner[chosen], value[chosen], population.users), count)
    return result
