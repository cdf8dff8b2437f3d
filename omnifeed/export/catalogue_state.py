"""The catalogue in memory: what may be shown, and what an index or a ranker reads of it. numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.export.delta import NUMBER_FIELDS, POLICIES, TEXT_FIELDS, UNKNOWN
from omnifeed.export.encode import Floats, Ints
from omnifeed.export.item_features import VIEWS_7D, ItemFeatures
from omnifeed.export.rows import ItemRows
from omnifeed.export.strings import Strings

Bools = npt.NDArray[np.bool_]

TEXT_COLUMNS = ("item_id", "kind", *TEXT_FIELDS)
CURRENT = 2**62  # successor of a row that holds its item now


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """N rows as of one moment, one an item and encoding. Times are UTC microseconds, UNKNOWN where null.

    A row's texts and numbers never change: an item whose price does gets a further row, and the former one names it as
    its successor. So an index of the first n rows serves on while the rest is being encoded, and everything that
    decides whether an item may be shown, its kind and creator included, is as fresh in its old row as in its new.
    """

    version: str
    base: str  # the snapshot's version
    sequence: int  # of the last delta that is in it
    now: int  # the moment that the snapshot's aggregates describe
    rows: ItemRows  # item_id -> newest row, from 1
    texts: dict[str, Strings]  # by TEXT_COLUMNS
    price: npt.NDArray[np.float64]  # [N], NaN where not known
    duration_s: npt.NDArray[np.float64]  # [N], of a recording, NaN where not known
    encoded: npt.NDArray[np.uint64]  # [N], digest of what an item encoder reads
    successor: Ints  # [N], the row from 1 that the item moved to, CURRENT where it has not
    former: Ints  # [N], the row from 1 that it moved from, 0 where it has not
    created_ts: Ints  # [N]
    live_from: Ints  # [N]
    live_until: Ints  # [N]
    policy: npt.NDArray[np.int8]  # [N], index in POLICIES
    stock: Ints  # [N], UNKNOWN where not tracked
    livestream: Bools  # [N]
    author: npt.NDArray[np.int32]  # [N], index in authors, -1 where there is none
    authors: Mapping[str, int]
    blocked: Bools  # [N], the author is blocked
    locale: npt.NDArray[np.int32]  # [N], index in locales
    locales: tuple[tuple[str, ...], ...]  # language tags; empty: for everybody, which is the first
    blocked_authors: frozenset[str]
    largest: frozenset[int]  # authors who together had half of the views before the snapshot; see `largest_authors`
    dropped_items: frozenset[str]  # by a delta: stays until a delta lifts it, whatever tables of items say
    features: ItemFeatures

    def __len__(self) -> int:
        return len(self.created_ts)

    def row(self, item_id: str, rows: int) -> int:
        """The row from 1 that holds the item within the first `rows`; 0 where there is none."""
        row: int = self.rows.get(item_id, 0)
        while row > rows:
            row = int(self.former[row - 1])
        return row

    def on_air(self, now: int, rows: Ints | slice = slice(None)) -> Bools:
        """bool [N] or [len(rows)]: a livestream that has started and has not ended; without a start it has not."""
        since, until = self.live_from[rows], self.live_until[rows]
        started = self.livestream[rows] & (since != UNKNOWN) & (since <= now)
        live: Bools = started & ((until == UNKNOWN) | (now < until))
        return live

    def eligible(self, now: int) -> Bools:
        """bool [N]: what may be recommended now.

        Not dropped by policy, author not blocked, in stock where stock is tracked, created by now, on air where it is a
        livestream, and the row that holds its item.
        """
        return self.eligible_within(len(self), now)

    def eligible_within(self, rows: int, now: int, locale: str | None = None) -> Bools:
        """bool [rows]: the same for who knows the first rows only, and for a request of this locale.

        An item that is bound to language tags is for requests of one of them, or of a region of one of them ("de" is
        for "de-AT" as well); a request without a locale sees everything.
        """
        first = slice(rows)
        allowed = (self.policy[first] != POLICIES.index("DROP")) & ~self.blocked[first]
        allowed &= (self.created_ts[first] <= now) & (self.successor[first] > rows)
        stock = self.stock[first]
        shown: Bools = (
            allowed & ((stock == UNKNOWN) | (stock > 0)) & (~self.livestream[first] | self.on_air(now, first))
        )
        if locale is not None and len(self.locales) > 1:
            tags = {locale, locale.split("-")[0]}
            shown &= np.array([not bound or bool(tags & set(bound)) for bound in self.locales])[self.locale[first]]
        return shown

    @property
    def views_7d(self) -> Floats:
        """float32 [N], log(1 + x) of how often each item was seen in the seven days before the aggregates' moment."""
        return self.features.shared.rows[:, VIEWS_7D]

    def of_tail(self, rows: Ints) -> list[bool | None]:
        """Whether each row's creator is none of the largest; None where it has none."""
        return [None if one < 0 else one not in self.largest for one in self.author[rows].tolist()]

    def columns(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The columns that `encode.encode_items` reads, of these rows."""
        texts: dict[str, list[Any]] = {name: [column[row] for row in rows] for name, column in self.texts.items()}
        numbers = {name: [float(value) for value in getattr(self, name)[rows]] for name in NUMBER_FIELDS}
        return {**texts, **numbers}


def largest_authors(author: npt.NDArray[np.int32], views: npt.NDArray[np.float64]) -> frozenset[int]:
    """The fewest authors who together have half of the views.

    Args:
        author: [N], index of the item's author, -1 where there is none. views: [N].
    """
    known = author >= 0
    if not known.any():
        return frozenset()
    sums = np.bincount(author[known], weights=views[known])
    order = np.argsort(-sums, kind="stable")
    before = np.cumsum(sums[order]) - sums[order]
    return frozenset(order[before < sums.sum() / 2].tolist())


def encoded_digest(item_id: str, kind: str, texts: Sequence[str | None], numbers: Sequence[float]) -> int:
    """The first 8 bytes of SHA-256 of what an item encoder reads of an item: in the order of TEXT_FIELDS and
    NUMBER_FIELDS.
    """
    raw = repr((item_id, kind, *texts, *numbers)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big")
