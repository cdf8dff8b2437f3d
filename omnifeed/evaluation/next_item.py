"""How well a scorer names the next item: the rank of the right one in the full catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from omnifeed.export.encode import Ints
from omnifeed.training.next_item import NextItemNetwork
from omnifeed.training.sequences import Queries, SequenceData

Doubles = npt.NDArray[np.float64]
#: Scores of all item rows for some questions: [Q, rows]; row 0 is never read.
Scorer = Callable[[Queries], npt.NDArray[np.float32]]

BLOCK, CELLS = 512, 50_000_000  # questions, and scores, at once


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank of each question's right item, 0 the best."""

    masked: Ints  # items of the prefix take no part, but for the right one
    unmasked: Ints


@dataclass(frozen=True, slots=True)
class Metric:
    """A mean over questions with its 95 % interval (normal, over questions)."""

    name: str
    value: float
    low: float
    high: float


def ranks(scorer: Scorer, data: SequenceData, queries: Queries) -> Ranks:
    """Rank the right items; ties, and scores that are no number, count against them."""
    masked, unmasked = np.empty(len(queries), np.int64), np.empty(len(queries), np.int64)
    order = np.argsort(queries.stop, kind="stable")
    block = max(1, min(BLOCK, CELLS // data.rows))
    for start in range(0, len(order), block):
        rows = order[start : start + block]
        asked = Queries(queries.sequence[rows], queries.stop[rows])
        scores = scorer(asked)
        target = asked.targets(data)
        own = np.take_along_axis(scores, target[:, None], 1)
        ahead = (~(scores < own)).sum(1) - 1 - ~(scores[:, 0] < own[:, 0])
        prefix = data.prefixes(asked.sequence, asked.stop, int(asked.stop.max(initial=1)))
        prefix = np.sort(prefix, axis=1)
        first = np.concatenate([prefix[:, :1] > 0, prefix[:, 1:] != prefix[:, :-1]], axis=1)
        seen = first & (prefix > 0) & (prefix != target[:, None])
        unmasked[rows] = ahead
        masked[rows] = ahead - (seen & ~(np.take_along_axis(scores, prefix, 1) < own)).sum(1)
    return Ranks(masked, unmasked)


def network_scorer(network: NextItemNetwork, data: SequenceData) -> Scorer:
    """Scores of a trained network."""
    with torch.inference_mode():
        items = network.items()
        keys = network.keys(items)

    def score(queries: Queries) -> npt.NDArray[np.float32]:
        history = torch.from_numpy(data.prefixes(queries.sequence, queries.stop, network.config.length)).to(keys.device)
        last = torch.from_numpy(np.minimum(queries.stop, network.config.length) - 1)
        with torch.inference_mode():
            users = network.users(items, history)[torch.arange(len(last)), last]
            answer: npt.NDArray[np.float32] = (users @ keys.T).cpu().numpy()
        return answer

    return score


def gains(rank: Ints, k: int) -> dict[str, Doubles]:
    """HR@k, NDCG@k and MRR@k of each question; one item is right, so recall is the hit rate."""
    inside = rank < k
    return {
        f"HR@{k}": inside.astype(np.float64),
        f"NDCG@{k}": np.where(inside, 1 / np.log2(rank + 2), 0.0),
        f"MRR@{k}": np.where(inside, 1 / (rank + 1.0), 0.0),
    }


def summary(rank_lists: list[Ints], ks: tuple[int, ...]) -> list[Metric]:
    """Means over questions of the mean over seeds.

    Args:
        rank_lists: one array [Q] a seed, the same questions in the same order.
    """
    found = []
    for k in ks:
        by_seed = [gains(rank, k) for rank in rank_lists]
        for name in by_seed[0]:
            each = np.mean([one[name] for one in by_seed], axis=0)
            half = 1.96 * each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else 0.0
            found.append(Metric(name, float(each.mean()), float(each.mean() - half), float(each.mean() + half)))
    return found
