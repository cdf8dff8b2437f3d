"""Candidates of one request: the nearest items to the user's vector, joined by what trends, past every filter.

The filters come first, so that a filtered item can neither be returned nor take a place; the order of ties is the
catalogue's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omnifeed.export.catalogue_state import Bools
from omnifeed.export.encode import Floats, Ints
from omnifeed.export.trending import retrieval_scores, trending_scores
from omnifeed.serving.recommend.contract import Source
from omnifeed.serving.recommend.index import Index

TRENDING_SHARE = 0.2  # of the candidates' places, kept for what trends in the scenario


@dataclass(frozen=True, slots=True)
class Candidates:
    """K candidates: rows of the index, best first, with what they were retrieved by."""

    rows: Ints  # [K]
    scores: Floats  # [K]
    sources: npt.NDArray[np.object_]  # [K], of Source


def source_of(source: Source, count: int) -> npt.NDArray[np.object_]:
    """The same source `count` times."""
    return np.full(count, source, np.object_)


def allowed(index: Index, now: int, exclude: Iterable[str], locale: str | None = None) -> Bools:
    """bool [N]: the index's items that may be shown now, to a request of this locale, and that are not excluded."""
    mask = index.shown(now, locale)
    rows = index.rows
    for item in exclude:
        row = rows.get(item, 0)
        if row:
            mask[row - 1] = False
    return mask


def trending(index: Index, scenario: str, query: Floats | None, mask: Bools, count: int) -> Candidates:
    """The items that trend in the scenario, those that match the query first.

    Args:
        query: float32 [text_dims], the query's text vector; None without a query.
    """
    match = index.texts.match(query)[1:] if query is not None else None
    scores = trending_scores(index.trending_of(scenario), match)
    rows = _top(scores, mask, count)
    return Candidates(rows + 1, scores[rows], source_of(Source.TRENDING, len(rows)))


def dense(
    index: Index, user_vec: Floats, scenario: str, query: Floats | None, mask: Bools, count: int, weight: np.float32
) -> Candidates:
    """The nearest items, and the most trending in a share of the places.

    In a large catalogue both are looked for among the rows that `nearest` proposes.

    Args:
        user_vec: float32 [d].
        weight: of the trend in the scores, from the user encoder.

    Returns:
        at most `count` candidates, all scored by `retrieval_scores`.
    """
    pool = index.near.pool(user_vec, scenario, mask, count, weight) if index.near is not None else None
    grown, keys = index.trending_of(scenario), index.key[1:]
    match = None
    if pool is not None:
        grown, keys, mask = grown[pool], keys[pool], np.ones(len(pool), np.bool_)
    if query is not None:
        match = index.texts.match(query)[1:] if pool is None else index.texts.match(query, pool + 1)
    scores = retrieval_scores(keys @ user_vec, grown, weight)
    nearest = _top(scores, mask, count)
    quota = int(count * TRENDING_SHARE)
    head = nearest[: count - quota]
    trend = _top(trending_scores(grown, match), mask, count)
    joined = trend[~np.isin(trend, head)][:quota]
    rest = nearest[count - quota :]
    rest = rest[~np.isin(rest, joined)][: count - len(head) - len(joined)]
    rows = np.concatenate([head, joined, rest])
    order = np.argsort(-scores[rows], kind="stable")
    sources = source_of(Source.DENSE, len(rows))
    sources[len(head) : len(head) + len(joined)] = Source.TRENDING
    chosen = rows[order] if pool is None else pool[rows[order]]
    return Candidates(chosen + 1, scores[rows[order]], sources[order])


def own(index: Index, items: Sequence[str], mask: Bools) -> Ints:
    """Rows of the caller's candidates that may be shown, each once, in the caller's order."""
    known = index.rows
    rows = [known.get(item, 0) for item in dict.fromkeys(items)]
    return np.array([row for row in rows if row and mask[row - 1]], np.int64)


def own_dense(index: Index, rows: Ints, user_vec: Floats, scenario: str, weight: np.float32) -> Candidates:
    """The caller's candidates, scored as `dense` scores."""
    grown = index.trending_of(scenario)[rows - 1]
    scores = retrieval_scores(index.key[rows] @ user_vec, grown, weight)
    return Candidates(rows, scores, source_of(Source.CANDIDATE, len(rows)))


def own_trending(index: Index, rows: Ints, scenario: str, query: Floats | None) -> Floats:
    """float32 [K]: trending scores of the caller's candidates."""
    match = index.texts.match(query, rows) if query is not None else None
    return trending_scores(index.trending_of(scenario)[rows - 1], match)


def _top(scores: Floats, mask: Bools, count: int) -> npt.NDArray[np.int64]:
    """Rows from 0 of the `count` best scores among the masked, best first."""
    rows = np.flatnonzero(mask)
    if len(rows) > 4 * count:
        kept = np.argpartition(-scores[rows], count)[: count + 1]
        threshold = scores[rows[kept]].min()
        rows = rows[scores[rows] >= threshold]
    return rows[np.argsort(-scores[rows], kind="stable")[:count]].astype(np.int64)
