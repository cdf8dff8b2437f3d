"""Changes of the catalogue from a file: JSON lines or parquet, one row an item; what cannot be used is set aside.

One bad row must not keep a thousand sold-out items on sale, and must not vanish either: it goes to quarantine with its
row and field, and the rest is applied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnifeed.errors import InputError
from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.delta import REQUIRED, Change, Delta, FieldError, append_delta, change_of
from omnifeed.export.following import load_catalogue
from omnifeed.home import Home, write_atomic


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was not applied."""

    row: int  # from 1, in the file
    field: str
    problem: str
    action: str
    content: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a file."""

    delta: Delta
    bad: tuple[BadRow, ...]
    quarantine: Path | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "sequence": self.delta.sequence,
            "now": self.delta.now,
            "applied": len(self.delta.changes),
            "quarantined": len(self.bad),
            "quarantine": str(self.quarantine) if self.quarantine else None,
            "bad_rows": [{name: value for name, value in asdict(row).items() if name != "content"} for row in self.bad],
        }


def apply_file(home: Home, path: Path, now: int) -> Applied:
    """Apply a file of changes as one delta.

    Raises:
        InputError: the file is missing, is neither JSON lines nor parquet, or has no row that can be used.
        UnavailableError: there is no catalogue yet.
        OmnifeedError: the disk is full or not writable; nothing is applied.
    """
    good, bad = read_changes(path, load_catalogue(home))
    quarantine = None
    if bad:
        quarantine = home.catalogue / "quarantine" / f"{now}-{path.stem}.jsonl"
        write_atomic(quarantine, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad))
    if not good:
        first = f" Row {bad[0].row}: {bad[0].problem} {bad[0].action}" if bad else ""
        raise InputError(
            f"{path} holds no row that can be applied.{first}",
            f"See {quarantine}, and correct the file." if quarantine else "Give one row an item.",
        )
    return Applied(append_delta(home, good, now=now), tuple(bad), quarantine)


def read_changes(path: Path, catalogue: Catalogue) -> tuple[list[Change], list[BadRow]]:
    """The rows that can be used, and the others.

    Raises:
        InputError: the file cannot be read as a whole.
    """
    good: list[Change] = []
    bad: list[BadRow] = []
    told: set[str] = set()
    for number, raw in _rows(path):
        try:
            change = change_of(_object(raw))
            missing = [name for name in REQUIRED if name not in change.values]
            if missing and change.item_id not in told and not catalogue.rows.get(change.item_id, 0):
                raise FieldError(
                    missing[0],
                    f"The catalogue does not hold item {change.item_id!r} yet, and {missing[0]} is not given.",
                    f"Give {', '.join(REQUIRED)} of a new item.",
                )
            told.add(change.item_id)
            good.append(change)
        except FieldError as error:
            shown = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)
            bad.append(BadRow(number, error.field, error.problem, error.action, shown[:2_000]))
    return good, bad


def _object(raw: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(raw, str):
        return raw
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise FieldError("", "The line is not JSON.", "Write one object a line.") from None
    if not isinstance(value, dict):
        raise FieldError("", "The line is not an object.", "Write one object a line.")
    return value


def _rows(path: Path) -> Iterator[tuple[int, str | Mapping[str, Any]]]:
    """Rows from 1. In parquet every column counts as given, so leave out the columns that do not change."""
    if path.suffix == ".parquet":
        from omnifeed.tables import read_parquet

        rows: Sequence[Mapping[str, Any]] = read_parquet(path).to_pylist()
        yield from enumerate(rows, start=1)
        return
    if path.suffix not in (".jsonl", ".ndjson"):
        raise InputError(f"{path} ends in neither .jsonl, .ndjson nor .parquet.", "Give a file of one of these.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Write it as UTF-8 and give it again.") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line
