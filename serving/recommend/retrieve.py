"""Candidates of one request: several sources, each with a quota of the places, past every filter.

Without a network the first source is what trends in the scenario; with one it is what is nearest to the user's vector,
and what trends is the second. New items that were hardly seen come last in both. A source offers rows, best first, and
`merged` takes them. The filters come before, so that a filtered item can neither be returned nor take a place; the
order of ties is the catalogue's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from omnifeed.export.catalogue_state import Bools
from omnifeed.export.encode import Floats, Ints
from omnifeed.export.trending import retrieval_scores, trending_scores
from omnifeed.serving.recommend.contract import Source
from omnifeed.serving.recommend.index import Index

TRENDING_SHARE = 0.2  # of the candidates' places, kept for what trends in the scenario
NEW_SHARE = 0.1  # and for new items, where there are any
NO_ROWS: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Candidates:
    """K candidates: rows of the index, best first, with what they were retrieved by."""

    rows: Ints  # [K]
    scores: Floats  # [K]
    sources: npt.NDArray[np.object_]  # [K], of Source


@dataclass(frozen=True, slots=True)
class Offer:
    """What one source proposes."""

    source: Source
    rows: Ints  # best first
    quota: int  # places kept for it


def merged(offers: Sequence[Offer], count: int) -> tuple[Ints, npt.NDArray[np.object_]]:
    """At most `count` distinct rows: of each offer in turn its quota of what no other has given, then what is left.

    Returns:
        rows, and the source that gave each.
    """
    rows, sources = np.zeros(0, np.int64), np.zeros(0, np.object_)
    for each, quota in (*((each, each.quota) for each in offers), *((each, count) for each in offers)):
        more = each.rows[~np.isin(each.rows, rows)][: min(quota, count - len(rows))]
        rows = np.concatenate([rows, more])
        sources = np.concatenate([sources, source_of(each.source, len(more))])
    return rows, sources


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


def trending(
    index: Index, scenario: str, query: Floats | None, mask: Bools, count: int, new: Ints = NO_ROWS
) -> Candidates:
    """The items that trend in the scenario, those that match the query first; and new ones.

    Args:
        query: float32 [text_dims], the query's text vector; None without a query.
        new: rows from 0 of new items in an order of chance, which they keep where no query tells them apart.
    """
    match = index.texts.match(query)[1:] if query is not None else None
    scores = trending_scores(index.trending_of(scenario), match)
    new = new[mask[new]]
    if query is not None:
        new = new[np.argsort(-scores[new], kind="stable")]
    quota = int(count * NEW_SHARE) if len(new) else 0
    offers = (Offer(Source.TRENDING, _top(scores, mask, count), count - quota), Offer(Source.NEW, new[:count], quota))
    return _candidates(scores, *merged(offers, count))


def dense(
    index: Index,
    user_vec: Floats,
    scenario: str,
    query: Floats | None,
    mask: Bools,
    count: int,
    weight: np.float32,
    new: Ints = NO_ROWS,
) -> Candidates:
    """The nearest items, in a share of the places the most trending, and in another the nearest of the new.

    In a large catalogue the first two are looked for among the rows that `nearest` proposes.

    Args:
        user_vec: float32 [d].
        weight: of the trend in the scores, from the user encoder.
        new: rows from 0.

    Returns:
        at most `count` candidates, all scored by `retrieval_scores`.
    """
    new = new[mask[new]]
    pool = index.near.pool(user_vec, scenario, mask, count, weight) if index.near is not None else None
    grown, keys = index.trending_of(scenario), index.key[1:]
    match = None
    if pool is not None:
        pool = np.union1d(pool, new)
        grown, keys, mask = grown[pool], keys[pool], np.ones(len(pool), np.bool_)
        new = np.searchsorted(pool, new)
    if query is not None:
        match = index.texts.match(query)[1:] if pool is None else index.texts.match(query, pool + 1)
    scores = retrieval_scores(keys @ user_vec, grown, weight)
    trend = trending_scores(grown, match)
    quotas = int(count * TRENDING_SHARE), int(count * NEW_SHARE) if len(new) else 0
    offers = (
        Offer(Source.DENSE, _top(scores, mask, count), count - sum(quotas)),
        Offer(Source.TRENDING, _top(trend, mask, count), quotas[0]),
        Offer(Source.NEW, new[np.argsort(-scores[new], kind="stable")[:count]], quotas[1]),
    )
    found = _candidates(scores, *merged(offers, count))
    return found if pool is None else replace(found, rows=pool[found.rows - 1] + 1)


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


def _candidates(scores: Floats, rows: Ints, sources: npt.NDArray[np.object_]) -> Candidates:
    """Best first. `rows` count from 0, the candidates' from 1."""
    order = np.argsort(-scores[rows], kind="stable")
    return Candidates(rows[order] + 1, scores[rows[order]], sources[order])


def _top(scores: Floats, mask: Bools, count: int) -> npt.NDArray[np.int64]:
    """Rows from 0 of the `count` best scores among the masked, best first."""
    rows = np.flatnonzero(mask)
    if len(rows) > 4 * count:
        kept = np.argpartition(-scores[rows], count)[: count + 1]
        threshold = scores[rows[kept]].min()
        rows = rows[scores[rows] >= threshold]
    return rows[np.argsort(-scores[rows], kind="stable")[:count]].astype(np.int64)
