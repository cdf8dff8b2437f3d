"""What changed in the catalogue since its snapshot: numbered files that are only ever added.

A delta names items with the fields that changed, and creators or sellers to block or to let back. Its number is taken
by linking a finished file to its name, which fails where the name exists, so any number of writers may write at once
and a reader sees whole deltas in one order. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from omnifeed.errors import InputError, IntegrityError, OmnifeedError
from omnifeed.export.encode import KIND_IDS
from omnifeed.home import Home

POLICIES = ("ALLOW", "INTERSTITIAL", "DROP")
UNKNOWN = -(2**62)  # a time or a stock that is null
MAX_ID_CHARS = 128
MAX_TEXT_CHARS = 10_000
MAX_INTEGER = 2**61  # of times and stocks
TEXT_FIELDS = ("author_id", "category", "title")
NUMBER_FIELDS = ("price", "duration_s")  # that an item encoder reads, as it does TEXT_FIELDS
TIME_FIELDS = ("created_ts", "live_from", "live_until")
#: What a change may name; every field but the first four may be null.
FIELDS = (
    "item_id",
    "kind",
    "created_ts",
    "policy",
    *TEXT_FIELDS,
    *NUMBER_FIELDS,
    "live_from",
    "live_until",
    "stock",
    "locales",
)
REQUIRED = ("kind", "created_ts", "policy")  # of an item that the catalogue does not hold yet
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS = 12


class FieldError(InputError):
    """A field of a change cannot be used."""

    def __init__(self, field: str, problem: str, action: str) -> None:
        super().__init__(problem, action)
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.problem, self.action)


@dataclass(frozen=True, slots=True)
class Change:
    """One item; a field that is absent stays as it is, one that is None becomes null."""

    item_id: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delta:
    """One numbered file."""

    sequence: int
    now: int  # UTC microseconds, never less than the delta's before it
    changes: tuple[Change, ...] = ()
    block: tuple[str, ...] = ()  # author_ids
    unblock: tuple[str, ...] = ()


def change_of(raw: Mapping[str, Any]) -> Change:
    """Check one item's fields.

    Times are UTC microseconds, aware datetimes, or ISO 8601 with an offset; locales a list of language tags.

    Raises:
        FieldError: names the field, and what is allowed.
    """
    unknown = sorted(set(raw) - set(FIELDS))
    if unknown:
        raise FieldError(unknown[0], f"The field {unknown[0]!r} is unknown.", f"Use {', '.join(FIELDS)}.")
    item_id = raw.get("item_id")
    if not isinstance(item_id, str) or not 0 < len(item_id) <= MAX_ID_CHARS or not item_id.isprintable():
        raise FieldError("item_id", f"item_id is {_shown(item_id)}.", f"Give 1 to {MAX_ID_CHARS} printable characters.")
    return Change(item_id, {name: _value(name, value) for name, value in raw.items() if name != "item_id"})


def _value(name: str, value: Any) -> Any:
    def refuse(action: str) -> FieldError:
        return FieldError(name, f"{name} is {_shown(value)}.", action)

    if name in ("kind", "policy"):
        allowed = tuple(KIND_IDS) if name == "kind" else POLICIES
        if value not in allowed:
            raise refuse(f"Use one of {', '.join(allowed)}.")
        return value
    if value is None:
        if name == "created_ts":
            raise refuse("Give its time of creation, or leave it out.")
        return None
    if name in TIME_FIELDS:
        try:
            return micros(value)
        except (ValueError, TypeError, OverflowError):
            raise refuse("Give UTC microseconds, or ISO 8601 with an offset.") from None
    if name in TEXT_FIELDS:
        if not isinstance(value, str) or len(value) > (MAX_ID_CHARS if name == "author_id" else MAX_TEXT_CHARS):
            raise refuse("Give a text that is not too long.")
        return value
    if name == "stock":
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_INTEGER:
            raise refuse("Give a whole number from 0 on, or null where stock is not tracked.")
        return value
    if name in NUMBER_FIELDS:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise refuse("Give a finite number from 0 on, or null where it is not known.")
        return float(value)
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in value):
        raise refuse("Give a list of language tags, or null for everybody.")
    return sorted(set(value)) or None


def micros(value: Any) -> int:
    """UTC microseconds of a time in any form that `change_of` takes.

    Raises:
        ValueError: it is none, or lies outside of what can be used.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(value)
        value = (value - _EPOCH) // timedelta(microseconds=1)
    if isinstance(value, bool) or not 0 <= operator.index(value) < MAX_INTEGER:
        raise ValueError(value)
    return operator.index(value)


