"""The metrics as plain numpy, each in a form that a weighted bootstrap of users can resample.

A metric is either a ratio of sums over users (recall, NDCG, log loss, calibration, grouped AUC) or an AUC, for which
rows are sorted once and every resample is a pass of cumulative sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Doubles = npt.NDArray[Any]  # float64

CELLS = 4_000_000  # of one block of a resampled AUC


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric that is sum(numerator) / sum(denominator) over U users."""

    numerator: Doubles  # [U]
    denominator: Doubles  # [U]

    def value(self) -> float:
        """The metric; NaN without data."""
        total = self.denominator.sum()
        return float(self.numerator.sum() / total) if total > 0 else float("nan")

    def resampled(self, weights: Doubles) -> Doubles:
        """The metric under each row of user weights [B, U]; NaN where no data is drawn."""
        total = weights @ self.denominator
        result: Doubles = np.divide(weights @ self.numerator, total, out=np.full(len(weights), np.nan), where=total > 0)
        return result


@dataclass(frozen=True, slots=True)
class AreaUnderCurve:
    """Probability that a positive row scores above a negative one, ties counting half.

    Rows are kept sorted by score, with the index of the first row of each tie.
    """

    owner: npt.NDArray[np.int64]  # [N], user of each row
    label: Doubles  # [N]
    group: npt.NDArray[np.int64]  # [N], index of the row's tie
    groups: int

    @staticmethod
    def of(scores: Array, labels: Array, owner: Array) -> AreaUnderCurve:
        """Sort once. Shapes [N]; labels 0 or 1."""
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        group = np.cumsum(np.append(False, ordered[1:] != ordered[:-1])) if len(order) else np.zeros(0, np.int64)
        return AreaUnderCurve(
            np.asarray(owner, np.int64)[order],
            np.asarray(labels, np.float64)[order],
            group.astype(np.int64),
            int(group[-1]) + 1 if len(order) else 0,
        )

    def _area(self, weight: Doubles) -> Doubles:
        positive, negative = weight * self.label, weight * (1 - self.label)
        starts = np.searchsorted(self.group, np.arange(self.groups))
        p = np.add.reduceat(positive, starts, axis=1)
        n = np.add.reduceat(negative, starts, axis=1)
        below = np.cumsum(n, axis=1) - n
        total = positive.sum(1) * negative.sum(1)
        wins = (p * (below + n / 2)).sum(1)
        result: Doubles = np.divide(wins, total, out=np.full(len(weight), np.nan), where=total > 0)
        return result

    def value(self) -> float:
        """The area; NaN with fewer than one row of each class."""
        return float(self._area(np.ones((1, len(self.label))))[0]) if self.groups else float("nan")

    def resampled(self, weights: Doubles) -> Doubles:
        """The area under each row of user weights [B, U]."""
        if not self.groups:
            return np.full(len(weights), np.nan)
        block = max(1, CELLS // len(self.label))
        return np.concatenate(
            [self._area(weights[start : start + block][:, self.owner]) for start in range(0, len(weights), block)]
        )


Metric = Ratio | AreaUnderCurve


def log_loss(probability: Array, labels: Array, owner: Array, users: int) -> Ratio:
    """Mean negative log-likelihood, probabilities kept off 0 and 1 by 1e-7."""
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    loss = -np.where(labels > 0, np.log(p), np.log1p(-p))
    return Ratio(np.bincount(owner, loss, users), np.bincount(owner, minlength=users).astype(np.float64))


def calibration(probability: Array, labels: Array, owner: Array, users: int) -> Ratio:
    """Mean predicted over mean observed; 1 is calibrated."""
    return Ratio(
        np.bincount(owner, probability.astype(np.float64), users),
        np.bincount(owner, (labels > 0).astype(np.float64), users),
    )


def grouped_auc(scores: Array, labels: Array, group: Array, owner: Array, users: int) -> Ratio:
    """AUC inside each group, weighted by its rows; groups with one class are left out.

    Args:
        group: any integers [N], e.g. user x day. owner: the user of each row.
    """
    order = np.lexsort((scores, group))
    g, s, y, who = group[order], scores[order], (labels[order] > 0).astype(np.float64), owner[order]
    if not len(g):
        return Ratio(np.zeros(users), np.zeros(users))
    new_group = np.append(True, g[1:] != g[:-1])
    start = np.flatnonzero(new_group)
    new_tie = new_group | np.append(True, s[1:] != s[:-1])
    tie = np.cumsum(new_tie) - 1
    tie_p, tie_n = np.bincount(tie, y), np.bincount(tie, 1 - y)
    tie_start = np.flatnonzero(new_tie)
    tie_group = (np.cumsum(new_group) - 1)[tie_start]
    before = np.cumsum(tie_n) - tie_n
    below = before - before[np.searchsorted(tie_group, np.arange(len(start)))][tie_group]
    wins = np.bincount(tie_group, tie_p * (below + tie_n / 2))
    positive, negative = np.bincount(tie_group, tie_p), np.bincount(tie_group, tie_n)
    both = (positive > 0) & (negative > 0)
    rows = positive + negative
    area = np.divide(wins, positive * negative, out=np.zeros(len(start)), where=both)
    return Ratio(
        np.bincount(who[start], area * rows * both, users), np.bincount(who[start], rows * both, users).astype(float)
    )


def positive_ranks(scores: Array, eligible: Array, request: Array, item: Array) -> npt.NDArray[np.int64]:
    """Rank of each positive in its request, 0 the best, ties with other items counted against it.

    Args:
        scores: [R, M]. eligible: bool [R, M]; positives count as eligible.
        request, item: int64 [P], the positives, each pair once.

    Returns:
        int64 [P].
    """
    own = scores[request, item]
    others = np.where(eligible, scores, -np.inf)
    others[request, item] = -np.inf
    ahead = np.empty(len(request), np.int64)
    for start in range(0, len(request), 512):
        part = slice(start, start + 512)
        ahead[part] = (others[request[part]] >= own[part, None]).sum(1)
    order = np.lexsort((-own, request))
    ordered = request[order]
    first = np.searchsorted(ordered, ordered)
    ahead[order] += np.arange(len(order)) - first
    return ahead


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Metrics of one list of requests with at least one engaged item each."""

    recall: dict[int, Doubles]  # by k: [R], share of the engaged items in the first k
    ndcg: dict[int, Doubles]  # by k: [R], binary relevance
    reciprocal_rank: Doubles  # [R], of the first engaged item


def retrieval_metrics(ranks: npt.NDArray[np.int64], request: Array, requests: int, ks: tuple[int, ...]) -> Retrieval:
    """Recall@k, NDCG@k and reciprocal rank of each request from the ranks of its positives [P]."""
    count = np.bincount(request, minlength=requests)
    gain = 1 / np.log2(ranks + 2)
    best = np.full(requests, np.iinfo(np.int64).max)
    np.minimum.at(best, request, ranks)
    ideal = np.append(0, np.cumsum(1 / np.log2(np.arange(2, max(max(ks), 1) + 2))))
    recall, ndcg = {}, {}
    for k in ks:
        inside = ranks < k
        recall[k] = np.bincount(request[inside], minlength=requests) / count
        ndcg[k] = np.bincount(request[inside], gain[inside], requests) / ideal[np.minimum(count, k)]
    return Retrieval(recall, ndcg, 1 / (best + 1.0))


def roc_points(scores: Array, labels: Array, points: int = 200) -> dict[str, list[float]]:
    """At most `points` points of the ROC curve, thresholds falling: fpr, tpr, threshold."""
    order = np.argsort(-scores, kind="stable")
    s, y = scores[order].astype(np.float64), labels[order] > 0
    last = np.flatnonzero(np.append(s[1:] != s[:-1], True)) if len(s) else np.zeros(0, np.int64)
    tpr = np.cumsum(y)[last] / max(int(y.sum()), 1)
    fpr = np.cumsum(~y)[last] / max(int((~y).sum()), 1)
    keep = np.unique(np.linspace(0, len(last) - 1, min(points - 1, len(last))).astype(np.int64))
    return {
        "fpr": [0.0, *fpr[keep].tolist()],
        "tpr": [0.0, *tpr[keep].tolist()],
        "threshold": [1.0, *s[last][keep].tolist()],
    }


def calibration_curve(probability: Array, labels: Array, bins: int = 10) -> dict[str, list[float]]:
    """Mean prediction, observed rate and rows in bins of equal size, by rising prediction."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return {
        "predicted": [float(probability[part].mean()) for part in parts],
        "observed": [float((labels[part] > 0).mean()) for part in parts],
        "rows": [float(len(part)) for part in parts],
    }


def poisson_weights(users: int, resamples: int, seed: int) -> Doubles:
    """Poisson(1) weights of users, float64 [resamples, users] (Chamandy et al. 2012)."""
    return np.random.default_rng(seed).poisson(1.0, (resamples, users)).astype(np.float64)


def middle(ks: tuple[int, ...]) -> int:
    """The middle one of the cut-offs; the upper of two."""
    return sorted(ks)[len(ks) // 2]
