"""What a user did before with this very item, its creator, its category, and in this scenario.

An attention over the history can learn these counts, but needs far more rows than a count does. They are computed for
each request from the history that the feature store holds, so they are as fresh as it is, and by one function for
training and serving. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.export.encode import ACTIONS, DAY_US, Floats, Ints
from omnifeed.features.spec import AFFINITY_FEATURES

KEYS = ("item", "author", "category")
RATE_WEIGHT = 5.0  # events, of a user's own rates
PRIOR_RATE = 0.3
LIFT_WEIGHT = 3.0  # events, of what is above or below the user's own rate
RECENT = 10  # events
#: Whether each action token, 0 for padding, is a click, and more than a click; a rejection is neither.
CLICKED = np.array([0, *(name not in ("none", "reject") for name in ACTIONS)], np.float32)
STAYED = np.array([0, *(name not in ("none", "click", "reject") for name in ACTIONS)], np.float32)


def item_keys(encoded: Mapping[str, npt.NDArray[Any]]) -> Ints:
    """The keys of N items that history and candidates are matched by, from the item encoder's inputs.

    Returns:
        int64 [N, 2]: the creator's bucket and the bucket of the deepest category; 0 is unknown and matches nothing.
    """
    levels = encoded["category_bucket"]
    deepest = np.where(levels > 0, np.arange(1, levels.shape[1] + 1), 0).argmax(axis=1)
    return np.stack([encoded["author_bucket"], levels[np.arange(len(levels)), deepest]], axis=1).astype(np.int64)


def affinity(keys: Ints, hist: Mapping[str, npt.NDArray[Any]], rows: Ints, scenario: Ints, now_us: Ints) -> Floats:
    """The affinity features of K candidates in each of B requests.

    A lift is (outcomes - the user's own rate * events) / (events + LIFT_WEIGHT): 0 without events. Clicks are counted
    over events of known scenarios, since logs of other surfaces may not record them; stays over all.

    Args:
        keys: int64 [N + 1, 2], `item_keys` of the index; row 0 is the unknown item.
        hist: hist_row, hist_action, hist_scenario, hist_ts int64 [B, L], hist_mask bool [B, L], as `encode_request`
            gives them: latest last, padded on the right.
        rows: int64 [B, K], the candidates' rows of the index.
        scenario: int64 [B]. now_us: int64 [B].

    Returns:
        float32 [B, K, len(AFFINITY_FEATURES)].
    """
    mask = hist["hist_mask"]
    known = mask & (hist["hist_scenario"] > 0)
    clicked, stayed = CLICKED[hist["hist_action"]] * known, STAYED[hist["hist_action"]] * mask
    counted = np.stack([mask.astype(np.float32), known.astype(np.float32), clicked, stayed], axis=2)
    age = np.maximum(now_us[:, None] - hist["hist_ts"], 0) / DAY_US
    total = counted.sum(axis=1, dtype=np.float64)
    click_rate = (total[:, 2] + PRIOR_RATE * RATE_WEIGHT) / (total[:, 1] + RATE_WEIGHT)
    stay_rate = (total[:, 3] + PRIOR_RATE * RATE_WEIGHT) / (total[:, 0] + RATE_WEIGHT)

    def lifts(sums: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        views, seen, clicks, stays = np.moveaxis(sums.astype(np.float64), -1, 0)
        shape = (-1, *[1] * (views.ndim - 1))
        return [
            np.log1p(views),
            (clicks - click_rate.reshape(shape) * seen) / (seen + LIFT_WEIGHT),
            (stays - stay_rate.reshape(shape) * views) / (views + LIFT_WEIGHT),
        ]

    columns: list[npt.NDArray[Any]] = []
    of_history, of_candidate = keys[hist["hist_row"]], keys[rows]
    for key in range(len(KEYS)):
        theirs = hist["hist_row"] if key == 0 else of_history[..., key - 1]
        mine = rows if key == 0 else of_candidate[..., key - 1]
        equal = (mine[:, :, None] == theirs[:, None, :]) & ((theirs > 0) & mask)[:, None, :]
        columns += lifts(equal.astype(np.float32) @ counted)
        latest = equal.shape[2] - 1 - equal[..., ::-1].argmax(axis=2)
        since = np.take_along_axis(age, latest, axis=1)
        columns.append(np.where(equal.any(axis=2), 1 / (1 + since), 0.0))
    here = (hist["hist_scenario"] == scenario[:, None]) & known
    end = mask.sum(axis=1)
    recent = mask & (np.arange(mask.shape[1]) >= (end - RECENT)[:, None])
    of_request = [
        *lifts((counted * here[..., None]).sum(axis=1)),
        np.log1p(total[:, 0]),
        click_rate,
        stay_rate,
        lifts((counted * recent[..., None]).sum(axis=1))[2],
    ]
    columns += [np.broadcast_to(column[:, None], rows.shape) for column in of_request]
    result = np.stack(columns, axis=2).astype(np.float32)
    assert result.shape[2] == len(AFFINITY_FEATURES)
    return result
