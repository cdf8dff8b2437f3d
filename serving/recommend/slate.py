"""From scored candidates to a slate: the value model, the creators' limit, and exploration with true propensities."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omnifeed.experiment.assignment import unit_interval
from omnifeed.export.encode import Floats, Ints

EXPLORE_DEPTH = 50  # best candidates among which a sampled slate chooses, or twice k if that is more


@dataclass(frozen=True, slots=True)
class Slate:
    """Places in the candidates' order, best first, and each place's propensity where it was sampled."""

    places: tuple[int, ...]
    propensities: tuple[float, ...] | None


def values(
    probabilities: Floats,
    tasks: Sequence[str],
    weights: Mapping[str, float],
    price: Floats,
    price_power: float,
    cosine: Floats,
    retrieval_prior: float,
) -> Floats:
    """The value model: the weighted sum of the tasks' probabilities, by how plausible the item is for the request.

    An order counts by its price. The ranker learns from what was exposed and is too sure of what never is; the
    retrieval score knows the whole catalogue and stands in for the probability of being considered at all.

    Args:
        probabilities: float32 [K, len(tasks)].
        weights: by task; a task without one counts nothing.
        price: [K], NaN where not known: the order's weight is then as it is.
        cosine: float32 [K], the retrieval score.
        retrieval_prior: the sum is multiplied by exp(retrieval_prior * (cosine - 1)).

    Returns:
        float32 [K].
    """
    total = np.zeros(len(probabilities), np.float64)
    factor = np.where(np.isfinite(price), np.maximum(price, 0), 1.0) ** price_power
    for column, task in enumerate(tasks):
        total += probabilities[:, column] * weights.get(task, 0.0) * (factor if task == "order" else 1.0)
    # A sum below zero (more hide than anything) would be *raised* by a small factor: those go by sum alone, at the end.
    prior = np.exp(retrieval_prior * (cosine.astype(np.float64) - 1))
    return np.where(total > 0, total * prior, total).astype(np.float32)


def ordered(scores: Floats, authors: Ints, k: int, creator_limit: int) -> Slate:
    """Best score first; a creator's items beyond the limit come after everybody else's.

    Args:
        authors: int64 [K], a number for each creator, -1 for none.
    """
    return Slate(_limited(np.argsort(-scores, kind="stable"), authors, k, creator_limit), None)


def explored(request_id: str, share: float) -> bool:
    """Whether this request is answered by a sampled slate: a fixed function of its id."""
    return unit_interval("explore", request_id) < share


def explore(scores: Floats, authors: Ints, k: int, creator_limit: int, temperature: float, request_id: str) -> Slate:
    """A Plackett-Luce slate, drawn by Gumbel-top-k (Kool et al. 2019, section 2.2), reproducible from the request_id.

    The E = max(EXPLORE_DEPTH, 2 k) best candidates take part, with logits (score - mean) / (temperature * standard
    deviation) over those E. Positions are filled from the top; a creator at the limit takes no further part while
    anybody else is left. The propensity of the item at position p is the probability of drawing it there *given the
    items above it*: softmax over the candidates that still took part. So the first position's is the item's marginal
    probability, and the product over the slate is the slate's. Greedy choice in the perturbed order draws exactly
    so: perturbed logits are racing exponential clocks, and those still running have no memory.

    Returns:
        at most min(k, E) places.
    """
    depth = max(EXPLORE_DEPTH, 2 * k)
    head = np.argsort(-scores, kind="stable")[:depth]
    spread = float(scores[head].std())
    logits = (scores[head].astype(np.float64) - scores[head].mean()) / (temperature * spread if spread > 0 else 1.0)
    seed = int.from_bytes(hashlib.sha256(f"slate\0{request_id}".encode()).digest()[:16], "big")
    perturbed = logits + np.random.Generator(np.random.PCG64(seed)).gumbel(size=len(head))
    creators = authors[head]
    chosen = _limited(np.argsort(-perturbed, kind="stable"), creators, k, creator_limit)
    weights = np.exp(logits - logits.max())
    left = np.ones(len(head), np.bool_)
    taken: Counter[int] = Counter()
    propensities = []
    for place in chosen:
        full = [creator for creator, count in taken.items() if count >= creator_limit]
        free = left & ~np.isin(creators, full)
        pool = free if free.any() else left
        propensities.append(float(weights[place] / weights[pool].sum()))
        left[place] = False
        if creators[place] >= 0:
            taken[int(creators[place])] += 1
    return Slate(tuple(int(head[place]) for place in chosen), tuple(propensities))


def _limited(order: npt.NDArray[np.intp], authors: Ints, k: int, limit: int) -> tuple[int, ...]:
    taken: Counter[int] = Counter()
    chosen: list[int] = []
    over: list[int] = []
    for place, author in zip(order.tolist(), authors[order].tolist(), strict=True):
        if len(chosen) == k:
            break
        if author >= 0:
            if taken[author] >= limit:
                over.append(place)
                continue
            taken[author] += 1
        chosen.append(place)
    return tuple(chosen + over[: k - len(chosen)])
