"""Today's items with their stock, prices, policy, on-air times and aggregates: a clock of its own beside the releases.

A snapshot is one `.npz` without pickle (strings as one UTF-8 blob with offsets), written whole and named by a pointer
file that is replaced atomically, so a server that polls the pointer sees the old catalogue or the new one and nothing
between. It holds raw strings: buckets and text vectors belong to a release's encoding and are made where it is loaded.
numpy and the standard library only.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from omnifeed.errors import InputError, IntegrityError, UnavailableError
from omnifeed.export.encode import KIND_IDS, Columns, Floats, Ints, dense
from omnifeed.features.spec import ITEM_DENSE, of
from omnifeed.home import Home, write_atomic

Bools = npt.NDArray[np.bool_]

POLICIES = ("ALLOW", "INTERSTITIAL", "DROP")
TEXT_COLUMNS = ("item_id", "author_id", "kind", "category", "title")
TIME_COLUMNS = ("created_ts", "live_from", "live_until")
TRENDING = [feature.name for feature in ITEM_DENSE].index("item_scenario_trending")
UNKNOWN = -(2**62)  # a time or a stock that is null
KEPT = 4  # snapshots left on the disk, for readers that have just read the former pointer
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Strings(Sequence["str | None"]):
    """A column of nullable strings in two arrays; a million titles cost their bytes and 9 more each."""

    def __init__(self, blob: npt.NDArray[np.uint8], ends: Ints, null: Bools) -> None:
        self.blob, self.ends, self.null = blob, ends, null
        self._bytes = blob.tobytes()

    @staticmethod
    def of(values: Iterable[str | None]) -> Strings:
        """Pack."""
        raw = [None if value is None else str(value).encode("utf-8", "surrogatepass") for value in values]
        lengths = np.array([len(value or b"") for value in raw], np.int64)
        blob = np.frombuffer(b"".join(value or b"" for value in raw), np.uint8)
        return Strings(blob, np.cumsum(lengths).astype(np.int64), np.array([v is None for v in raw], np.bool_))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, row: int) -> str | None: ...
    @overload
    def __getitem__(self, row: slice) -> list[str | None]: ...
    def __getitem__(self, row: int | slice) -> str | list[str | None] | None:
        """One string, or a list of them."""
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        index = row + len(self) if row < 0 else row
        if not 0 <= index < len(self):
            raise IndexError(row)
        if self.null[index]:
            return None
        start = int(self.ends[index - 1]) if index else 0
        return self._bytes[start : int(self.ends[index])].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str | None]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """N items as of one moment. Times are UTC microseconds, UNKNOWN where null."""

    version: str
    now: int
    texts: dict[str, Strings]  # by TEXT_COLUMNS
    price: npt.NDArray[np.float64]  # [N], NaN where not known
    duration_s: npt.NDArray[np.float64]  # [N], NaN where not known
    created_ts: Ints  # [N]
    live_from: Ints  # [N]
    live_until: Ints  # [N]
    policy: npt.NDArray[np.int8]  # [N], index in POLICIES
    stock: Ints  # [N], UNKNOWN where not tracked
    livestream: Bools  # [N]
    author: Ints  # [N], a number for each author, -1 where there is none
    blocked: Bools  # [N], the author is blocked
    features: dict[str, Floats]  # by scenario: [N, len(ITEM_DENSE)], as `encode.dense` stacks them

    def __len__(self) -> int:
        return len(self.created_ts)

    def on_air(self, now: int) -> Bools:
        """bool [N]: a livestream that has started and has not ended; one without a start has not started."""
        started = (self.live_from != UNKNOWN) & (self.live_from <= now)
        live: Bools = self.livestream & started & ((self.live_until == UNKNOWN) | (now < self.live_until))
        return live

    def eligible(self, now: int) -> Bools:
        """bool [N]: what may be recommended now.

        Not dropped by policy, author not blocked, in stock where stock is tracked, created by now, and on air where it
        is a livestream.
        """
        allowed = (self.policy != POLICIES.index("DROP")) & ~self.blocked & (self.created_ts <= now)
        in_stock = (self.stock == UNKNOWN) | (self.stock > 0)
        shown: Bools = allowed & in_stock & (~self.livestream | self.on_air(now))
        return shown

    def features_of(self, scenario: str) -> Floats:
        """float32 [N, len(ITEM_DENSE)]; of an unknown scenario: the items' daily aggregates and no scenario's own."""
        known = self.features.get(scenario)
        if known is not None:
            return known
        blank = dense({}, ITEM_DENSE, len(self))
        if self.features:
            daily = len(of("item_daily", "item_monthly"))
            blank[:, :daily] = next(iter(self.features.values()))[:, :daily]
        return blank

    def trending_of(self, scenario: str) -> Floats:
        """float32 [N], the trending feature, log(1 + x); of an unknown scenario: the largest over the known ones."""
        known = self.features.get(scenario)
        if known is not None:
            return known[:, TRENDING]
        columns = [features[:, TRENDING] for features in self.features.values()]
        largest: Floats = np.max(columns or [np.zeros(len(self), np.float32)], axis=0)
        return largest

    def columns(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The columns that `encode.encode_items` reads, of these rows."""
        texts: dict[str, list[Any]] = {name: [column[row] for row in rows] for name, column in self.texts.items()}
        numbers = {"price": self.price, "duration_s": self.duration_s}
        return {**texts, **{name: [float(column[row]) for row in rows] for name, column in numbers.items()}}


