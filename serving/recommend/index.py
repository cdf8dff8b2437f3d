"""A release's view of the catalogue: one row an item and encoding, with the vectors that its item encoder gives.

Rows only grow while a snapshot lives: what a delta brings is encoded and put behind the rest. On a new snapshot what is
encoded as before is copied. Row 0 is the item that nobody knows, row i + 1 the catalogue's row i.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnifeed.errors import UnavailableError
from omnifeed.export.affinity import item_keys
from omnifeed.export.catalogue_state import Bools, Catalogue
from omnifeed.export.encode import EncodeSpec, Floats, Ints, encode_items, unknown_item
from omnifeed.export.rows import Stack
from omnifeed.serving.recommend.eligibility import Eligibility
from omnifeed.serving.recommend.newcomers import Newcomers
from omnifeed.serving.recommend.parts import Arrays, Parts
from omnifeed.serving.recommend.texts import Texts

if TYPE_CHECKING:
    from omnifeed.serving.recommend.nearest import Near

CHUNK = 512  # items a call of the item encoder


class _Rows(Mapping[str, int]):
    """item_id -> row of this index, from 1: of an item that moved to a row which is not encoded yet, the former."""

    def __init__(self, catalogue: Catalogue, count: int) -> None:
        self._catalogue, self._count = catalogue, count

    def __getitem__(self, item_id: str) -> int:
        row = self._catalogue.row(item_id, self._count)
        if not row:
            raise KeyError(item_id)
        return row

    def get(self, item_id: str, default: Any = None) -> Any:
        """The row, or the default."""
        return self._catalogue.row(item_id, self._count) or default

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        return (item for item in self._catalogue.rows if self._catalogue.row(item, self._count))


@dataclass(frozen=True, slots=True)
class Index:
    """The first N rows of a catalogue as one release encodes them; the catalogue may have come further."""

    spec: EncodeSpec
    catalogue: Catalogue
    texts: Texts  # [N + 1]
    stacks: Mapping[str, Stack] = field(default_factory=dict)  # with a network item_dense, keys, item_vec, item_key
    near: Near | None = None  # of a large one
    eligibility: Eligibility = field(default_factory=Eligibility, repr=False, compare=False)
    newcomers: Newcomers = field(default_factory=Newcomers, repr=False, compare=False)

    @property
    def count(self) -> int:
        """N."""
        return len(self.texts) - 1

    @property
    def rows(self) -> Mapping[str, int]:
        """item_id -> row, from 1."""
        return _Rows(self.catalogue, self.count)

    @property
    def plain(self) -> Floats:
        """[N + 1, ITEM_DIMS], `item_dense` of the item encoder's inputs; KeyError without a network."""
        return self.stacks["item_dense"].rows

    @property
    def keys(self) -> Ints:
        """[N + 1, 2], `item_keys`: what a history is matched by; KeyError without a network."""
        return self.stacks["keys"].rows

    @property
    def vec(self) -> Floats:
        """[N + 1, d], raw, for tokens and ranking; KeyError without a network."""
        return self.stacks["item_vec"].rows

    @property
    def key(self) -> Floats:
        """[N + 1, d], unit length, for retrieval; KeyError without a network."""
        return self.stacks["item_key"].rows

    @property
    def complete(self) -> bool:
        """Whether it holds every row that its catalogue has."""
        return self.count == len(self.catalogue)

    def on(self, catalogue: Catalogue) -> Index:
        """The same rows under a later state of their catalogue."""
        return self if catalogue is self.catalogue else replace(self, catalogue=catalogue)

    def shown(self, now: int, locale: str | None) -> Bools:
        """bool [N]: what may be shown now, to a request of this locale."""
        return self.eligibility.mask(self.catalogue, self.count, now, locale)

    def new(self, now: int, enough: int) -> Ints:
        """int64 [n], rows from 0: see `Newcomers.rows`."""
        return self.newcomers.rows(self.catalogue, self.count, now, enough)

    def trending_of(self, scenario: str) -> Floats:
        """float32 [N], see `ItemFeatures.trending`."""
        return self.catalogue.features.trending(scenario)[: self.count]


