"""The last accepted run in a few numbers, and how far a new run is from them.

A change counts only beyond sampling noise: of a difference in rates, four standard errors are taken off first, so that
a handful of orders more or less never stops a pipeline while half of all clicks does.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.errors import InputError
from omnifeed.export.encode import DAY_US
from omnifeed.home import write_json
from omnifeed.tables import OUTCOMES, SCHEMAS, Tables

NOISE = 4.0  # standard errors


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of rows."""

    value: float
    rows: int  # that it is a share of

    def change(self, last: Rate) -> float:
        """Relative change since `last` beyond noise; 0 where the last rate was 0 or nothing was counted."""
        if last.value == 0 or not last.rows or not self.rows:
            return 0.0
        pooled = (self.value * self.rows + last.value * last.rows) / (self.rows + last.rows)
        error = math.sqrt(pooled * (1 - pooled) * (1 / self.rows + 1 / last.rows))
        difference = self.value - last.value
        return math.copysign(max(abs(difference) - NOISE * error, 0.0), difference) / last.value


@dataclass(frozen=True, slots=True)
class Profile:
    """What the next run is compared with."""

    events_a_day: float  # over the UTC days that have events
    labels: dict[str, Rate]  # of each outcome, among the rows that record it
    filled: dict[str, Rate]  # of each optional column, "table.column": rows that are not null


def profile(tables: Tables) -> Profile:
    """The profile of accepted tables."""
    events = tables.events
    days = len(pc.unique(pc.divide(events["ts"].cast(pa.int64()), DAY_US)))
    labels = {}
    for name in OUTCOMES:
        known = len(events) - events[name].null_count
        labels[name] = Rate((pc.sum(events[name]).as_py() or 0) / known if known else 0.0, known)
    filled = {}
    for table, rows in (("events", events), ("items", tables.items), ("users", tables.users)):
        for column in SCHEMAS[table]:
            if column.nullable:
                share = 1 - rows[column.name].null_count / len(rows) if len(rows) else 0.0
                filled[f"{table}.{column.name}"] = Rate(share, len(rows))
    return Profile(len(events) / days if days else 0.0, labels, filled)


def load_profile(path: Path, source: str) -> Profile | None:
    """The last accepted run of this source, or None if there is none.

    Raises:
        InputError: the file is not what `save_profile` wrote.
    """
    raw = _read(path).get(source)
    if raw is None:
        return None
    try:
        return Profile(
            float(raw["events_a_day"]),
            {name: Rate(**rate) for name, rate in raw["labels"].items()},
            {name: Rate(**rate) for name, rate in raw["filled"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(path, error) from error


def save_profile(path: Path, source: str, accepted: Profile) -> None:
    """Remember an accepted run; the other sources' profiles stay."""
    write_json(path, {**_read(path), source: asdict(accepted)})


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise _malformed(path, error) from error
    if not isinstance(raw, dict):
        raise _malformed(path, "not an object")
    return raw


def _malformed(path: Path, error: object) -> InputError:
    return InputError(
        f"{path}, the profile of the last accepted run, cannot be read: {error}.",
        "Delete the file; the next run is then accepted without a comparison and writes it again.",
    )


def changes(now: Profile, last: Profile) -> pa.Table:
    """One row a number: name, old → new, and its relative change in the column of its kind: volume, label or filled."""
    rows: list[dict[str, str | float | None]] = []
    volume = now.events_a_day / last.events_a_day - 1 if last.events_a_day else 0.0
    rows.append(
        {"number": "events a day", "change": f"{last.events_a_day:,.0f} → {now.events_a_day:,.0f}", "volume": volume}
    )
    for kind, before, after in (("label", last.labels, now.labels), ("filled", last.filled, now.filled)):
        for name in sorted(before.keys() & after.keys()):
            was, has = before[name], after[name]
            change = f"{was.value:.3%} of {was.rows:,} → {has.value:.3%} of {has.rows:,}"
            number = f"rate of {name}" if kind == "label" else f"{name} filled"
            rows.append({"number": number, "change": change, kind: has.change(was)})
    schema = pa.schema([pa.field(name, pa.string()) for name in ("number", "change")])
    for kind in ("volume", "label", "filled"):
        schema = schema.append(pa.field(kind, pa.float64()))
    return pa.Table.from_pylist(rows, schema=schema)
