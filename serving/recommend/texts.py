"""The text vectors of a catalogue: a signed byte a dimension, dimension by dimension.

A text vector is a row of small integers divided by its length (`omnifeed.export.encode.text_vector`), so bytes hold it
without loss in a quarter of the memory. And a query has grams in a few of the dimensions only: with all rows of one
dimension side by side, a search reads those few instead of the whole matrix.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omnifeed.export.encode import Floats, Ints
from omnifeed.export.rows import LEAST, SPARE

LARGEST = 127  # of a signed byte
FACTORS = (1, 2, 3, 4, 5, 6, 7)  # the least integer of a row is seldom another
BLOCK = 16_384  # rows whose products stay in the processor's cache

Bytes = npt.NDArray[np.int8]


class Texts:
    """N rows; states of different length share one allocation. One thread at a time extends.

    Args:
        dims: of a vector.
        room: rows to allocate at once.
    """

    def __init__(self, dims: int, room: int = 0) -> None:
        self._counts: Bytes = np.empty((dims, room), np.int8)
        self._lengths = np.empty(room, np.float32)  # a row is its counts times this
        self._rows = 0
        self._filled = [0]  # of all states together

    def __len__(self) -> int:
        return self._rows

    def extended(self, vectors: Floats) -> Texts:
        """These rows and more after them.

        Args:
            vectors: float32 [M, dims], as `text_vector` makes them. What is no row of integers divided by its length,
                or repeats a gram more than 127 times, is rounded to 127 steps.
        """
        return self._with(*_packed(vectors))

    def taken(self, rows: Ints) -> Texts:
        """These of the rows, in this order, as a first state of their own."""
        return Texts(len(self._counts), len(rows))._with(self._counts[:, rows], self._lengths[rows])

    def dense(self, rows: Ints) -> Floats:
        """float32 [len(rows), dims]."""
        vectors: Floats = self._counts[:, rows].T * self._lengths[rows, None]
        return vectors

    def match(self, query: Floats, rows: Ints | None = None) -> Floats:
        """Cosine of a query with every row, or with some.

        Args:
            query: float32 [dims], of unit length.

        Returns:
            float32 [N] or [len(rows)].
        """
        columns = np.flatnonzero(query)
        weights = query[columns]
        if rows is not None:
            some: Floats = weights @ self._counts[columns[:, None], rows].astype(np.float32)
            return some * self._lengths[rows]
        result = np.empty(self._rows, np.float32)
        for start in range(0, self._rows, BLOCK):
            block = self._counts[columns, start : min(start + BLOCK, self._rows)].astype(np.float32)
            result[start : start + BLOCK] = weights @ block
        result *= self._lengths[: self._rows]
        return result

    def _with(self, counts: Bytes, lengths: Floats) -> Texts:
        result = Texts(len(counts))
        result._rows = self._rows + len(lengths)
        if self._filled[0] == self._rows and result._rows <= len(self._lengths):
            result._counts, result._lengths, result._filled = self._counts, self._lengths, self._filled
        else:
            room = result._rows + max(LEAST, result._rows // SPARE)
            result._counts, result._lengths = np.empty((len(counts), room), np.int8), np.empty(room, np.float32)
            result._counts[:, : self._rows] = self._counts[:, : self._rows]
            result._lengths[: self._rows] = self._lengths[: self._rows]
        result._counts[:, self._rows : result._rows] = counts
        result._lengths[self._rows : result._rows] = lengths
        result._filled[0] = result._rows
        return result


def _packed(vectors: Floats) -> tuple[Bytes, Floats]:
    """int8 [dims, M] and float32 [M] whose product is the vectors."""
    sizes = np.abs(vectors)
    largest = sizes.max(axis=1, initial=0, keepdims=True)
    counts = np.rint(vectors * (LARGEST / np.where(largest > 0, largest, 1)))
    least = np.where(sizes > 0, sizes, np.inf).min(axis=1, initial=np.inf)
    left = np.flatnonzero(np.isfinite(least))
    for factor in FACTORS:
        scaled = vectors[left] * (factor / least[left, None])
        whole = (np.abs(scaled - np.rint(scaled)) < 0.01).all(axis=1) & (np.abs(scaled) < LARGEST + 0.5).all(axis=1)
        counts[left[whole]] = np.rint(scaled[whole])
        left = left[~whole]
        if not len(left):
            break
    squares = (counts * counts).sum(axis=1)
    lengths = (counts * vectors).sum(axis=1) / np.where(squares > 0, squares, 1)
    return counts.astype(np.int8).T, lengths.astype(np.float32)
