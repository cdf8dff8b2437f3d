"""What a validation found, in types that the page, the report and the caller share.

A check is one expectation on one table; a failure is a check that some rows did not meet. Critical failures stop the
pipeline, the others send their rows to quarantine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation and how it ended."""

    table: str  # events, items, users; or files, columns, acceptance, drift: tables about the tables
    contract: str  # a sentence that holds when the check passes
    expectation: str  # the Great Expectations type, snake case
    critical: bool  # a failure stops the pipeline
    passed: bool
    rows: int  # rows looked at
    failed: int  # rows that do not meet it; 0 for a failed table-level check
    observed: str  # the value of a table-level check, empty for a row-level one
    examples: tuple[str, ...]  # key and value of the first failing rows


@dataclass(frozen=True, slots=True)
class Failure:
    """A contract that rows broke."""

    table: str
    contract: str
    rows: int
    of: int
    critical: bool
    example: str


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Rows in, accepted and quarantined by table (accepted + quarantined = rows), and what failed."""

    rows: dict[str, int]
    accepted: dict[str, int]
    quarantined: dict[str, int]
    failures: tuple[Failure, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "failures": [asdict(failure) for failure in self.failures]}


def failures(checks: list[Check]) -> tuple[Failure, ...]:
    """The failed checks, in their order."""
    return tuple(
        Failure(
            check.table,
            check.contract,
            check.failed,
            check.rows,
            check.critical,
            check.examples[0] if check.examples else check.observed,
        )
        for check in checks
        if not check.passed
    )
