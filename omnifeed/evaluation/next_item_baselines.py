"""What next-item prediction must beat: popularity, and items bought together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from omnifeed.evaluation.next_item import Scorer
from omnifeed.export.encode import Ints
from omnifeed.training.sequences import Queries, SequenceData, Split


def popularity(data: SequenceData, split: Split) -> Scorer:
    """How often an item stands in what trains."""
    _, item, _ = _training_cells(data, split)
    return _constant(np.bincount(item, minlength=data.rows))


def latest_popularity(data: SequenceData, split: Split) -> Scorer:
    """How often an item is the latest that trains of a sequence: what stands in for "last days" without dates."""
    some = np.flatnonzero(split.train_stop > 0)
    latest = data.items[data.offsets[some] + split.train_stop[some] - 1]
    return _constant(np.bincount(latest, minlength=data.rows))


def item_knn(data: SequenceData, split: Split, decay: float, shrink: float) -> Scorer:
    """Sum over the prefix of decay^age times the items' cosine (Sarwar et al. 2001), shrunk towards zero.

    Args:
        decay: weight of an item against the one after it.
        shrink: added to the product of the two items' norms.
    """
    sequence, item, _ = _training_cells(data, split)
    matrix = sparse.csr_matrix((np.ones(len(item), np.float32), (sequence, item)), shape=(len(data), data.rows))
    matrix.data = np.minimum(matrix.data, 1)
    norm = np.sqrt(np.asarray(matrix.sum(0)).ravel())
    together: Any = (matrix.T @ matrix).tocoo()
    value = together.data / (norm[together.row] * norm[together.col] + shrink)
    value[together.row == together.col] = 0
    similarity = sparse.csr_matrix((value.astype(np.float32), (together.row, together.col)), shape=together.shape)

    def score(queries: Queries) -> npt.NDArray[np.float32]:
        sizes = queries.stop
        row = np.repeat(np.arange(len(queries)), sizes)
        place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        item = data.items[data.offsets[queries.sequence][row] + place]
        weight = (decay ** (sizes[row] - 1 - place)).astype(np.float32)
        prefix = sparse.csr_matrix((weight, (row, item)), shape=(len(queries), data.rows))
        answer: npt.NDArray[np.float32] = (prefix @ similarity).toarray()
        return answer

    return score


def _constant(scores: Ints) -> Scorer:
    row = scores.astype(np.float32)
    return lambda queries: np.broadcast_to(row, (len(queries), len(row)))


def _training_cells(data: SequenceData, split: Split) -> tuple[Ints, Ints, Ints]:
    """Sequence, item and place of everything that trains."""
    sequence = np.repeat(np.arange(len(data)), data.lengths)
    place = np.arange(len(data.items)) - data.offsets[sequence]
    keep = place < split.train_stop[sequence]
    return sequence[keep], data.items[keep], place[keep]
