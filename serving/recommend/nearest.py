"""Approximate search for catalogues too large to compare with item by item: faiss (docs/decisions/0004).

It only proposes rows: who calls it scores them exactly, and joins what it cannot know (what trends, what came after it
was built). The filter works inside the search, so what may not be shown takes no place.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omnifeed.export.catalogue_state import Bools
from omnifeed.export.encode import Floats, Ints
from omnifeed.serving.recommend.index import Index

log = logging.getLogger(__name__)

PROBED = 6  # one list in so many is read by a search; there are 2 sqrt(N); benchmarks/ann.py
TRAINED = 64  # vectors a list from which the lists' centres are found
ITERATIONS = 10
FEW = 20_000  # items that may be shown at most for which it is quicker, and exact, to score them all
TAIL = 20_000  # rows that came since, scored one by one; with more of them it is built again
HOT = 20_000  # of the trending items at most, or one in HOT_PART, are compared with every request
HOT_PART = 20


@dataclass(frozen=True, slots=True)
class Hot:
    """The trending items of a scenario, the most trending first."""

    rows: Ints  # [H], from 0
    keys: Floats  # [H, d], side by side: to gather them for every request would cost more than to compare them
    grown: Floats  # [H]

    def best(self, user_vec: Floats, mask: Bools, count: int, weight: np.float32) -> Ints:
        """Rows of the best `count` by cosine and trend, and of the most trending `count`."""
        shown = np.flatnonzero(mask[self.rows])
        scores = (self.keys @ user_vec + weight * self.grown)[shown]
        if len(shown) > count:
            shown = np.concatenate([shown[:count], shown[np.argpartition(-scores, count)[:count]]])
        return self.rows[shown]


@dataclass(frozen=True, slots=True)
class Near:
    """Of the first `count` rows of an index."""

    lists: Any  # faiss.IndexIVFScalarQuantizer
    count: int
    hot: dict[str | None, Hot]  # by scenario, None for an unknown one

    def pool(self, user_vec: Floats, scenario: str, mask: Bools, count: int, weight: np.float32) -> Ints:
        """Rows from 0, ascending, among which the best `count` of the masked are to be found.

        An item that the lists do not propose is among the best only by its trend; then it is hot.

        Args:
            user_vec: float32 [d].
            mask: bool [N] of the index, which may have more rows than this.
            weight: of the trend in the scores.
        """
        import faiss

        shown = int(np.count_nonzero(mask))
        if shown <= FEW:
            return np.flatnonzero(mask)
        packed = np.packbits(mask[: self.count], bitorder="little")
        selector = faiss.IDSelectorBitmap(packed)
        settings = faiss.SearchParametersIVF(sel=selector, nprobe=max(1, self.lists.nlist // PROBED))
        found = self.lists.search(user_vec[None], 2 * count, params=settings)[1][0]
        found = found[found >= 0]
        tail = self.count + np.flatnonzero(mask[self.count :])
        if len(found) + len(tail) < min(count, shown):
            return np.flatnonzero(mask)
        hot = self.hot.get(scenario, self.hot[None]).best(user_vec, mask, 2 * count, weight)
        proposed = np.sort(np.concatenate([found, tail, hot]))
        return proposed[np.append(True, proposed[1:] != proposed[:-1])]


def with_near(index: Index, above: int) -> Index:
    """The index with what it needs for approximate search, where it has more than `above` rows and none, or an old one.

    Where faiss is not installed, search stays exact, and slower.
    """
    if index.count <= above or "item_key" not in index.stacks:
        return index
    if index.near is not None and index.count - index.near.count <= TAIL:
        return index
    try:
        import faiss
    except ImportError:
        log.warning("faiss is not installed: %d items are searched one by one", index.count)
        return index
    faiss.omp_set_num_threads(1)
    keys = np.ascontiguousarray(index.key[1:])
    count, width = keys.shape
    lists = int(2 * count**0.5)
    trained = keys[np.random.default_rng(0).choice(count, min(count, TRAINED * lists), replace=False)]
    centres = faiss.IndexFlatIP(width)
    built = faiss.IndexIVFScalarQuantizer(
        centres, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    built.cp.niter, built.cp.max_points_per_centroid = ITERATIONS, TRAINED
    built.train(trained)
    built.add(keys)
    scenarios: tuple[str | None, ...] = (None, *index.catalogue.features.within)
    hot = {scenario: _hottest(keys, index.trending_of(scenario or "")) for scenario in scenarios}
    return replace(index, near=Near(built, count, hot))


def _hottest(keys: Floats, grown: Floats) -> Hot:
    rows = np.flatnonzero(grown > 0)
    rows = rows[np.argsort(-grown[rows], kind="stable")][: max(HOT, len(grown) // HOT_PART)]
    return Hot(rows, keys[rows], grown[rows])
