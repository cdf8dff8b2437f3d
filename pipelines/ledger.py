"""`omnifeed ledger`: every decision that was taken, for those who did not take it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from omnifeed.errors import IntegrityError
from omnifeed.home import Home

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(name="ledger", invoke_without_command=True)
@json_option
@click.pass_context
def ledger_group(context: click.Context, as_json: bool) -> None:
    """Show every decision; check them, or hand them to an auditor."""
    from omnifeed.experiment.ledger import Ledger
    from omnifeed.pipelines.cli import emit, stamp
    from omnifeed.report.words import ledger_what

    if context.invoked_subcommand is not None:
        return
    book = Ledger(Home.from_env())
    entries = book.entries()
    lines = [
        f"{entry.sequence:>4}  {stamp(entry.ts)}  {entry.kind:<10}  champion {entry.champion or '-':<4}  "
        + ledger_what(entry.to_dict())
        for entry in entries
    ]
    emit(
        {"champion": book.champion(), "entries": [dataclasses.asdict(entry) for entry in entries]},
        as_json,
        "\n".join(lines) if entries else "The ledger is empty: nothing has run yet.",
    )


@ledger_group.command()
@json_option
def verify(as_json: bool) -> None:
    """Check the chain of hashes and compute every decision again."""
    from omnifeed.experiment.audit import audit
    from omnifeed.experiment.ledger import Ledger
    from omnifeed.pipelines.cli import emit

    found = audit(Ledger(Home.from_env()))
    if found.discrepancies:
        said = "; ".join(f"entry {each.sequence}: {', '.join(each.fields)}" for each in found.discrepancies)
        raise IntegrityError(
            f"{len(found.discrepancies)} of {found.decisions} decisions do not come out as written ({said}).",
            "Read those entries: they were written by hand or by another version; the chain of hashes is intact.",
        )
    emit(
        found.to_dict(),
        as_json,
        f"{found.entries} entries in an unbroken chain; {found.decisions} decisions computed again, alike.",
    )


@ledger_group.command()
@click.argument("to", type=click.Path(path_type=Path))
@json_option
def export(to: Path, as_json: bool) -> None:
    """Write the whole ledger to one parquet file, a row an entry."""
    from omnifeed.experiment.audit import export as export_ledger
    from omnifeed.experiment.ledger import Ledger
    from omnifeed.pipelines.cli import emit

    entries = export_ledger(Ledger(Home.from_env()), to)
    emit({"entries": entries, "path": str(to)}, as_json, f"{entries} entries written to {to}.")