def write_snapshot(
    home: Home,
    items: Columns,
    item_features: Mapping[str, Columns],
    now: int,
    blocked_authors: Iterable[str] = (),
) -> str:
    """Write today's catalogue and move the pointer to it.

    Args:
        items: columns of the canonical items table; times as UTC microseconds or as aware datetimes.
        item_features: by scenario, columns of ITEM_DENSE aligned with `items`; absent or null values take defaults.
        now: the moment that the snapshot describes, UTC microseconds.
        blocked_authors: author_ids none of whose items may be recommended.

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
    arrays: dict[str, npt.NDArray[Any]] = {"now": np.array(now, np.int64), "scenarios": np.array(list(item_features))}
    for name in TEXT_COLUMNS:
        column = Strings.of(ids if name == "item_id" else _column(items, name, count))
        arrays[f"{name}.blob"], arrays[f"{name}.ends"], arrays[f"{name}.null"] = column.blob, column.ends, column.null
    for name in TIME_COLUMNS:
        arrays[name] = np.array([_micros(value, name) for value in _column(items, name, count)], np.int64)
    for name in ("price", "duration_s"):
        arrays[name] = np.array([np.nan if v is None else v for v in _column(items, name, count)], np.float64)
    arrays["stock"] = np.array([UNKNOWN if v is None else v for v in _column(items, "stock", count)], np.int64)
    arrays["policy"] = _indices(_column(items, "policy", count), POLICIES, "policy").astype(np.int8)
    _indices(_column(items, "kind", count), tuple(KIND_IDS), "kind")
    blocked = frozenset(blocked_authors)
    arrays["blocked"] = np.array([author in blocked for author in _column(items, "author_id", count)], np.bool_)
    for number, (scenario, columns) in enumerate(item_features.items()):
        for name, values in columns.items():
            if len(values) != count:
                raise InputError(
                    f"Feature {name!r} of scenario {scenario!r} has {len(values)} rows for {count} items.",
                    "Align the features with the items, row by row.",
                )
        arrays[f"features.{number}"] = dense(columns, ITEM_DENSE, count)
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
    return version


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
    """Read the current catalogue.

    Raises:
        UnavailableError: no snapshot has been written.
        IntegrityError: the pointer's file is missing or damaged.
    """
    version = current_version(home)
    path = home.catalogue / f"{version}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{path} cannot be read: {error}.", "Write the catalogue's snapshot again.") from error
    scenarios = [str(name) for name in arrays["scenarios"]]
    texts = {
        name: Strings(arrays[f"{name}.blob"], arrays[f"{name}.ends"], arrays[f"{name}.null"]) for name in TEXT_COLUMNS
    }
    return Catalogue(
        version=version,
        now=int(arrays["now"]),
        texts=texts,
        price=arrays["price"],
        duration_s=arrays["duration_s"],
        created_ts=arrays["created_ts"],
        live_from=arrays["live_from"],
        live_until=arrays["live_until"],
        policy=arrays["policy"],
        stock=arrays["stock"],
        livestream=np.array([kind == "livestream" for kind in texts["kind"]], np.bool_),
        author=_numbered(texts["author_id"]),
        blocked=arrays["blocked"],
        features={name: arrays[f"features.{number}"] for number, name in enumerate(scenarios)},
    )


def _numbered(values: Iterable[str | None]) -> Ints:
    numbers: dict[str, int] = {}
    return np.array([-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values], np.int64)


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
    if isinstance(value, datetime):
        return (value - _EPOCH) // timedelta(microseconds=1)
    return int(value)


def _indices(values: Sequence[Any], vocabulary: tuple[str, ...], name: str) -> Ints:
    for value in values:
        if value not in vocabulary:
            raise InputError(f"An item's {name} is {value!r}.", f"Use one of {', '.join(vocabulary)}.")
    return np.array([vocabulary.index(value) for value in values], np.int64)
