"""The validate step: bad rows to quarantine, a bad table set to nobody.

Order: files → columns → items → users → events (whose items and users must be accepted ones) → share of bad rows →
change since the last accepted run. The page is written whatever happens, the quarantine as soon as rows could be read;
the accepted tables and the profile only when nothing critical failed, so what was accepted before survives a breach.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from omnifeed.config import Config
from omnifeed.errors import ContractBreach
from omnifeed.home import folder_atomic
from omnifeed.quality import contract
from omnifeed.quality.contract import Rule
from omnifeed.quality.examine import Examined, examine, quoted
from omnifeed.quality.intake import columns_frame, files_frame, read_files
from omnifeed.quality.outcome import Check, Failure, QualityReport, failures
from omnifeed.quality.page import write_page
from omnifeed.quality.profile import changes, load_profile, profile, save_profile
from omnifeed.quality.suite import Suites
from omnifeed.tables import Tables, write_tables


def validate(
    tables_dir: Path,
    accepted_dir: Path,
    quarantine_dir: Path,
    report_html: Path,
    config: Config,
    now: int,
    last_profile: Path,
) -> QualityReport:
    """Hold a table set against its contract.

    Args:
        tables_dir: a table set as `omnifeed.tables.write_tables` lays it out, possibly broken.
        accepted_dir: where the rows that pass go, in the same layout.
        quarantine_dir: where `<table>.parquet` goes: the other rows, every column of their file as text, and
            `failed_expectation`, the sentences that they break joined by "; ".
        report_html: the page of results.
        now: end of the log, exclusive, UTC microseconds.
        last_profile: JSON of the last accepted run of each source; absent on the first.

    Raises:
        ContractBreach: a file, a column, a whole table, too many rows, or a change since the last accepted run.
        InputError: `last_profile` is malformed.
    """
    source = config.data.source
    last = load_profile(last_profile, source)
    suites = Suites()
    checks: list[Check] = []
    counts: dict[str, tuple[int, int]] = {}  # rows, of these quarantined

    def page() -> None:
        write_page(report_html, checks, counts, source, now, compared=last is not None)

    def stop_if_critical(action: str) -> None:
        critical = [failure for failure in failures(checks) if failure.critical]
        if critical:
            page()
            raise ContractBreach(_problem(tables_dir, critical), f"{action} Every check: {report_html}.")

    def check(name: str, frame: pa.Table, rules: list[Rule], key: str) -> None:
        checks.extend(quoted(name, suites.run(name, frame, rules), frame, key))

    files = read_files(tables_dir)
    check("files", files_frame(files), contract.FILES, "path")
    stop_if_critical("Write the file again from its source, then run again.")
    check("columns", columns_frame(files), contract.COLUMNS, "column")
    stop_if_critical("Correct the column at its source, then run again.")

    examined: dict[str, Examined] = {}
    accepted: dict[str, pa.Table] = {}
    for table in ("items", "users", "events"):
        examined[table] = examine(table, files, accepted, suites, config, now)
        files = [file for file in files if file.table != table]
        accepted[table] = examined[table].accepted
        checks += examined[table].checks
        failing = len(examined[table].quarantine)
        counts[table] = (len(accepted[table]) + failing, failing)
    with folder_atomic(quarantine_dir) as folder:
        for table, result in examined.items():
            pq.write_table(result.quarantine, folder / f"{table}.parquet", compression="zstd")
    check("acceptance", _shares(examined, counts), contract.acceptance(config), "table")
    stop_if_critical(f"Look at the rows in {quarantine_dir}, correct them at their source, then run again.")

    tables = Tables(accepted["events"], accepted["items"], accepted["users"])
    found = profile(tables)
    if last is not None:
        check("drift", changes(found, last), contract.drift(config), "number")
        stop_if_critical(
            f"Find what changed at the source; if the change is meant, remove {source!r} from {last_profile} and run "
            "again."
        )
    write_tables(tables, accepted_dir)
    page()
    save_profile(last_profile, source, found)
    return QualityReport(
        rows={table: total for table, (total, _) in counts.items()},
        accepted={table: total - failing for table, (total, failing) in counts.items()},
        quarantined={table: failing for table, (_, failing) in counts.items()},
        failures=failures(checks),
    )


def _shares(examined: dict[str, Examined], counts: dict[str, tuple[int, int]]) -> pa.Table:
    """One row a table: its name, the share of its rows that break their contract, and the commonest reason."""
    return pa.table(
        {
            "table": list(examined),
            "bad_share": [counts[table][1] / max(counts[table][0], 1) for table in examined],
            "quarantined": [result.summary for result in examined.values()],
        }
    )


#: What the frames about the tables have a row for.
_UNITS = {"files": "files", "columns": "columns", "acceptance": "tables", "drift": "numbers"}


def _problem(tables_dir: Path, critical: list[Failure]) -> str:
    first, more = critical[0], len(critical) - 1
    how_many = f"{first.rows:,} of {first.of:,} {_UNITS.get(first.table, 'rows')}" if first.of else "it is empty"
    example = f", for example {first.example}" if first.rows else ""
    others = f" ({more} more critical {'check fails' if more == 1 else 'checks fail'})" if more else ""
    return f"{tables_dir} breaks the contract “{first.contract}”: {how_many}{example}{others}."