def append_delta(
    home: Home,
    changes: Iterable[Change] = (),
    *,
    now: int,
    block: Iterable[str] = (),
    unblock: Iterable[str] = (),
) -> Delta:
    """Add a delta; every server that reads this home follows within its polling interval.

    Batch what changes at one moment into one call: a delta is a file.

    Args:
        changes: from `change_of`; of two changes of one item the later wins, field by field.
        now: UTC microseconds; raised to the former delta's where it is less, so that time never runs back.
        block: author_ids none of whose items may be shown from now on.
        unblock: author_ids let back.

    Raises:
        InputError: nothing changes, or an author_id cannot be used.
        OmnifeedError: the disk is full or not writable; nothing is added.
    """
    listed, blocked, unblocked = tuple(changes), tuple(block), tuple(unblock)
    for author in (*blocked, *unblocked):
        if not 0 < len(author) <= MAX_ID_CHARS:
            raise InputError(f"The author_id {_shown(author)} cannot be used.", f"Give 1 to {MAX_ID_CHARS} characters.")
    if not (listed or blocked or unblocked):
        raise InputError("The delta is empty.", "Name an item, or an author to block or to let back.")
    folder = home.catalogue / "deltas"
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sequence = last_sequence(home)
        now = max(now, _time_of(home, sequence))
        while True:
            sequence += 1
            delta = Delta(sequence, now, listed, blocked, unblocked)
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".delta.")
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(_packed(delta))
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)
            try:
                os.link(temporary, _path(home, sequence))
                return delta
            except FileExistsError:
                continue  # another writer took the number
            finally:
                os.unlink(temporary)
                temporary = None
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OmnifeedError(
            f"{folder} could not be written: {error.strerror or error}.",
            "Free some space or fix the permissions and run again; nothing was added.",
        ) from error


def read_delta(home: Home, sequence: int) -> Delta | None:
    """One delta; None where there is none of this number yet.

    Raises:
        IntegrityError: it is not what was written.
        OSError: the disk does not answer; ask again.
    """
    path = _path(home, sequence)
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise IntegrityError(f"{path} is not what was written.", "Send its changes again in a new delta.")
    raw = json.loads(body)
    return Delta(
        sequence,
        int(raw["now"]),
        tuple(Change(item, values) for item, values in raw["changes"]),
        tuple(raw["block"]),
        tuple(raw["unblock"]),
    )


def has_delta(home: Home, sequence: int) -> bool:
    """Whether there is a delta of this number: what a reader asks twice a second."""
    return _path(home, sequence).exists()


def sequences(home: Home) -> list[int]:
    """The numbers that there are, ascending."""
    try:
        return sorted(int(name) for name in os.listdir(home.catalogue / "deltas") if name.isdigit())
    except FileNotFoundError:
        return []


def last_sequence(home: Home) -> int:
    """The highest number, 0 where there is none."""
    return max(sequences(home), default=0)


def retire(home: Home, sequence: int, kept_us: int) -> None:
    """Remove deltas up to a number that are this much older than the last; that one stays, so numbers only rise."""
    numbers = sequences(home)
    newest = _time_of(home, numbers[-1]) if numbers else 0
    for number in numbers[:-1]:
        if number > sequence or _time_of(home, number) >= newest - kept_us:
            break
        _path(home, number).unlink(missing_ok=True)


def _time_of(home: Home, sequence: int) -> int:
    try:
        delta = read_delta(home, sequence) if sequence else None
    except IntegrityError:
        return 0
    return delta.now if delta else 0


def _path(home: Home, sequence: int) -> Path:
    return home.catalogue / "deltas" / f"{sequence:0{_DIGITS}d}"


def _packed(delta: Delta) -> bytes:
    body = json.dumps(
        {
            "now": delta.now,
            "changes": [[change.item_id, dict(change.values)] for change in delta.changes],
            "block": delta.block,
            "unblock": delta.unblock,
        },
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    ).encode("utf-8", "surrogatepass")
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
