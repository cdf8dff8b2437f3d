"""One table against its rules: which rows pass, which do not and why.

Of rows that share a key the first stays. The later ones leave under a reason of their own: exact copies, which real
logs are full of, and rows that contradict the first, which say that a key is not a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from omnifeed.config import Config
from omnifeed.quality import contract
from omnifeed.quality.contract import KEYS, Rule
from omnifeed.quality.intake import RawFile, Rows, as_text, codes, conformed, original_rows
from omnifeed.quality.outcome import Check
from omnifeed.quality.suite import RuleResult, Suites

EXAMPLES = 3  # of failing rows, a check


@dataclass(frozen=True, slots=True)
class Examined:
    """One table, divided."""

    checks: list[Check]
    accepted: pa.Table  # canonical columns
    quarantine: pa.Table  # the file's columns as text, and failed_expectation
    summary: str  # how many rows fail, and the commonest reason


def examine(
    table: str, files: list[RawFile], accepted: Mapping[str, pa.Table], suites: Suites, config: Config, now: int
) -> Examined:
    """Run the table's suite and divide its rows.

    Args:
        table: "items", "users" or "events".
        files: readable files with castable columns.
        accepted: the accepted items and users, when the table is events.
        now: end of the log, exclusive, UTC microseconds.
    """
    rows = conformed(files, table)
    results = suites.run(table, contract.frame(table, rows, accepted), contract.rules(table, config, now))
    results = _first_kept(table, rows, results)
    checks = quoted(table, results, rows, KEYS[table])
    failing, reasons = _reasons(results, len(rows))
    keep = np.ones(len(rows), bool)
    keep[failing] = False
    summary = f"{len(failing):,} of {len(rows):,} rows ({len(failing) / max(len(rows), 1):.1%})"
    worst = max(checks, key=lambda check: check.failed)
    if worst.failed:
        summary += f", {worst.failed:,} of them break “{worst.contract}”, such as {worst.examples[0]}"
    return Examined(
        checks,
        rows.filter(pa.array(keep)) if len(failing) else rows,
        original_rows(files, table, failing).append_column("failed_expectation", reasons),
        summary,
    )


def quoted(table: str, results: list[RuleResult], rows: pa.Table, key: str) -> list[Check]:
    """Checks with examples from `rows`, which the results number.

    Args:
        key: column that names a row in an example.
    """
    return [
        Check(
            table,
            result.rule.contract,
            result.expectation,
            result.rule.critical,
            result.passed,
            len(rows),
            len(result.rows),
            result.observed,
            _examples(rows, key, result),
        )
        for result in results
    ]


def _examples(rows: pa.Table, key: str, result: RuleResult) -> tuple[str, ...]:
    if not len(result.rows):
        return ()
    part, shown = rows.take(pa.array(result.rows[:EXAMPLES])), result.rule.shows
    names = [f"{key} {name!r:.300}" for name in as_text(part[key]).to_pylist()]
    if shown == key:
        return tuple(names)
    values = ["null" if value is None else f"{value:.300}" for value in as_text(part[shown]).to_pylist()]
    return tuple(f"{name}: {shown} = {value}" for name, value in zip(names, values, strict=True))


def _first_kept(table: str, rows: pa.Table, results: list[RuleResult]) -> list[RuleResult]:
    rule = contract.unique(table)
    kept = []
    for result in results:
        if result.rule != rule:
            kept.append(result)
            continue
        copies, conflicts = repeats(rows, KEYS[table], result.rows)
        for part, how in ((copies, "no copy of an earlier row"), (conflicts, "no row that contradicts an earlier one")):
            narrowed = Rule(f"{rule.contract}: {how}", rule.expectation, rule.arguments, rule.shows)
            kept.append(RuleResult(narrowed, result.expectation, not len(part), part, ""))
    return kept


def repeats(rows: pa.Table, key: str, among: Rows) -> tuple[Rows, Rows]:
    """Rows whose key an earlier row has: those equal to the first row of that key, and those that differ from it.

    Args:
        among: int64, ascending: the rows to look at.
    """
    part = rows.take(pa.array(among))
    first, inverse = np.unique(_numbered(part[key]), return_index=True, return_inverse=True)[1:]
    first_of = first[inverse]
    later = first_of != np.arange(len(among))
    same = np.ones(len(among), bool)
    for name in part.column_names:
        values = _numbered(part[name])
        same &= values == values[first_of]
    return among[later & same], among[later & ~same]


def _numbered(column: pa.ChunkedArray) -> Rows:
    numbers: Rows = codes(column).fill_null(-1).to_numpy()
    return numbers


def _reasons(results: list[RuleResult], rows: int) -> tuple[Rows, pa.Array]:
    """The rows that break a rule, ascending, and for each the sentences that it breaks, joined by "; "."""
    bits = np.zeros(rows, np.int64)
    for number, result in enumerate(results):
        bits[result.rows] |= 1 << number
    failing = np.flatnonzero(bits)
    combinations, which = np.unique(bits[failing], return_inverse=True)
    texts = [
        "; ".join(result.rule.contract for number, result in enumerate(results) if combination >> number & 1)
        for combination in combinations.tolist()
    ]
    return failing, pa.array(texts, pa.string()).take(pa.array(which))
