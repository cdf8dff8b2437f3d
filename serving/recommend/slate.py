"""From scored candidates to a slate: the value model, diversity, the creators' limit, new items, exploration.

A slate is filled from the top, and every choice depends on nothing but the candidates and the places above. So where it
is drawn by chance, the chance of each draw given those above it is known, whatever else bends the choice.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.experiment.assignment import unit_interval
from omnifeed.export.catalogue_state import Bools
from omnifeed.export.encode import CATEGORY_LEVELS, Floats, Ints

DEPTH = 50  # best candidates among which a sampled slate chooses, or twice k if that is more


@dataclass(frozen=True, slots=True)
class Slate:
    """Places in the candidates' order, best first."""

    places: tuple[int, ...]
    kept: tuple[bool, ...]  # whether it stands in a place that is kept for new items
    propensities: tuple[float, ...] | None  # None unless the slate was sampled


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


def diversified(scores: Floats, authors: Ints, categories: Ints, k: int, strength: float) -> npt.NDArray[np.float64]:
    """The scores, less what repeats the items that greedy choice takes before (MMR; Carbonell and Goldstein 1998).

    Each of the k steps takes the best left, where an item counts its score less strength * (standard deviation of the
    best max(DEPTH, 2 k) scores) * likeness to the most alike of those taken. Likeness is half for the same creator, and
    half for the share of the category path's levels in common. A taken item keeps what it counted when it was taken, so
    that the order of the result is the order of the choice. Chosen among others: docs/decisions/0007-diversity.md.

    Args:
        authors: int64 [K], a number for each creator, -1 for none.
        categories: int64 [K, levels], from `category_levels`.

    Returns:
        float64 [K].
    """
    plain = scores.astype(np.float64)
    if strength <= 0 or not len(plain):
        return plain
    best = np.partition(plain, max(len(plain) - _depth(k), 0))[-_depth(k) :]
    penalty = strength * float(best.std()) * likeness(authors, categories)
    result, worst, taken = plain.copy(), np.zeros_like(plain), np.zeros(len(plain), np.bool_)
    for _ in range(min(k, len(plain))):
        now = np.where(taken, -np.inf, plain - worst)
        place = int(now.argmax())
        result[place], taken[place] = now[place], True
        np.maximum(worst, penalty[place], out=worst)
    return np.where(taken, result, plain - worst)


def likeness(authors: Ints, categories: Ints) -> Floats:
    """float32 [K, K], in [0, 1]; an item without a creator or category is like no other in that respect."""
    nobody = -1 - np.arange(len(authors))
    result = np.float32(0.5) * np.equal.outer(*2 * (np.where(authors < 0, nobody, authors),))
    share = np.float32(0.5 / categories.shape[1])
    for level in categories.T:
        result += share * np.equal.outer(*2 * (np.where(level > 0, level, nobody),))
    return np.asarray(result, np.float32)


def category_levels(paths: Iterable[str | None]) -> Ints:
    """int64 [K, CATEGORY_LEVELS]: a number for each level of each path, the same for the same prefix; 0 for none."""
    return np.array([_levels(path or "") for path in paths], np.int64).reshape(-1, CATEGORY_LEVELS)


@lru_cache(maxsize=1 << 16)
def _levels(path: str) -> tuple[int, ...]:
    names = path.split("/")[:CATEGORY_LEVELS] if path else []
    numbers = [1 + zlib.crc32("/".join(names[: n + 1]).encode("utf-8", "surrogatepass")) for n in range(len(names))]
    return (*numbers, *[0] * (CATEGORY_LEVELS - len(names)))


def explored(request_id: str, share: float) -> bool:
    """Whether this request is answered by a sampled slate: a fixed function of its id."""
    return unit_interval("explore", request_id) < share


def generator(purpose: str, request_id: str) -> np.random.Generator:
    """Chance that is the same whenever the request is asked again."""
    seed = int.from_bytes(hashlib.sha256(f"{purpose}\0{request_id}".encode()).digest()[:16], "big")
    return np.random.Generator(np.random.PCG64(seed))


