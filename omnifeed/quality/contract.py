"""The contract itself: for each table the columns that are looked at, and the rules on them.

A rule is a Great Expectations type with its arguments and a sentence for people. Rules run on a narrow frame that
pandas takes fast: numbers as they are, times as integers (UTC microseconds), keys as codes (equal codes, equal keys),
and a few columns computed here where an expectation over raw columns would be slow or missing (membership of another
table, "an outcome requires served").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.quality.intake import codes
from omnifeed.tables import KINDS, OUTCOMES, POLICIES, SCHEMAS

YEAR_2000_US = 946_684_800_000_000
LARGEST = 1.7976931348623157e308  # a float above it is infinite

#: Key column of each table: unique, and what an example is named by.
KEYS = {"events": "event_id", "items": "item_id", "users": "user_id"}
#: Scenario and arm of rows that happened elsewhere before the log and only make histories.
HISTORY = "history"


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation."""

    contract: str  # a sentence that holds when the rule does; without "; ", which joins them in the quarantine
    expectation: str  # class of great_expectations.expectations
    arguments: dict[str, Any] = field(default_factory=dict)
    shows: str = ""  # column of the table that an example quotes
    critical: bool = False


def _not_null(*columns: str) -> list[Rule]:
    return [
        Rule(f"{column} is not null", "ExpectColumnValuesToNotBeNull", {"column": column}, column) for column in columns
    ]


def _between(contract: str, column: str, shows: str = "", **bounds: Any) -> Rule:
    return Rule(contract, "ExpectColumnValuesToBeBetween", {"column": column, **bounds}, shows or column)


def _in_set(contract: str, column: str, values: Sequence[Any], shows: str = "") -> Rule:
    return Rule(contract, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)}, shows or column)


def _has_rows(table: str) -> Rule:
    return Rule(f"{table} has rows", "ExpectTableRowCountToBeBetween", {"min_value": 1}, critical=True)


def unique(table: str) -> Rule:
    """The rule that a table's key is unique; the first of repeated rows is kept."""
    return Rule(f"{KEYS[table]} is unique", "ExpectColumnValuesToBeUnique", {"column": KEYS[table]}, shows=KEYS[table])


def rules(table: str, config: Config, now: int) -> list[Rule]:
    """The rules on the frame of one table.

    Args:
        table: "events", "items" or "users".
        now: end of the log, exclusive, UTC microseconds.
    """
    required = [column.name for column in SCHEMAS[table] if not column.nullable]
    always = [_has_rows(table), *_not_null(*required), unique(table)]
    if table == "users":
        return [*always, _between("signup_ts is before now", "signup_ts", max_value=now, strict_max=True)]
    if table == "items":
        return [
            *always,
            _in_set(f"kind is one of {', '.join(KINDS)}", "kind", KINDS),
            _in_set(f"policy is one of {', '.join(POLICIES)}", "policy", POLICIES),
            _between("price is zero or more", "price", min_value=0, max_value=LARGEST),
            _between("duration_s is zero or more", "duration_s", min_value=0, max_value=LARGEST),
            _between("stock is zero or more", "stock", min_value=0),
            _between("created_ts is between 1970 and now", "created_ts", min_value=0, max_value=now, strict_max=True),
            _between("live_until is not before live_from", "live_us", "live_until", min_value=0),
        ]
    return [
        *always,
        _in_set("item_id is in the accepted items", "item_known", [True], "item_id"),
        _in_set("user_id is in the accepted users", "user_known", [True], "user_id"),
        _between("ts is not before 2000", "ts", min_value=YEAR_2000_US),
        _between("ts is not in the future", "ts", max_value=now, strict_max=True),
        _between("observed_ts is not before ts", "delay_us", "observed_ts", min_value=0),
        _in_set(
            f"scenario is one of {', '.join(config.data.scenarios)}",
            "scenario_vocabulary",
            config.data.scenarios,
            "scenario",
        ),
        _between("position is zero or more", "position", min_value=0),
        _between("dwell_ms is zero or more", "dwell_ms", min_value=0),
        _between("gmv is zero or more", "gmv", min_value=0, max_value=LARGEST),
        _between("propensity is above 0 and at most 1", "propensity", min_value=0, max_value=1, strict_min=True),
        _in_set("an outcome requires served", "outcome_unserved", [False], "served"),
    ]


