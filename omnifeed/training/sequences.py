"""Sequences of items without times: what next-item prediction learns from and is asked.

One line a user (`user item item ...`, leave-one-out) or one line a session (`item item ...`, whole sessions held
out). Items become rows in an order that says nothing (a digest of their name), so no rank can lean on a file's
numbering.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omnifeed.datasets.amazon import read_attributes, read_sequences
from omnifeed.errors import InputError
from omnifeed.export.encode import Ints

HELD_OUT = 0.1  # share of the sessions that validate, and the same again that test
MIN_ATTRIBUTE_ITEMS = 2  # an attribute of one item says no more than its id


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attribute rows of the items: item r has `values[offsets[r]:offsets[r + 1]]`; row 0, the unknown item, none."""

    values: Ints
    offsets: Ints  # [items + 2]
    count: int  # distinct attributes, at least 1


@dataclass(frozen=True, slots=True)
class SequenceData:
    """S sequences over a catalogue whose rows are 1..len(names); row 0 is the unknown item."""

    names: tuple[str, ...]
    items: Ints  # rows, all sequences one after the other
    offsets: Ints  # [S + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        """Rows of an item table: the catalogue and the unknown item."""
        return len(self.names) + 1

    @property
    def lengths(self) -> Ints:
        """Items of each sequence, [S]."""
        sizes: Ints = np.diff(self.offsets)
        return sizes

    def prefixes(self, sequence: Ints, stop: Ints, length: int) -> Ints:
        """The last `length` of the first `stop` items of these sequences, left-aligned, 0 beyond: [Q, L]."""
        start = np.maximum(stop - length, 0)
        place = start[:, None] + np.arange(max(int((stop - start).max(initial=0)), 1))
        inside = place < stop[:, None]
        index = np.where(inside, self.offsets[sequence][:, None] + place, 0)
        history: Ints = np.where(inside, self.items[index], 0)
        return history


@dataclass(frozen=True, slots=True)
class Queries:
    """Q questions: after the first `stop` items of a sequence, which is the next?"""

    sequence: Ints
    stop: Ints

    def __len__(self) -> int:
        return len(self.sequence)

    def targets(self, data: SequenceData) -> Ints:
        """The right answers, item rows [Q]."""
        wanted: Ints = data.items[data.offsets[self.sequence] + self.stop]
        return wanted


@dataclass(frozen=True, slots=True)
class Split:
    """Which items train, and what is asked. No question's target is ever among the items that train."""

    train_stop: Ints  # [S], the first so many items of each sequence train
    valid: Queries
    test: Queries


def load_sequences(path: Path, *, sessions: bool = False) -> SequenceData:
    """Read a file of sequences.

    Args:
        sessions: lines hold items alone, not a user before them.

    Raises:
        InputError: the file is missing, empty, has a malformed line or the same user twice.
    """
    raw = read_sequences(path, users=not sessions)
    names = sorted(
        {item for _, sequence in raw for item in sequence},
        key=lambda item: hashlib.sha256(item.encode()).digest(),
    )
    row = {name: index for index, name in enumerate(names, start=1)}
    lengths = [len(sequence) for _, sequence in raw]
    return SequenceData(
        names=tuple(names),
        items=np.array([row[item] for _, sequence in raw for item in sequence], np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def load_attributes(path: Path, data: SequenceData) -> Attributes:
    """Attributes of the items of `data`; an item that the file does not know has none, an item of no sequence is left
    out.

    Raises:
        InputError: the file is missing or malformed, or describes none of the items.
    """
    known: Mapping[str, Sequence[str]] = read_attributes(path)
    bags = [list(dict.fromkeys(known.get(name, ()))) for name in data.names]
    frequency = Counter(value for bag in bags for value in bag)
    if not frequency:
        raise InputError(
            f"{path} describes none of the {len(data.names)} items of the sequences.",
            "Give the attributes of the same items, or train with ids alone.",
        )
    kept = sorted(value for value, count in frequency.items() if count >= MIN_ATTRIBUTE_ITEMS)
    row = {value: index for index, value in enumerate(kept)}
    rows = [[row[value] for value in bag if value in row] for bag in bags]
    return Attributes(
        values=np.array([value for bag in rows for value in bag], np.int64),
        offsets=np.concatenate([[0, 0], np.cumsum([len(bag) for bag in rows])]).astype(np.int64),
        count=max(len(kept), 1),
    )


def leave_one_out(data: SequenceData) -> Split:
    """The last item of each sequence tests, the one before validates, the rest trains.

    A sequence of fewer than three items only trains.

    Raises:
        InputError: no sequence has three items.
    """
    asked = np.flatnonzero(data.lengths >= 3)
    if not len(asked):
        raise InputError("No sequence has three items.", "Leave-one-out needs one each to train, validate and test.")
    last = data.lengths[asked] - 1
    train_stop = data.lengths.copy()
    train_stop[asked] -= 2
    return Split(train_stop, valid=Queries(asked, last - 1), test=Queries(asked, last))


def hold_out_sessions(data: SequenceData, seed: int) -> Split:
    """A tenth of the sessions validates, a tenth tests, at every position after the first; the rest trains.

    Raises:
        InputError: there are too few sessions of two items.
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(data.lengths >= 2))
    size = int(len(order) * HELD_OUT)
    if not size:
        raise InputError(
            f"There are {len(order)} sessions of two items or more.", f"Give at least {round(1 / HELD_OUT)} of them."
        )
    train_stop = data.lengths.copy()
    train_stop[order[: 2 * size]] = 0
    return Split(train_stop, valid=_positions(data, order[:size]), test=_positions(data, order[size : 2 * size]))


def with_validation(split: Split) -> Split:
    """The same questions of the test, and the validation's targets train as well."""
    train_stop = split.train_stop.copy()
    np.maximum.at(train_stop, split.valid.sequence, split.valid.stop + 1)
    return Split(train_stop, split.valid, split.test)


def without_last(data: SequenceData) -> SequenceData:
    """The same catalogue and sequences, each that leave-one-out would ask about without its last item."""
    shorter = data.lengths - (data.lengths >= 3)
    place = np.arange(len(data.items)) - np.repeat(data.offsets[:-1], data.lengths)
    kept = place < np.repeat(shorter, data.lengths)
    return SequenceData(data.names, data.items[kept], np.concatenate([[0], shorter.cumsum()]))


def swap_neighbours(data: SequenceData, seed: int) -> SequenceData:
    """Every second pair of neighbours changes places with probability one half, as if they were of one day.

    The files hold no dates, so which neighbours really are of one day is not known: this is a harder case.
    """
    rng = np.random.default_rng(seed)
    items = data.items.copy()
    for start, stop in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        first = start + rng.integers(2)
        pairs = np.arange(first, stop - 1, 2)
        chosen = pairs[rng.random(len(pairs)) < 0.5]
        items[chosen], items[chosen + 1] = items[chosen + 1], items[chosen]
    return SequenceData(data.names, items, data.offsets)


def _positions(data: SequenceData, sequence: Ints) -> Queries:
    count = data.lengths[sequence] - 1
    stop = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + 1
    return Queries(np.repeat(sequence, count), stop)
