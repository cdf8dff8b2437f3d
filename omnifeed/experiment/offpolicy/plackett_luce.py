"""Probabilities of sampled slates, and of orders of what a slate holds.

`serving.recommend` explores by drawing from the top without replacement, with logits (score - mean) / (temperature *
standard deviation) among its best candidates. An exposure log names the items shown and not the others that took
part, so what it can tell about a new scorer by itself is how well that scorer orders what was shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omnifeed.errors import InputError
from omnifeed.experiment.offpolicy.slates import Bools, Floats, Ints, LoggedSlates

DEEPEST = 10  # positions whose orders are counted: 2 ** 10 subsets an answer


def slate_propensities(
    scores: Floats,
    authors: Ints,
    places: Ints,
    *,
    creator_limit: int,
    temperature: float,
    new: Bools | None = None,
    new_every: int = 0,
) -> Floats:
    """The probability of each of a slate's items given those above it, as exploration in serving draws them.

    Args:
        scores: float [E], of all candidates that take part, as diversity has left them.
        authors: int64 [E], a number for each creator, -1 for none.
        places: int64 [K], the slate, as places among the candidates.
        new: bool [E], what may stand in the last of every `new_every` places, which are kept for such.

    Returns:
        float64 [K].
    """
    spread = float(scores.std())
    logits = (scores.astype(np.float64) - scores.mean()) / (temperature * spread if spread > 0 else 1.0)
    left = np.ones(len(scores), np.bool_)
    taken: Counter[int] = Counter()
    result = np.empty(len(places))
    for position, place in enumerate(places.tolist()):
        free = left & ~np.isin(authors, [creator for creator, count in taken.items() if count >= creator_limit])
        pool = free if free.any() else left
        if new is not None and new_every and (position + 1) % new_every == 0 and (free & new).any():
            pool = free & new
        weights = np.exp(logits - logits[pool].max())
        result[position] = weights[place] / weights[pool].sum() if pool[place] else 0.0
        left[place] = False
        if authors[place] >= 0:
            taken[int(authors[place])] += 1
    return result


@dataclass(frozen=True, slots=True)
class Reordered:
    """Logged answers whose first positions another scorer puts into its own order."""

    rows: Bools  # [R], answers of the log that can be used
    slates: LoggedSlates  # of those; propensities are those of the order given what the first positions hold
    target: Floats  # [rows, K], the other scorer's
    crowded: int  # left out: a creator reached the limit, so that what took part is not known


def reordering(
    log: LoggedSlates, scores: Floats, authors: Ints, creator_limit: int, temperature: float, depth: int
) -> Reordered:
    """A policy that shows what the log shows and draws the order of the first `depth` items anew by its own scores.

    With w the candidates' shares of the first draw, the log's propensities p give w of every shown item: w_k = p_k
    prod_{j<k} (1 - p_j). The probability of the shown set S is the sum over its orders, g({}) of the recursion
    g(S) = 1, g(T) = sum_{i in S - T} w_i / (1 - w(T)) g(T + i), and that of the logged item at position k given
    those above and S is p_k g(T_k) / g(T_{k-1}). The creators' limit breaks this where it bites; such sets are left
    out, which is a choice by set and not by order, so the estimate stays one of all others. A place that is kept for
    new items is drawn from another pool: give a depth above the first of them.

    Args:
        scores: float [R, K], the other scorer's, of the logged items.
        authors: int64 [R, K], -1 for none.
        temperature: of the other scorer's draw, in standard deviations of its scores in the set; near 0 its best order.

    Raises:
        InputError: the depth or temperature cannot be used, or a shown item has no finite score.
    """
    if not 1 <= depth <= DEEPEST or temperature <= 0:
        raise InputError(
            f"Orders of depth {depth} at temperature {temperature:g} cannot be counted.",
            f"Give a depth from 1 to {DEEPEST} and a positive temperature.",
        )
    depth = min(depth, log.shown.shape[1])
    head = log.shown[:, :depth]
    if not np.isfinite(scores[log.shown]).all():
        raise InputError("A shown item has no finite score.", "Score every logged item.")
    same = (authors[:, :depth, None] == authors[:, None, :depth]) & head[:, None, :] & (authors[:, :depth, None] >= 0)
    crowded = ((same.sum(2) >= creator_limit) & head).any(1)
    rows = ~crowded & log.shown.any(1)
    kept = log.take(rows)
    propensity, target = np.ones_like(kept.propensity), np.ones_like(kept.propensity)
    length = kept.shown[:, :depth].sum(1)
    for count in np.unique(length).tolist():
        part = np.flatnonzero(length == count)
        propensity[part, :count] = _given_set(kept.propensity[part, :count])
        target[part, :count] = _drawn(scores[rows][part, :count], temperature)
    slates = LoggedSlates(kept.user, kept.shown, propensity, kept.reward)
    return Reordered(rows, slates, target, int(crowded.sum()))


def _given_set(propensity: Floats) -> Floats:
    """[R, d] conditional propensities -> the same given the set of the d items."""
    rows, depth = propensity.shape
    before = np.concatenate([np.ones((rows, 1)), np.cumprod(1 - propensity, axis=1)], axis=1)
    share, rest = propensity * before[:, :-1], before[:, -1]
    full = (1 << depth) - 1
    ways = np.zeros((full + 1, rows))
    ways[full] = 1.0
    for subset in range(full - 1, -1, -1):
        missing = [item for item in range(depth) if not subset >> item & 1]
        left = rest + share[:, missing].sum(1)
        ways[subset] = sum(share[:, item] * ways[subset | 1 << item] for item in missing) / left
    prefix = [(1 << position) - 1 for position in range(depth + 1)]
    along: npt.NDArray[np.float64] = ways[prefix].T
    return np.asarray(np.minimum(propensity * along[:, 1:] / along[:, :-1], 1.0), np.float64)


def _drawn(scores: Floats, temperature: float) -> Floats:
    """[R, d] scores in the order shown -> the probability of each item given those above it."""
    spread = scores.std(1, keepdims=True)
    logits = (scores - scores.mean(1, keepdims=True)) / np.where(spread > 0, temperature * spread, 1.0)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(weights / np.cumsum(weights[:, ::-1], axis=1)[:, ::-1], np.float64)
