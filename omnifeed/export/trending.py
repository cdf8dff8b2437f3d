"""How trend enters a score: what release 0 sorts by, and what it adds to a network's retrieval. numpy only.

One formula each, for the server and for the offline comparison.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Cosine of query and title from which an item counts as an answer to the query.
MATCH_THRESHOLD = 0.2


def trending_scores(
    trending: npt.NDArray[np.float32], match: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float32]:
    """Score items for one request: by trend, and under a query the matching ones first, the better matches higher.

    Args:
        trending: float32 [N], the raw item_scenario_trending feature of the request's scenario.
        match: float32 [N], cosine of the query's and the title's text vectors; None without a query.

    Returns:
        float32 [N], all in [0, 1) without a query; with one, an item that matches (cosine of at least
        MATCH_THRESHOLD) scores 1 + (cosine + trend) / 2 and so stands above every item that does not.
    """
    grown = np.log1p(np.maximum(trending, 0)).astype(np.float32)
    trend = grown / (1 + grown)
    if match is None:
        return trend
    matching = 1 + (np.clip(match, 0, 1) + trend) / 2
    return np.where(match >= MATCH_THRESHOLD, matching, trend).astype(np.float32)


def retrieval_scores(
    cosine: npt.NDArray[np.float32], grown: npt.NDArray[np.float32], weight: npt.NDArray[np.float32] | np.float32
) -> npt.NDArray[np.float32]:
    """What a network retrieves by: how near an item is to the request, plus how much it trends in the scenario.

    How much, training fits for every scenario (`omnifeed.training.trend`; docs/decisions/0003).

    Args:
        cosine: float32 [..., N]. grown: float32, broadcastable: log(1 + item_scenario_trending).
        weight: float32, broadcastable: the user encoder's `trend_weight`.
    """
    return cosine + weight * grown
