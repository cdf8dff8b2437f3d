"""The new items that nobody has seen often enough yet: who may stand in the places that are kept for them.

New is what was created within the seven days that the catalogue's count of views covers, so the count is all that there
is. It is as fresh as the aggregates: with daily ones an item may be shown more often than enough on the day on which it
reaches it, and a livestream of today counts as unseen until it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnifeed.export.catalogue_state import Bools, Catalogue
from omnifeed.export.encode import DAY_US, Ints

NEW_US = 7 * DAY_US  # what item_views_7d covers
MOST = 2_000  # remembered at most: those seen least, the newest first
HOUR_US = DAY_US // 24


@dataclass(frozen=True, slots=True)
class _Held:
    catalogue: Catalogue
    count: int
    hour: int
    rows: Ints


def newcomers(catalogue: Catalogue, rows: Ints | slice, now: int, enough: int) -> Bools:
    """bool [len(rows)]: created in the last seven days, and seen less often than enough.

    Args:
        rows: of the catalogue, from 0.
        now: UTC microseconds.
    """
    unseen = catalogue.views_7d[rows] < np.float32(np.log1p(enough))
    return np.asarray(unseen & (catalogue.created_ts[rows] > now - NEW_US), np.bool_)


class Newcomers:
    """Rows of one index over the states of its catalogue, looked for again once an hour; for one thread at a time."""

    def __init__(self) -> None:
        self._held: _Held | None = None

    def rows(self, catalogue: Catalogue, count: int, now: int, enough: int) -> Ints:
        """int64 [n], rows from 0 of at most MOST newcomers among the first `count`, in no order that matters.

        Not all of them may be shown: see `Index.shown`.
        """
        held, hour = self._held, now // HOUR_US
        if held is None or held.catalogue is not catalogue or (held.count, held.hour) != (count, hour):
            found = np.flatnonzero(newcomers(catalogue, slice(count), hour * HOUR_US, enough))
            if len(found) > MOST:
                order = np.lexsort((-catalogue.created_ts[found], catalogue.views_7d[found]))
                found = found[order[:MOST]]
            held = self._held = _Held(catalogue, count, hour, found)
        return held.rows