def frame(table: str, rows: pa.Table, accepted: Mapping[str, pa.Table]) -> pa.Table:
    """The columns that `rules` look at, one row a row of the table.

    Args:
        rows: canonical columns.
        accepted: the accepted items and users, when the table is events.
    """
    columns = {column.name: rows[column.name] for column in SCHEMAS[table] if not column.nullable}
    if table == "users":
        columns["signup_ts"] = rows["signup_ts"]
    elif table == "items":
        live_us = pc.subtract(rows["live_until"].cast(pa.int64()), rows["live_from"].cast(pa.int64()))
        columns |= {name: _numbers(rows[name]) for name in ("price", "duration_s")}
        columns |= {"stock": rows["stock"], "live_us": live_us}
    else:
        elsewhere = pc.and_(pc.equal(rows["arm"], HISTORY), pc.equal(rows["scenario"], HISTORY))
        outcome = reduce(pc.or_, (pc.fill_null(rows[name], False) for name in OUTCOMES))
        columns |= {
            "item_known": _membership(rows["item_id"], accepted["items"]["item_id"]),
            "user_known": _membership(rows["user_id"], accepted["users"]["user_id"]),
            "delay_us": pc.subtract(rows["observed_ts"].cast(pa.int64()), rows["ts"].cast(pa.int64())),
            "scenario_vocabulary": pc.if_else(
                pc.fill_null(elsewhere, False), pa.scalar(None, pa.string()), rows["scenario"]
            ),
            "position": rows["position"],
            "dwell_ms": rows["dwell_ms"],
            "gmv": _numbers(rows["gmv"]),
            "propensity": _numbers(rows["propensity"]),
            "outcome_unserved": pc.and_(outcome, pc.invert(pc.fill_null(rows["served"], True))),
        }
    return pa.table({name: column if name in _WORDS else _plain(column) for name, column in columns.items()})


#: Columns of the frames whose values are compared with words.
_WORDS = ("kind", "policy", "scenario_vocabulary")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(column.type):
        return codes(column)
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) or pa.types.is_int32(column.type) else column


def _membership(keys: pa.ChunkedArray, known: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_null(keys), pa.scalar(None, pa.bool_()), pc.is_in(keys, value_set=known))


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # pandas reads NaN as null and every range rule would pass it
    return pc.if_else(pc.is_nan(column), float("-inf"), column)


#: Rules on tables about the tables.
FILES = [
    Rule("every file is there and readable", "ExpectColumnValuesToBeNull", {"column": "error"}, "error", critical=True)
]
COLUMNS = [
    Rule(
        "every required column is there", "ExpectColumnValuesToNotBeNull", {"column": "found"}, "found", critical=True
    ),
    Rule("every column casts to its type", "ExpectColumnValuesToBeNull", {"column": "fault"}, "fault", critical=True),
]


def acceptance(config: Config) -> list[Rule]:
    """The rule on the frame of bad shares by table."""
    bound = config.quality.max_bad_share
    return [
        Rule(
            f"at most {bound:.1%} of a table's rows break their contract",
            "ExpectColumnValuesToBeBetween",
            {"column": "bad_share", "max_value": bound},
            "quarantined",
            critical=True,
        )
    ]


def drift(config: Config) -> list[Rule]:
    """The rules on the frame of changes since the last accepted run (`omnifeed.quality.profile.changes`)."""
    quality = config.quality

    def rule(contract: str, column: str, low: float | None, high: float | None) -> Rule:
        return Rule(
            contract,
            "ExpectColumnValuesToBeBetween",
            {"column": column, "min_value": low, "max_value": high},
            "change",
            critical=True,
        )

    volume, label = quality.max_volume_change, quality.max_label_change
    return [
        rule(f"events a day are within {volume:.0%} of the last accepted run", "volume", -volume, volume),
        rule(f"each outcome's rate is within {label:.0%} of the last accepted run", "label", -label, label),
        rule(
            f"at most {quality.max_null_share:.0%} of what the last accepted run had filled is null now",
            "filled",
            -quality.max_null_share,
            None,
        ),
    ]
