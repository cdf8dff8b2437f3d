"""Windows of the packed histories, padded, and what is counted over them for every impression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnifeed.export.affinity import affinity, item_keys
from omnifeed.export.encode import Floats, Ints
from omnifeed.features.spec import AFFINITY_FEATURES

if TYPE_CHECKING:
    from omnifeed.training.dataset import Histories, Int32s, Items, Requests

CELLS = 2_000_000  # of one block of requests x candidates x history


def windows(histories: Histories, user: npt.NDArray[Any], start: Ints, stop: Ints) -> dict[str, npt.NDArray[Any]]:
    """Right-padded windows of histories, as `encode_request` lays them out.

    Returns:
        hist_row, hist_action, hist_scenario, hist_gap, hist_ts int64 [B, L], hist_mask bool [B, L]; L is at least 1.
    """
    size = stop - start
    position = np.arange(max(int(size.max(initial=0)), 1))
    mask = position < size[:, None]
    index = np.where(mask, (histories.offsets[user] + start)[:, None] + position, 0)
    result: dict[str, npt.NDArray[Any]] = {"hist_mask": mask}
    for name, values in (
        ("hist_row", histories.item),
        ("hist_action", histories.action),
        ("hist_scenario", histories.scenario),
        ("hist_gap", histories.gap),
        ("hist_ts", histories.ts),
    ):
        result[name] = np.where(mask, values[index] if len(values) else 0, 0).astype(np.int64)
    result["hist_gap"][:, 0] = 0
    return result


def affinities(items: Items, histories: Histories, requests: Requests, item: Int32s, length: int) -> Floats:
    """`omnifeed.export.affinity.affinity` of all impressions, float32 [N, len(AFFINITY_FEATURES)].

    Args:
        item: row of each impression's item.
        length: events of a history that a request may read.
    """
    keys = item_keys(items.inputs)
    result = np.empty((len(item), len(AFFINITY_FEATURES)), np.float32)
    size = np.diff(requests.first)
    prefix = requests.prefix
    order = np.lexsort((size, np.minimum(prefix, length)))
    begin = 0
    while begin < len(order):
        widest = max(int(min(prefix[order[begin]], length)), 1) * max(int(size[order[begin]]), 1)
        part = order[begin : begin + max(CELLS // (2 * widest), 1)]
        part = part[: _fitting(np.minimum(prefix[part], length), size[part])]
        begin += len(part)
        position = np.arange(int(size[part].max(initial=0)))
        shown = position < size[part][:, None]
        impression = np.where(shown, requests.first[part][:, None] + position, 0)
        hist = windows(histories, requests.user[part], np.maximum(prefix[part] - length, 0), prefix[part])
        rows = np.where(shown, item[impression], 0).astype(np.int64) if len(item) else shown.astype(np.int64)
        found = affinity(keys, hist, rows, requests.scenario[part], requests.ts[part])
        result[impression[shown]] = found[shown]
    return result


def _fitting(length: Ints, size: Ints) -> int:
    """How many of these requests, the first always, make a block of at most CELLS cells."""
    cells = np.maximum.accumulate(length.clip(min=1)) * np.maximum.accumulate(size.clip(min=1))
    over = np.flatnonzero(cells * np.arange(1, len(cells) + 1) > CELLS)
    return max(int(over[0]), 1) if len(over) else len(cells)
