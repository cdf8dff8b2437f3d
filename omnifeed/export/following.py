"""A catalogue that follows its deltas: each state from the one before, in time that hardly grows with the catalogue.

What decides whether an item may be shown is written into copies of the columns, a few bytes a row. What an item encoder
reads goes into new rows. numpy and the standard library only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omnifeed.errors import IntegrityError
from omnifeed.export.catalogue import load_snapshot, moderation, store, writing
from omnifeed.export.catalogue_state import CURRENT, TEXT_COLUMNS, Catalogue, encoded_digest
from omnifeed.export.delta import (
    NUMBER_FIELDS,
    POLICIES,
    REQUIRED,
    TEXT_FIELDS,
    TIME_FIELDS,
    UNKNOWN,
    Delta,
    has_delta,
    read_delta,
    sequences,
)
from omnifeed.export.encode import Ints
from omnifeed.home import Home

log = logging.getLogger(__name__)

DROP = POLICIES.index("DROP")
LIGHT = (*TIME_FIELDS, "policy", "stock", "locales")  # fields that no item encoder reads


@dataclass(slots=True)
class _Fresh:
    """A row to be added."""

    item_id: str
    kind: str
    texts: list[str | None]  # by TEXT_FIELDS
    numbers: list[float]  # by NUMBER_FIELDS
    former: int  # row from 1, 0 of a new item
    encoded: int


def load_catalogue(home: Home) -> Catalogue:
    """The current snapshot with every delta after it; a damaged delta is said and left out.

    Raises:
        UnavailableError: no snapshot has been written.
        IntegrityError: the snapshot is missing or damaged.
        OSError: a delta cannot be read now.
    """
    catalogue = load_snapshot(home)
    deltas, last = [], catalogue.sequence
    for number in sequences(home):
        if number > last:
            deltas += _undamaged(home, number)
            last = number
    return applied(catalogue, deltas, last)


def later(home: Home, sequence: int) -> tuple[list[Delta], int]:
    """The deltas after a number, and the number of the last that was looked at.

    Raises:
        OSError: one cannot be read now.
    """
    deltas: list[Delta] = []
    while has_delta(home, sequence + 1):
        sequence += 1
        deltas += _undamaged(home, sequence)
    return deltas, sequence


def _undamaged(home: Home, number: int) -> list[Delta]:
    try:
        delta = read_delta(home, number)
    except IntegrityError as error:
        log.error("left out: %s", error)
        return []
    return [] if delta is None else [delta]


def applied(catalogue: Catalogue, deltas: Sequence[Delta], sequence: int) -> Catalogue:
    """The catalogue after these deltas; the one before is not changed.

    An item that is new and not told with REQUIRED is left out, by every reader alike.

    Args:
        sequence: of the last delta that was looked at.
    """
    if sequence == catalogue.sequence:
        return catalogue
    merged: dict[str, dict[str, Any]] = {}
    blocked, dropped = catalogue.blocked_authors, catalogue.dropped_items
    for delta in deltas:
        for change in delta.changes:
            item = change.item_id
            if item in merged or catalogue.rows.get(item, 0) or all(name in change.values for name in REQUIRED):
                merged.setdefault(item, {}).update(change.values)
            else:
                log.warning("item %r of delta %d is new and has no %s", item, delta.sequence, " or no ".join(REQUIRED))
        blocked, dropped = moderation(blocked, dropped, delta)
    fresh: list[_Fresh] = []
    for item, values in merged.items():
        row = catalogue.rows.get(item, 0)
        new = _fresh(catalogue, item, row, values)
        if not row or new.encoded != int(catalogue.encoded[row - 1]):
            fresh.append(new)
    catalogue = replace(
        _extended(catalogue, fresh),
        sequence=sequence,
        version=f"{catalogue.base}+{sequence}",
        blocked_authors=blocked,
        dropped_items=dropped,
    )
    return _moderated(_written(catalogue, merged))


def bridged(former: Catalogue, current: Catalogue) -> Catalogue:
    """A former snapshot's rows with everything that decides whether they may be shown taken from the current catalogue.

    For an index that still serves the former rows; an item that is gone counts as dropped.
    """
    version = f"{former.base}@{current.version}"
    if not len(current):
        return replace(former, version=version, policy=np.full(len(former), DROP, np.int8))
    places = current.rows.rows_of(former.rows, former.texts["item_id"])
    there, places = places > 0, np.maximum(places - 1, 0)
    return replace(
        former,
        version=version,
        blocked_authors=current.blocked_authors,
        dropped_items=current.dropped_items,
        created_ts=current.created_ts[places],
        live_from=current.live_from[places],
        live_until=current.live_until[places],
        stock=current.stock[places],
        policy=np.where(there, current.policy[places], DROP).astype(np.int8),
        livestream=current.livestream[places],
        author=current.author[places],
        authors=current.authors,
        blocked=current.blocked[places],
        locale=current.locale[places],
        locales=current.locales,
    )


def compact(home: Home) -> str:
    """Write snapshot and deltas as one snapshot; the aggregates stay those of the moment they describe.

    Returns:
        The new snapshot's version.

    Raises:
        UnavailableError: there is no snapshot yet.
        OmnifeedError: the disk is full or not writable; the former snapshot is still the current one.
    """
    with writing(home):
        catalogue = load_catalogue(home)
        rows = np.flatnonzero(catalogue.successor == CURRENT)
        numbers = {
            name: getattr(catalogue, name)[rows] for name in ("policy", "stock", "locale", *NUMBER_FIELDS, *TIME_FIELDS)
        }
        return store(
            home,
            {name: [catalogue.texts[name][row] for row in rows.tolist()] for name in TEXT_COLUMNS},
            numbers,
            catalogue.features.taken(rows),
            catalogue.locales,
            catalogue.now,
            catalogue.sequence,
            catalogue.blocked_authors,
            catalogue.dropped_items,
        )


def _fresh(catalogue: Catalogue, item: str, row: int, values: Mapping[str, Any]) -> _Fresh:
    """The row that the item would have after the change."""

    def field(name: str) -> Any:
        if name in values or not row:
            return values.get(name)
        return catalogue.texts[name][row - 1] if name in catalogue.texts else getattr(catalogue, name)[row - 1]

    kind, texts = str(field("kind")), [field(name) for name in TEXT_FIELDS]
    numbers = [math.nan if value is None else float(value) for value in map(field, NUMBER_FIELDS)]
    return _Fresh(item, kind, texts, numbers, row, encoded_digest(item, kind, texts, numbers))


def _extended(catalogue: Catalogue, fresh: Sequence[_Fresh]) -> Catalogue:
    """The catalogue with further rows, each as its former row has it where it has one."""
    if not fresh:
        return catalogue
    size = len(catalogue)
    former = np.array([one.former for one in fresh], np.int64)
    rows = np.arange(size + 1, size + 1 + len(fresh))
    successor = np.concatenate([catalogue.successor, np.full(len(fresh), CURRENT, np.int64)])
    successor[former[former > 0] - 1] = rows[former > 0]
    authors = dict(catalogue.authors)
    for one in fresh:
        name = one.texts[0]
        if name is not None:
            authors.setdefault(name, len(authors))

    livestream = np.concatenate([catalogue.livestream, np.zeros(len(fresh), np.bool_)])
    author = np.concatenate([catalogue.author, np.full(len(fresh), -1, np.int32)])
    for one, newest in zip(fresh, rows.tolist(), strict=True):
        at = [newest - 1, *(row - 1 for row in _held(catalogue, one.former))]
        livestream[at] = one.kind == "livestream"
        author[at] = -1 if one.texts[0] is None else authors[one.texts[0]]

    def more(name: str, blank: Any) -> Any:
        """A column, the new rows as their former ones."""
        column = getattr(catalogue, name)
        inherited = column[np.maximum(former - 1, 0)] if size else np.full(len(fresh), blank, column.dtype)
        return np.concatenate([column, np.where(former > 0, inherited, blank).astype(column.dtype)])

    price, duration_s = (
        np.concatenate([getattr(catalogue, name), [one.numbers[place] for one in fresh]])
        for place, name in enumerate(NUMBER_FIELDS)
    )
    columns = [
        [one.item_id for one in fresh],
        [one.kind for one in fresh],
        *zip(*(o.texts for o in fresh), strict=True),
    ]
    return replace(
        catalogue,
        rows=catalogue.rows.moved({one.item_id: int(row) for one, row in zip(fresh, rows, strict=True)}),
        texts={
            name: catalogue.texts[name].extended(column) for name, column in zip(TEXT_COLUMNS, columns, strict=True)
        },
        price=price,
        duration_s=duration_s,
        encoded=np.concatenate([catalogue.encoded, np.array([one.encoded for one in fresh], np.uint64)]),
        successor=successor,
        former=np.concatenate([catalogue.former, former]),
        created_ts=more("created_ts", UNKNOWN),
        live_from=more("live_from", UNKNOWN),
        live_until=more("live_until", UNKNOWN),
        policy=more("policy", DROP),
        stock=more("stock", UNKNOWN),
        livestream=livestream,
        author=author,
        authors=authors,
        blocked=more("blocked", False),
        locale=more("locale", 0),
        features=catalogue.features.extended(former),
    )


def _written(catalogue: Catalogue, changes: Mapping[str, Mapping[str, Any]]) -> Catalogue:
    """The light fields of the changes, in every row that has ever held the item."""
    if not any(name in values for values in changes.values() for name in LIGHT):
        return catalogue
    columns = {name: getattr(catalogue, name).copy() for name in (*TIME_FIELDS, "policy", "stock", "locale")}
    locales = dict.fromkeys(catalogue.locales)
    places = {tags: place for place, tags in enumerate(locales)}
    for item, values in changes.items():
        rows = [row - 1 for row in _held(catalogue, catalogue.rows[item])]
        for name in (*TIME_FIELDS, "stock"):
            if name in values:
                columns[name][rows] = UNKNOWN if values[name] is None else values[name]
        if "policy" in values:
            columns["policy"][rows] = POLICIES.index(values["policy"])
        if "locales" in values:
            columns["locale"][rows] = places.setdefault(tuple(values["locales"] or ()), len(places))
    return replace(catalogue, **columns, locales=tuple(places))


def _held(catalogue: Catalogue, row: int) -> Iterator[int]:
    """The rows from 1 that have held an item, from this one back."""
    while row:
        yield row
        row = int(catalogue.former[row - 1])


def _moderated(catalogue: Catalogue) -> Catalogue:
    """`blocked` as `blocked_authors` has it."""
    numbers: Ints = np.array(
        [catalogue.authors[name] for name in catalogue.blocked_authors if name in catalogue.authors], np.int64
    )
    return replace(catalogue, blocked=np.isin(catalogue.author, numbers))