def build_index(
    spec: EncodeSpec,
    catalogue: Catalogue,
    parts: Parts | None,
    previous: Index | None = None,
    beside: Index | None = None,
) -> Index:
    """Encode what is not encoded yet.

    Args:
        parts: whose item encoder makes the vectors; None for a release without a network.
        previous: of the same release, on a former state or a former snapshot: what it holds is not encoded again.
        beside: of another release; where its text vectors are the same, both have them in common.

    Raises:
        UnavailableError: the item encoder's vectors are not finite.
        Exception: whatever `parts` raises; nothing is kept.
    """
    shared = beside.texts if beside is not None and _same_texts(spec, catalogue, beside) else None
    if previous is not None and previous.catalogue.base == catalogue.base:
        missing = np.arange(previous.count + 1, len(catalogue) + 1)
        if not len(missing):
            return previous.on(catalogue)
        texts, encoded = _encoded(spec, catalogue, parts, missing, shared or previous.texts)
        stacks = {name: stack.extended(encoded[name]) for name, stack in previous.stacks.items()}
        return replace(previous, catalogue=catalogue, texts=texts, stacks=stacks)
    if previous is None:
        every = np.arange(len(catalogue) + 1)
        texts, encoded = _encoded(spec, catalogue, parts, every, shared or Texts(spec.text_dims, len(every)))
        return Index(spec, catalogue, texts, {name: Stack(rows) for name, rows in encoded.items()})
    origin = _origins(catalogue, previous)
    fresh, same = np.flatnonzero(origin < 0), np.flatnonzero(origin >= 0)
    texts, encoded = _encoded(spec, catalogue, parts, fresh, shared or previous.texts.taken(origin[same]))
    if shared is None:
        place = np.empty(len(origin), np.int64)
        place[same], place[fresh] = np.arange(len(same)), len(same) + np.arange(len(fresh))
        texts = texts.taken(place)
    stacks = {}
    for name, stack in previous.stacks.items():
        merged = np.empty((len(origin), stack.rows.shape[1]), stack.rows.dtype)
        merged[same] = stack.rows[origin[same]]
        if len(fresh):
            merged[fresh] = encoded[name]
        stacks[name] = Stack(merged)
    return Index(spec, catalogue, texts, stacks)


def _same_texts(spec: EncodeSpec, catalogue: Catalogue, other: Index) -> bool:
    """Whether the other index holds the text vectors of the whole catalogue under this specification."""
    same = (spec.salt, spec.text_dims) == (other.spec.salt, other.spec.text_dims)
    return same and other.catalogue.base == catalogue.base and other.count == len(catalogue)


def _encoded(
    spec: EncodeSpec, catalogue: Catalogue, parts: Parts | None, rows: Ints, texts: Texts
) -> tuple[Texts, dict[str, npt.NDArray[Any]]]:
    """The text vectors with those of these rows (from 1; 0 is the unknown item) after them, unless they hold all rows
    already, and with a network the other stacks' rows.
    """
    complete, found = len(texts) == len(catalogue) + 1, dict[str, npt.NDArray[Any]]()
    if complete and parts is None:
        return texts, found
    for start in range(0, len(rows), CHUNK):
        inputs = _inputs(spec, catalogue, rows[start : start + CHUNK].tolist())
        texts = texts if complete else texts.extended(inputs["text"])
        if parts is None:
            continue
        plain = {"item_dense": inputs["item_dense"], "keys": item_keys(inputs)}
        for name, matrix in {**plain, **parts.item_encoder(inputs)}.items():
            if not np.isfinite(matrix).all():
                raise UnavailableError("The item encoder gave vectors that are not finite.", "Roll back.")
            if name not in found:
                found[name] = np.empty((len(rows), matrix.shape[1]), matrix.dtype)
            found[name][start : start + len(matrix)] = matrix
    return texts, found


def _inputs(spec: EncodeSpec, catalogue: Catalogue, rows: Sequence[int]) -> Arrays:
    """The item encoder's inputs; row 0 can only be the first."""
    unknown = unknown_item(spec) if rows[0] == 0 else {}
    numbers = [row - 1 for row in rows if row]
    if not numbers:
        return unknown
    known = encode_items(catalogue.columns(numbers), spec)
    return {name: np.concatenate([unknown[name], known[name]]) for name in known} if unknown else known


def _origins(catalogue: Catalogue, previous: Index | None) -> Ints:
    """int64 [N + 1]: the former row of what is encoded as before, -1 of what is new or changed."""
    origin = np.full(len(catalogue) + 1, -1, np.int64)
    if previous is None:
        return origin
    origin[0] = 0
    before = previous.catalogue.encoded[: previous.count]
    if len(before):
        order = np.argsort(before, kind="stable")
        place = np.minimum(np.searchsorted(before, catalogue.encoded, sorter=order), len(before) - 1)
        found = order[place]
        origin[1:] = np.where(before[found] == catalogue.encoded, found + 1, -1)
    return origin
