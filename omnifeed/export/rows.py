"""Rows that only grow, and the way from an item's id to its row.

A catalogue that changes by the minute is a sequence of states, each read by requests that took it and must see it to
their end. So a row is never rewritten: what changes in an item's encoding becomes a row after the last, and a state is
the same memory with a greater length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.export.strings import Strings

SPARE = 32  # one part in so many is kept free behind the rows
LEAST = 1_024  # rows kept free at least


class Stack:
    """A two-dimensional array whose states of different length share one allocation."""

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self._data, self._length = rows, len(rows)
        self._filled = [len(rows)]  # of all states together

    @property
    def rows(self) -> npt.NDArray[Any]:
        """[N, width]; not to be written."""
        return self._data[: self._length]

    def extended(self, more: npt.NDArray[Any]) -> Stack:
        """A state with more rows; this one stays as it is. One thread at a time extends."""
        length = self._length + len(more)
        result = Stack.__new__(Stack)
        result._length = length
        if self._filled[0] == self._length and length <= len(self._data):
            result._data, result._filled = self._data, self._filled
        else:
            result._data = np.empty((length + max(LEAST, length // SPARE), self._data.shape[1]), self._data.dtype)
            result._data[: self._length] = self.rows
            result._filled = [length]
        result._data[self._length : length] = more
        result._filled[0] = length
        return result


def id_hash(item_id: str) -> int:
    """The first 8 bytes of SHA-256."""
    return int.from_bytes(hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")


class ItemRows(Mapping[str, int]):
    """item_id -> the row that holds it now, counted from 1. Twenty bytes an item instead of a dictionary's 200.

    Args:
        ids: of the rows of a snapshot.
        hashes: uint64 [N], `id_hash` of each.
        later: rows that came after the snapshot, and items that moved to one.
    """

    def __init__(self, ids: Strings, hashes: npt.NDArray[np.uint64], later: Mapping[str, int]) -> None:
        order = np.argsort(hashes, kind="stable")
        self._ids, self._sorted, self._rows = ids, hashes[order], order.astype(np.int32)
        bits = max(1, len(hashes).bit_length())
        self._shift = 64 - bits  # of a hash, to the number of its bucket: about one item each
        starts = np.searchsorted(self._sorted >> np.uint64(self._shift), np.arange(2**bits + 1, dtype=np.uint64))
        # Plain integers out of memory views: a numpy scalar costs ten times as much.
        self._starts, self._hashes, self._places = starts.astype(np.int32).data, self._sorted.data, self._rows.data
        self._later = later

    def moved(self, later: Mapping[str, int]) -> ItemRows:
        """The same with these items in rows of their own."""
        result = copy(self)
        result._later = {**self._later, **later}
        return result

    def __getitem__(self, item_id: str) -> int:
        row = self._later.get(item_id) or self._packed(item_id)
        if not row:
            raise KeyError(item_id)
        return row

    def rows_of(self, other: ItemRows, ids: Strings) -> npt.NDArray[np.int64]:
        """int64 [len(ids)]: the newest row here, from 1, of the item in each row there; 0 where there is none.

        Args:
            ids: of the other's rows.
        """
        hashes = np.empty(len(ids), np.uint64)
        hashes[other._rows] = other._sorted
        for row in range(len(other._rows), len(ids)):
            hashes[row] = id_hash(str(ids[row]))
        found = np.zeros(len(ids), np.int64)
        if len(self._sorted):
            place = np.minimum(self._sorted.searchsorted(hashes), len(self._sorted) - 1)
            found = np.where(self._sorted[place] == hashes, self._rows[place].astype(np.int64) + 1, 0)
        moved = {id_hash(item): row for item, row in self._later.items()}
        if moved:
            at = np.flatnonzero(np.isin(hashes, np.array(list(moved), np.uint64)))
            found[at] = [moved[int(hashes[row])] for row in at]
        return found

    def get(self, item_id: str, default: Any = None) -> Any:
        """The row, or the default."""
        return self._later.get(item_id) or self._packed(item_id) or default

    def __len__(self) -> int:
        return len(self._sorted) + sum(not self._packed(item) for item in self._later)

    def __iter__(self) -> Iterator[str]:
        yield from (str(self._ids[row]) for row in range(len(self._sorted)))
        yield from (item for item in self._later if not self._packed(item))

    def _packed(self, item_id: str) -> int:
        """The row in the snapshot, from 1; 0 where it has none."""
        wanted = id_hash(item_id)
        bucket = wanted >> self._shift
        for place in range(self._starts[bucket], self._starts[bucket + 1]):
            if self._hashes[place] == wanted:
                row = self._places[place]
                if self._ids[row] == item_id:
                    return row + 1
        return 0
