"""Today's items with their stock, prices, policy, on-air times and aggregates: a clock of its own beside the releases.

A snapshot is one `.npz` without pickle (strings as one UTF-8 blob with offsets), written whole and named by a pointer
file that is replaced atomically, so a server that polls the pointer sees the old catalogue or the new one and nothing
between. What changes by the minute comes after it in deltas (`omnifeed.export.delta`). It holds raw strings: buckets
and text vectors belong to a release's encoding and are made where it is loaded. numpy and the standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.errors import InputError, IntegrityError, OmnifeedError, UnavailableError
from omnifeed.export.catalogue_state import (
    CURRENT,
    TEXT_COLUMNS,
    Catalogue,
    encoded_digest,
    largest_authors,
)
from omnifeed.export.delta import (
    NUMBER_FIELDS,
    POLICIES,
    TEXT_FIELDS,
    TIME_FIELDS,
    UNKNOWN,
    Delta,
    micros,
    read_delta,
    retire,
    sequences,
)
from omnifeed.export.encode import KIND_IDS, Columns
from omnifeed.export.item_features import VIEWS, ItemFeatures
from omnifeed.export.rows import ItemRows, Stack, id_hash
from omnifeed.export.strings import Strings
from omnifeed.home import Home, write_atomic

Array = npt.NDArray[Any]

KEPT = 4  # snapshots left on the disk, for readers that have just read the former pointer
KEPT_US = 2 * 86_400_000_000  # deltas this much older than the last one go, once a snapshot holds them


def write_snapshot(
    home: Home,
    items: Columns,
    item_features: Mapping[str, Columns],
    now: int,
    blocked_authors: Iterable[str] | None = None,
) -> str:
    """Write today's catalogue and move the pointer to it.

    Deltas later than `now` go on on top of it. Who is blocked, and what a delta dropped, stays so.

    Args:
        items: columns of the canonical items table, and `locales` where items are bound to some; times as UTC
            microseconds or as aware datetimes.
        item_features: by scenario, columns of ITEM_DENSE aligned with `items`; absent or null values take defaults.
        now: the moment that items and features describe, UTC microseconds.
        blocked_authors: author_ids none of whose items may be recommended; None: as it was.

    Returns:
        The snapshot's version.

    Raises:
        InputError: an item_id is repeated, or a column's length, a kind, a policy label or a time cannot be used.
        OmnifeedError: the disk is full or not writable; the former snapshot is still the current one.
    """
    ids = [str(value) for value in items["item_id"]]
    count = len(ids)
    if len(set(ids)) != count:
        seen: set[str] = set()
        repeated = next(value for value in ids if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise InputError(f"The catalogue names item {repeated!r} twice.", "Give one row an item.")
    columns = {name: ids if name == "item_id" else _column(items, name, count) for name in TEXT_COLUMNS}
    for value in columns["kind"]:
        _known(value, tuple(KIND_IDS), "kind")
    arrays: dict[str, Array] = {}
    for name in TIME_FIELDS:
        arrays[name] = np.array([_micros(value, name) for value in _column(items, name, count)], np.int64)
    for name in NUMBER_FIELDS:
        arrays[name] = np.array([np.nan if v is None else v for v in _column(items, name, count)], np.float64)
    arrays["stock"] = np.array([UNKNOWN if v is None else v for v in _column(items, "stock", count)], np.int64)
    policy = [_known(value, POLICIES, "policy") for value in _column(items, "policy", count)]
    sets: dict[tuple[str, ...], int] = {(): 0}
    bound = [tuple(sorted(set(value or ()))) for value in _column(items, "locales", count)]
    arrays["locale"] = np.array([sets.setdefault(tags, len(sets)) for tags in bound], np.int32)
    features = ItemFeatures.of(item_features, count)
    with writing(home):
        sequence, blocked, dropped = _moderated(home, now)
        if blocked_authors is not None:
            blocked = frozenset(blocked_authors)
        arrays["policy"] = np.array(
            [POLICIES.index("DROP") if item in dropped else label for item, label in zip(ids, policy, strict=True)],
            np.int8,
        )
        return store(home, columns, arrays, features, tuple(sets), now, sequence, blocked, dropped)


def store(
    home: Home,
    texts: Mapping[str, Iterable[str | None]],
    numbers: Mapping[str, Array],
    features: ItemFeatures,
    locales: tuple[tuple[str, ...], ...],
    now: int,
    sequence: int,
    blocked_authors: frozenset[str],
    dropped_items: frozenset[str],
) -> str:
    """Write a snapshot's file and move the pointer; call it inside `writing`.

    Args:
        texts: by TEXT_COLUMNS. numbers: policy, stock, locale, NUMBER_FIELDS and TIME_FIELDS. All [N], aligned.
        sequence: of the last delta that it holds.

    Returns:
        The snapshot's version.
    """
    arrays: dict[str, Array] = {"now": np.array(now), "sequence": np.array(sequence), **numbers}
    packed = {name: Strings.of(texts[name]) for name in TEXT_COLUMNS}
    for name, column in packed.items():
        arrays[f"{name}.blob"], arrays[f"{name}.ends"], arrays[f"{name}.null"] = column.blob, column.ends, column.null
    arrays["hashes"] = np.array([id_hash(str(item)) for item in packed["item_id"]], np.uint64)
    fields = zip(packed["item_id"], packed["kind"], *(packed[name] for name in TEXT_FIELDS), strict=True)
    values = zip(*(numbers[name].tolist() for name in NUMBER_FIELDS), strict=True)
    arrays["encoded"] = np.array(
        [
            encoded_digest(str(item), str(kind), rest, known)
            for (item, kind, *rest), known in zip(fields, values, strict=True)
        ],
        np.uint64,
    )
    arrays["features"] = features.shared.rows
    for number, (scenario, stack) in enumerate(features.within.items()):
        arrays[f"features.{number}"], arrays[f"scenario.{number}"] = stack.rows, features.own[scenario]
    words = {
        "scenarios": list(features.within),
        "locales": locales,
        "blocked": sorted(blocked_authors),
        "dropped": sorted(dropped_items),
    }
    arrays["words"] = np.frombuffer(json.dumps(words).encode(), np.uint8)
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode() + np.ascontiguousarray(array).tobytes())
    version = f"{now}-{digest.hexdigest()[:12]}"
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(home.catalogue / f"{version}.npz", buffer.getvalue())
    write_atomic(home.catalogue / "current", version + "\n")
    written = sorted(home.catalogue.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
    for path in written[:-KEPT]:
        if path.stem != version:
            path.unlink(missing_ok=True)
    retire(home, sequence, KEPT_US)
    return version


@contextmanager
def writing(home: Home) -> Iterator[None]:
    """One writer of snapshots at a time, so that none overwrites what it has not read; others wait.

    Raises:
        OmnifeedError: the folder cannot be made or written.
    """
    try:
        home.catalogue.mkdir(parents=True, exist_ok=True)
        handle = open(home.catalogue / ".writing", "a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise OmnifeedError(
            f"{home.catalogue} could not be written: {error.strerror or error}.",
            "Free some space or fix the permissions and run again; the former catalogue is still there.",
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def current_version(home: Home) -> str:
    """The version that the pointer names.

    Raises:
        UnavailableError: no snapshot has been written.
    """
    try:
        return (home.catalogue / "current").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UnavailableError(
            f"{home.catalogue} holds no catalogue.", "Write a snapshot (the deploy step does) and ask again."
        ) from None


def load_snapshot(home: Home) -> Catalogue:
    """Read the current snapshot, without the deltas after it.

    Raises:
        UnavailableError: no snapshot has been written.
        IntegrityError: the pointer's file is missing or damaged.
    """
    version = current_version(home)
    path = home.catalogue / f"{version}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        texts = {
            name: Strings(arrays[f"{name}.blob"], arrays[f"{name}.ends"], arrays[f"{name}.null"])
            for name in TEXT_COLUMNS
        }
        words = json.loads(arrays["words"].tobytes())
        rows = ItemRows(texts["item_id"], arrays["hashes"], {})
        features = ItemFeatures(
            Stack(arrays["features"]),
            {name: Stack(arrays[f"features.{number}"]) for number, name in enumerate(words["scenarios"])},
            {name: arrays[f"scenario.{number}"] for number, name in enumerate(words["scenarios"])},
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{path} cannot be read: {error}.", "Write the catalogue's snapshot again.") from error
    blocked = frozenset(words["blocked"])
    authors: dict[str, int] = {}
    author = np.array(
        [-1 if name is None else authors.setdefault(name, len(authors)) for name in texts["author_id"]], np.int32
    )
    count = len(author)
    return Catalogue(
        version=version,
        base=version,
        sequence=int(arrays["sequence"]),
        now=int(arrays["now"]),
        rows=rows,
        texts=texts,
        price=arrays["price"],
        duration_s=arrays["duration_s"],
        encoded=arrays["encoded"],
        successor=np.full(count, CURRENT, np.int64),
        former=np.zeros(count, np.int64),
        created_ts=arrays["created_ts"],
        live_from=arrays["live_from"],
        live_until=arrays["live_until"],
        policy=arrays["policy"],
        stock=arrays["stock"],
        livestream=np.array([kind == "livestream" for kind in texts["kind"]], np.bool_),
        author=author,
        authors=authors,
        blocked=np.isin(author, [authors[name] for name in blocked if name in authors]),
        locale=arrays["locale"],
        locales=tuple(tuple(tags) for tags in words["locales"]),
        blocked_authors=blocked,
        dropped_items=frozenset(words["dropped"]),
        largest=largest_authors(author, np.expm1(arrays["features"][:, VIEWS].astype(np.float64))),
        features=features,
    )


def _moderated(home: Home, now: int) -> tuple[int, frozenset[str], frozenset[str]]:
    """The last delta that is no later than `now`, and who is blocked and what is dropped with it in force."""
    try:
        sequence, blocked, dropped = _words(home)
    except (UnavailableError, IntegrityError):
        sequence, blocked, dropped = 0, frozenset(), frozenset()
    last = sequence
    for number in reversed(sequences(home)):
        last = number
        delta = _readable(home, number)
        if delta is not None and delta.now <= now:
            break
        last -= 1
    for number in range(sequence + 1, last + 1):
        delta = _readable(home, number)
        if delta is not None:
            blocked, dropped = moderation(blocked, dropped, delta)
    return last, blocked, dropped


def moderation(blocked: frozenset[str], dropped: frozenset[str], delta: Delta) -> tuple[frozenset[str], frozenset[str]]:
    """Blocked authors and dropped items after a delta."""
    labels = {change.item_id: change.values["policy"] for change in delta.changes if "policy" in change.values}
    off = {item for item, label in labels.items() if label == "DROP"}
    return (blocked | set(delta.block)) - set(delta.unblock), (dropped - labels.keys()) | off


def _words(home: Home) -> tuple[int, frozenset[str], frozenset[str]]:
    """Of the current snapshot: its last delta, the blocked authors and the dropped items."""
    path = home.catalogue / f"{current_version(home)}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            words = json.loads(stored["words"].tobytes())
            return int(stored["sequence"]), frozenset(words["blocked"]), frozenset(words["dropped"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{path} cannot be read: {error}.", "Write the catalogue's snapshot again.") from error


def _readable(home: Home, number: int) -> Delta | None:
    try:
        return read_delta(home, number)
    except IntegrityError:
        return None


def _column(items: Columns, name: str, count: int) -> Sequence[Any]:
    values = items.get(name)
    if values is None:
        return [None] * count
    if len(values) != count:
        raise InputError(f"Column {name!r} of the catalogue has {len(values)} rows for {count} items.", "Align them.")
    return values


def _micros(value: Any, name: str) -> int:
    if value is None:
        if name == "created_ts":
            raise InputError("An item of the catalogue has no created_ts.", "Give its time of creation.")
        return UNKNOWN
    try:
        return micros(value)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"An item's {name} is {value!r}.", "Give UTC microseconds since 1970.") from None


def _known(value: Any, vocabulary: tuple[str, ...], name: str) -> int:
    if value not in vocabulary:
        raise InputError(f"An item's {name} is {value!r}.", f"Use one of {', '.join(vocabulary)}.")
    return vocabulary.index(value)