def fill(
    scores: npt.NDArray[np.floating[Any]],
    authors: Ints,
    new: Bools,
    k: int,
    *,
    creator_limit: int,
    new_every: int,
    temperature: float,
    request_id: str,
    sampled: bool,
) -> Slate:
    """Fill a slate from the top, reproducibly from the request_id.

    The last of every `new_every` places is kept for a new item and filled by a draw among those left; without one it is
    like any other. The others take the best score left or, in a sampled slate, a draw. A draw takes each candidate with
    a probability in proportion to exp(logit), without replacement (Plackett-Luce). Logits are (score - mean) /
    (temperature * standard deviation) over those that take part: the best max(DEPTH, 2 k), and all new items. A creator
    at the limit takes no further part while anybody else is left.

    The propensity of a place is the probability of drawing that item there *given the items above it*. So the first
    one's is the item's marginal probability, and the product over the slate is the slate's.

    Args:
        authors: int64 [K], a number for each creator, -1 for none.
        new: bool [K], what may stand in the kept places.

    Returns:
        min(k, K) places; of a sampled slate at most as many as take part.
    """
    if not len(scores):
        return Slate((), (), () if sampled else None)
    order = np.argsort(-scores, kind="stable")
    part, nobody = new.copy(), np.zeros_like(new)
    part[order[: _depth(k)]] = True
    spread = float(scores[part].std())
    logits = (scores.astype(np.float64) - scores[part].mean()) / (temperature * spread if spread > 0 else 1.0)
    luck = generator("slate", request_id).random(k)
    room = _Room(order, authors, creator_limit)
    places: list[int] = []
    kept: list[bool] = []
    propensities: list[float] = []
    for position in range(min(k, int(part.sum()) if sampled else len(order))):
        due = new_every > 0 and (position + 1) % new_every == 0
        pool = new & room.left & room.open if due else nobody
        kept.append(bool(pool.any()))
        if sampled and not kept[-1]:
            pool = room.of(part)
        if sampled or kept[-1]:
            place, propensity = _drawn(logits, pool, luck[position])
            propensities.append(propensity)
        else:
            place = room.best()
        room.take(place)
        places.append(place)
    return Slate(tuple(places), tuple(kept), tuple(propensities) if sampled else None)


class _Room:
    """What a slate can still take while it is being filled."""

    def __init__(self, order: npt.NDArray[np.intp], authors: Ints, limit: int) -> None:
        self.left = np.ones(len(order), np.bool_)
        self.open = np.ones(len(order), np.bool_)  # the creator has not reached the limit
        self._authors, self._limit = authors, limit
        self._taken: Counter[int] = Counter()
        self._ahead, self._over = deque(order.tolist()), deque[int]()

    def best(self) -> int:
        """The best left, a creator at the limit after everybody else."""
        while self._ahead:
            place: int = self._ahead.popleft()
            if self.left[place]:
                if self.open[place]:
                    return place
                self._over.append(place)
        return next(place for place in self._over if self.left[place])

    def of(self, part: Bools) -> Bools:
        """What is left of these; without the creators at the limit while anybody else is."""
        left = part & self.left
        return left & self.open if (left & self.open).any() else left

    def take(self, place: int) -> None:
        """It stands in the slate."""
        self.left[place] = False
        author = int(self._authors[place])
        if author >= 0:
            self._taken[author] += 1
            if self._taken[author] == self._limit:
                self.open[self._authors == author] = False


def _drawn(logits: npt.NDArray[np.float64], pool: Bools, luck: float) -> tuple[int, float]:
    places = np.flatnonzero(pool)
    weights = np.exp(logits[places] - logits[places].max())
    up_to = np.cumsum(weights)
    chosen = int(np.searchsorted(up_to, luck * up_to[-1], side="right"))
    return int(places[chosen]), float(weights[chosen] / up_to[-1])


def _depth(k: int) -> int:
    return max(DEPTH, 2 * k)
