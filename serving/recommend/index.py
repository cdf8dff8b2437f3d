"""A release's view of today's catalogue: one row an item, with the vectors that its item encoder gives.

Rebuilt when the catalogue changes, and then only for items that are new or whose encoded columns changed; the rest is
copied. Row 0 is the item that nobody knows, row i + 1 the catalogue's item i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.errors import UnavailableError
from omnifeed.export.affinity import item_keys
from omnifeed.export.catalogue import Catalogue
from omnifeed.export.encode import EncodeSpec, Floats, Ints, encode_items, unknown_item
from omnifeed.serving.recommend.parts import Parts

CHUNK = 512  # items a call of the item encoder


@dataclass(frozen=True, slots=True)
class Index:
    """N items of one catalogue as one release encodes them."""

    spec: EncodeSpec
    catalogue: Catalogue
    rows: Mapping[str, int]  # item_id -> row, from 1
    text: Floats  # [N + 1, text_dims]
    plain: Floats  # [N + 1, ITEM_DIMS], `item_dense`
    keys: Ints  # [N + 1, 2], `item_keys`: what a history is matched by
    vec: Floats | None  # [N + 1, d], raw, for tokens and ranking; None without a network
    key: Floats | None  # [N + 1, d], unit length, for retrieval


def build_index(spec: EncodeSpec, catalogue: Catalogue, parts: Parts | None, previous: Index | None = None) -> Index:
    """Encode a catalogue.

    Args:
        parts: whose item encoder makes the vectors; None for a release without a network.
        previous: of the same release, on a former catalogue: its unchanged items are not encoded again.

    Raises:
        UnavailableError: the item encoder's vectors are not finite.
        Exception: whatever `parts` raises; nothing is kept.
    """
    rows = {str(item): row for row, item in enumerate(catalogue.texts["item_id"], start=1)}
    origin = _origins(catalogue, rows, previous)
    fresh = np.flatnonzero(origin < 0)
    columns: dict[str, list[npt.NDArray[Any]]] = {
        name: [] for name in ("text", "item_dense", "keys", "item_vec", "item_key")
    }
    for start in range(0, len(fresh), CHUNK):
        numbers = [int(row) - 1 for row in fresh[start : start + CHUNK]]
        known = encode_items(catalogue.columns([max(number, 0) for number in numbers]), spec) if len(catalogue) else {}
        if numbers[0] < 0:  # row 0, first of the first chunk
            unknown = unknown_item(spec)
            known = {name: np.concatenate([unknown[name], known[name][1:]]) for name in known} or unknown
        columns["text"].append(known["text"])
        columns["item_dense"].append(known["item_dense"])
        columns["keys"].append(item_keys(known))
        if parts is not None:
            outputs = parts.item_encoder(known)
            for name in ("item_vec", "item_key"):
                if not np.isfinite(outputs[name]).all():
                    raise UnavailableError("The item encoder gave vectors that are not finite.", "Roll back.")
                columns[name].append(outputs[name])

    def merged(name: str, former: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        encoded = np.concatenate(columns[name]) if columns[name] else None
        like = encoded if encoded is not None else former
        assert like is not None
        result = np.empty((len(origin), like.shape[1]), like.dtype)
        if encoded is not None:
            result[fresh] = encoded
        if former is not None:
            same = np.flatnonzero(origin >= 0)
            result[same] = former[origin[same]]
        return result

    return Index(
        spec=spec,
        catalogue=catalogue,
        rows=rows,
        text=merged("text", previous.text if previous else None),
        plain=merged("item_dense", previous.plain if previous else None),
        keys=merged("keys", previous.keys if previous else None),
        vec=merged("item_vec", previous.vec if previous else None) if parts is not None else None,
        key=merged("item_key", previous.key if previous else None) if parts is not None else None,
    )


def _origins(catalogue: Catalogue, rows: Mapping[str, int], previous: Index | None) -> Ints:
    """int64 [N + 1]: the former row of what is encoded as before, -1 of what is new or changed."""
    origin = np.full(len(rows) + 1, -1, np.int64)
    if previous is None:
        return origin
    origin[0] = 0
    before = previous.catalogue
    names = [name for name in catalogue.texts if name != "item_id"]
    for item, row in rows.items():
        former = previous.rows.get(item, 0)
        if not former or not _same_numbers(catalogue, row - 1, before, former - 1):
            continue
        if all(catalogue.texts[name][row - 1] == before.texts[name][former - 1] for name in names):
            origin[row] = former
    return origin


def _same_numbers(one: Catalogue, row: int, other: Catalogue, former: int) -> bool:
    pairs = ((one.price[row], other.price[former]), (one.duration_s[row], other.duration_s[former]))
    return all(new == old or (new != new and old != old) for new, old in pairs)
