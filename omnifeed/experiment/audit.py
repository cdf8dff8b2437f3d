"""Computing every decision again from what the ledger holds, and handing the ledger to an auditor as one table.

A DECISION entry holds the pre-registration (experiment and [experiment] section), the numbers and the time; the verdict
is a pure function of these. Here it is applied once more: a decision that was written by hand, or by other rules, does
not come out the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.decision import Decision
from omnifeed.experiment.evidence import Evidence
from omnifeed.experiment.ledger import Ledger
from omnifeed.experiment.verdict import judge
from omnifeed.home import write_atomic

PICTURE = "daily"  # of the whole body the one part that no rule reads and that the numbers do not hold
TOLERANCE = 1e-9  # relative: another machine's floating point


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """A decision that does not come out as it was written."""

    sequence: int  # of the ledger's entry
    experiment: str
    fields: tuple[str, ...]  # that differ, or why it could not be computed


@dataclass(frozen=True, slots=True)
class Audit:
    """What computing every decision again has shown."""

    entries: int
    decisions: int
    discrepancies: tuple[Discrepancy, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


def recompute(body: dict[str, Any]) -> Decision:
    """Judge once more from a DECISION's body (`Decision.to_dict`).

    Raises:
        KeyError, TypeError, OmnifeedError: the body does not hold what is needed.
    """
    registration = body["registration"]
    config = Config.from_json(json.dumps({"experiment": registration["section"]}))
    experiment = Experiment.from_dict(registration["experiment"], "the ledger")
    return judge(experiment, config, int(body["now"]), Evidence.from_dict(body), int(body["start_ts"]))


def audit(ledger: Ledger) -> Audit:
    """Check the chain and compute every decision again.

    Raises:
        IntegrityError: a line of the ledger is not what was appended.
    """
    entries = ledger.entries()
    decisions = [entry for entry in entries if entry.kind == "DECISION"]
    found = []
    for entry in decisions:
        differing = _differing(entry.body)
        if differing:
            found.append(Discrepancy(entry.sequence, str(entry.body.get("experiment")), differing))
    return Audit(len(entries), len(decisions), tuple(found))


def export(ledger: Ledger, path: Path) -> int:
    """Write the whole ledger as one parquet file, one row an entry; returns their number."""
    rows = [
        {
            "sequence": entry.sequence,
            "ts": entry.ts,
            "kind": entry.kind,
            "champion": entry.champion,
            "experiment": _named(entry.body),
            "verdict": entry.body.get("verdict"),
            "final": entry.body.get("final"),
            "reasons": [reason["code"] for reason in entry.body.get("reasons", ())],
            "paragraph": entry.body.get("paragraph") or entry.body.get("reason"),
            "body": json.dumps(entry.body, sort_keys=True, ensure_ascii=False),
            "previous": entry.previous,
            "digest": entry.digest,
        }
        for entry in ledger.entries()
    ]
    text = ("kind", "champion", "experiment", "verdict", "paragraph", "body", "previous", "digest")
    schema = pa.schema(
        [
            pa.field("sequence", pa.int64()),
            pa.field("ts", pa.timestamp("us", tz="UTC")),
            pa.field("final", pa.bool_()),
            pa.field("reasons", pa.list_(pa.string())),
            *(pa.field(name, pa.string()) for name in text),
        ]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    write_atomic(path, sink.getvalue().to_pybytes())
    return len(rows)


def _named(body: dict[str, Any]) -> str | None:
    experiment = body.get("experiment")
    return experiment.get("name") if isinstance(experiment, dict) else experiment


def _differing(body: dict[str, Any]) -> tuple[str, ...]:
    try:
        again = json.loads(json.dumps(recompute(body).to_dict()))
    except KeyError as error:
        return (f"it holds no {error}",)
    except (TypeError, ValueError, OmnifeedError) as error:
        return (f"it cannot be computed: {error}",)
    return tuple(name for name, value in again.items() if name != PICTURE and not _same(value, body.get(name)))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=1e-12)
    return bool(left == right)
